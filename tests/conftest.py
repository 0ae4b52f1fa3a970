"""What several test files share."""

import os

# Tests run small models, often two processes at a time on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import sys
import sysconfig
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))  # the scripts stand beside the package, not in it


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> Path:
    """A data directory of some 50,000 tokens: docstrings of a few standard modules, 300 entries."""
    from modeling_gpt2scratch.docstrings import docstrings_of
    from modeling_gpt2scratch.preparation import prepare
    from modeling_gpt2scratch.prepare_config import PrepareConfig

    standard_library = Path(sysconfig.get_path("stdlib"))
    names = ("argparse", "ast", "datetime", "decimal", "difflib", "inspect", "statistics", "turtle")
    texts = [text for name in names for text in docstrings_of(standard_library / f"{name}.py")]
    directory = tmp_path_factory.mktemp("small_data")
    source = directory / "documents.txt"
    source.write_text("<|endoftext|>".join(texts), encoding="utf-8")
    prepare(
        PrepareConfig(
            dataset=str(source),
            output_dir=str(directory / "shards"),
            tokenizer="bpe:300",
            shard_tokens=20_011,
            val_fraction=0.1,
            num_workers=1,
        )
    )
    return directory / "shards"
