"""A run that is over, for all who look at one or continue it."""

import shutil
from pathlib import Path

import pytest
from support.evaluation import tiny_tokenizer
from support.token_directories import write_ours
from support.training_runs import flags, launch


@pytest.fixture(scope="session")
def finished(small_data, tmp_path_factory) -> Path:
    """The directory of an uninterrupted run."""
    output_dir = tmp_path_factory.mktemp("runs") / "finished"
    process = launch(*flags(small_data, output_dir))
    assert process.returncode == 0, process.stderr
    return output_dir


@pytest.fixture
def run_copy(finished, tmp_path) -> Path:
    """A copy of the finished run as it was after step 8."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "checkpoint-12")
    (copy / "latest").write_text("checkpoint-8")
    return copy


@pytest.fixture(scope="session")
def few_documents(tmp_path_factory) -> Path:
    """Data of a hundred tokens, which a model knows by heart long before it knows others."""
    directory = tmp_path_factory.mktemp("few") / "documents"
    held_out = ["the dog and the cat sat on a mat", "a cat on the dog: the end"] * 4
    write_ours(directory, tiny_tokenizer(), shard_tokens=1000, val=held_out)
    return directory
