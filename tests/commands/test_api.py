"""Preparing, training and comparing as functions, as a notebook calls them."""

import os
import subprocess
import sys

import pytest
from support.paths import REPOSITORY
from support.processes import PATIENCE
from support.training_runs import curve

from modeling_gpt2scratch import prepare
from modeling_gpt2scratch.hub import datasets

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


def test_prepare_uploads_what_it_was_asked_to(tmp_path, small_data, monkeypatch):
    asked = []
    monkeypatch.setattr(datasets, "require_place", lambda *a, **k: asked.append((a, k)))
    monkeypatch.setattr(datasets, "push_data", lambda *a, **k: asked.append((a, k)) or "address")
    text, data = small_data.parent / "documents.txt", tmp_path / "data"
    options = {"tokenizer": "bytes", "num_workers": 1, "push_to_hub": "you/x", "private": True}
    prepare(dataset=text, output_dir=data, **options)
    is_private = {"private": True}
    assert asked == [(("you/x",), is_private), ((data, "you/x"), is_private)]


@pytest.mark.gate
def test_a_script_without_a_guard_is_told_where_prepare_belongs(tmp_path):
    (tmp_path / "long.txt").write_text("A sentence of this text.\n" * 200_000)
    program = tmp_path / "program.py"
    program.write_text(
        "from modeling_gpt2scratch import prepare\n"
        'prepare(dataset="long.txt", output_dir="data", tokenizer="bytes", num_workers=2)\n'
    )
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": PATIENCE}
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.run([sys.executable, program], env=environment, **options)
    assert process.returncode == 1
    assert 'expected prepare() below `if __name__ == "__main__":`' in process.stderr


@pytest.mark.gate
def test_what_comes_after_a_training_that_was_stopped_does_not_begin(tmp_path, small_data):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, sys\n"
        "from modeling_gpt2scratch import train\n"
        "from modeling_gpt2scratch.training import loop\n"
        "step = loop.train_step\n"
        "def stopping(*a):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return step(*a)\n"
        "loop.train_step = stopping\n"
        'train(data=sys.argv[1], output_dir="run", model="tiny", n_positions=32, max_steps=9,\n'
        "      total_batch_tokens=256, micro_batch_size=8, eval_every=0, preflight=False)\n"
        'print("AFTER IT")\n'
    )
    command = [sys.executable, program, small_data]
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": PATIENCE}
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.run(command, env=environment, **options)
    assert process.returncode == 143, process.stderr
    assert "AFTER IT" not in process.stdout and "continue with --resume auto" in process.stdout
    assert not (tmp_path / "run" / "report.md").exists()
