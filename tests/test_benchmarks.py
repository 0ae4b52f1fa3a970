"""The benchmarks run and print what they promise; what they measure is not judged here."""

import subprocess
import sys

import pytest
from conftest import REPOSITORY


@pytest.mark.slow
def test_the_loss_benchmark_prints_both_losses_and_their_ratio():
    arguments = (
        "--model tiny --vocab_size 300 --sequence_length 16 --micro_batch_size 2 --repeats 1"
    )
    process = subprocess.run(
        [sys.executable, "benchmarks/loss.py", *arguments.split()],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    first_cells = [line.split("|")[1].strip() for line in process.stdout.splitlines()]
    assert first_cells[2:] == ["plain", "chunked", "plain / chunked"]
