"""What several test files share."""

import os

# Tests run small models, often two processes at a time on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
# Seconds after which what a test waits for counts as hung. Long, for a busy machine is only slow.
PATIENCE = 400
sys.path.insert(0, str(REPOSITORY))  # the scripts stand beside the package, not in it


def run_process(
    command: list, *, check: bool = False, **options
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` with output as text, which leaves no process behind if one hangs."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes | options) as process:
        try:
            stdout, stderr = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.terminate()  # a launcher that is killed would leave its processes behind
            try:
                _, stderr = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            pytest.fail(f"{command} did not come to an end: {stderr[-3000:]}")
    finished = subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
    if check:
        finished.check_returncode()
    return finished


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
