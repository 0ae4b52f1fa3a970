"""Preparing, training and comparing as functions, as a notebook calls them."""

import subprocess
import sys

import pytest
from support.paths import REPOSITORY
from support.training_runs import curve

# In a fresh process, as only there nothing is loaded yet and no state is there.
NOTEBOOK = """
import signal
import sys
from pathlib import Path

from modeling_gpt2scratch import compare, prepare, train

assert "torch" not in sys.modules
text, data, runs = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
manifest = prepare(
    dataset=text, output_dir=data, tokenizer="bpe:300", val_fraction=0.1, num_workers=1
)
assert sum(split.n_tokens for split in manifest.splits.values()) > 10_000
handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32, "total_batch_tokens": 256}
options = {"data": data, "micro_batch_size": 4, "max_steps": 3, "log_every": 1} | sizes
first = train(output_dir=runs / "first", **options)
again = train(output_dir=str(runs / "again"), **options, mixed_precision="bf16")
same = train(output_dir=str(runs / "same"), **options)
assert (first, again, same) == tuple(runs / name for name in ("first", "again", "same"))
assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
comparison = compare(models=first, tasks="val", val_data=data)
assert comparison.models[0].tasks["val"].result is not None
"""


@pytest.mark.gate
def test_a_notebook_prepares_trains_twice_and_compares(tmp_path, small_data):
    program = tmp_path / "notebook.py"
    program.write_text(NOTEBOOK)
    text = small_data.parent / "documents.txt"
    command = [sys.executable, program, text, tmp_path / "data", tmp_path / "runs"]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    first, same = (curve(tmp_path / "runs" / name) for name in ("first", "same"))
    assert first == same and len(first) == 3
    for name in ("first", "again", "same"):
        assert f"finished: model and tokenizer are in {tmp_path / 'runs' / name}" in process.stdout
        assert (tmp_path / "runs" / name / "report.md").is_file()
