"""What every test runs with, and the data that many share."""

import gc
import os

# Tests run small models, often two processes at a time on two cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Their servers are on this machine, whatever proxy leads out of it.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

import signal
import subprocess
import sysconfig
from collections import Counter
from doctest import DocTestParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support.paths import SHARED_DATA

from modeling_gpt2scratch.common.threads import let_waiting_threads_rest

let_waiting_threads_rest()  # before a test loads torch; the processes of tests inherit it

# The same examples in each run, and none that fails for being slow.
settings.register_profile(
    "gate",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("gate")


def pytest_collection_finish():
    """Leaves what was imported out of later collections of garbage; each run ends with one."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def small_disk(tmp_path):
    """Makes file systems of a size such as "256k", in memory, each in a directory of its own."""
    directories = []

    def mount(size: str) -> Path:
        directory = tmp_path / f"disk-{len(directories)}"
        directory.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("needs the right to mount a file system")
        directories.append(directory)
        return directory

    yield mount
    for directory in directories:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@pytest.fixture(params=["cpu", pytest.param("accelerator", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """The CPU, and then the accelerator if there is one; runs of a test keep to it."""
    import torch

    if request.param == "cpu":
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        return torch.device("cpu")
    if not torch.accelerator.is_available():
        pytest.skip("needs an accelerator")
    return torch.accelerator.current_accelerator()


@pytest.fixture(scope="module")
def gpt2_files():
    """Sets TIKTOKEN_CACHE_DIR to a copy of OpenAI's two files."""
    directory = SHARED_DATA / "tiktoken_cache"
    if not directory.is_dir():
        pytest.skip(f"needs GPT-2's vocab.bpe and encoder.json in {directory}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(directory))
        yield


@pytest.fixture
def hang_up_is_heard():
    """Processes do not ignore SIGHUP, as they would if the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def warm_commands(tmp_path_factory):
    """Directory for the front of PATH: a Python whose imports are done."""
    from support.programs.warm_python import warm_python

    with warm_python(tmp_path_factory.mktemp("warm")) as directory:
        yield directory


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> Path:
    """A data directory of some 50,000 tokens: docstrings of a few standard modules, 300 entries."""
    from modeling_gpt2scratch.data.preparation.configuration import PrepareConfig
    from modeling_gpt2scratch.data.preparation.prepare import prepare
    from modeling_gpt2scratch.data.sources.docstrings import docstrings_of

    standard_library = Path(sysconfig.get_path("stdlib"))
    names = ("argparse", "ast", "datetime", "decimal", "difflib", "inspect", "statistics", "turtle")
    texts = [text for name in names for text in docstrings_of(standard_library / f"{name}.py")]
    parts = [DocTestParser().parse(text) for text in texts]  # an example and what stands between
    texts = ["".join(p for p in part if isinstance(p, str)).strip() for part in parts]
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


def pytest_terminal_summary(terminalreporter):
    """What became of damaged files, by outcome; printed here because a worker's output is lost."""
    rows = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "fuzzing" and report.when == "call"
    ]
    if rows:
        terminalreporter.section("damaged files, by the command that reads them")
        total = sum((Counter(counts) for _, counts in rows), Counter())
        for target, counts in [*rows, ["all", total]]:
            words = ", ".join(f"{counts[outcome]:,} {outcome}" for outcome in sorted(counts))
            terminalreporter.write_line(f"{target}: {words}")
