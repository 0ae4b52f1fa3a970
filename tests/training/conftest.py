"""A run that is over, for all who look at one or continue it."""

import shutil
from pathlib import Path

import pytest
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
    return copy
