"""What several test files share."""

import os

# Tests run small models, often two processes at a time on two cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import contextlib
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).parents[1]
# Seconds after which what a test waits for counts as hung. Long, for a busy machine is only slow.
PATIENCE = 400
sys.path.insert(0, str(REPOSITORY))  # the scripts stand beside the package, not in it

# The same examples in each run, and none that fails for being slow.
settings.register_profile(
    "gate",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("gate")


@contextlib.contextmanager
def started(command: list, **options) -> Iterator[subprocess.Popen]:
    """A process that does not outlive the block, nor do those that it launched."""
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()  # a launcher that is killed would leave its processes behind
                try:
                    process.communicate(timeout=60)
                except subprocess.TimeoutExpired:
                    process.kill()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Returns when the condition holds, which must be while the process runs."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


def run_process(
    command: list, *, check: bool = False, **options
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` with output as text and `PATIENCE`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(command, **pipes | options) as process:
        stdout, stderr = process.communicate(timeout=PATIENCE)
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
