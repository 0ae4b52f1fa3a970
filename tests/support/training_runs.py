"""Whole training runs, in this process or in others, and what they recorded."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from support.paths import REPOSITORY
from support.processes import run_process
from transformers import GPT2Config, GPT2LMHeadModel

import train_accelerate
from modeling_gpt2scratch.reports import run_page
from modeling_gpt2scratch.reports.loss_plot import PlotError
from modeling_gpt2scratch.tracking.metrics import read_metrics

# Dropout is on, so that a resumed run must also repeat its random numbers.
SIZES = {
    **{"model": "tiny", "n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 32},
    **{"total_batch_tokens": 512, "micro_batch_size": 4, "learning_rate": 0.01, "log_every": 1},
    **{"max_steps": 12, "eval_every": 6, "save_every": 4, "eval_tokens": 2048, "dropout": 0.1},
}

# On few documents; it validates more often than it saves, keeps the best weights and ends early.
OVERFITTING = {
    **{"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 8, "total_batch_tokens": 64},
    **{"dropout": 0, "max_steps": 60, "eval_every": 5, "save_every": 20, "log_every": 5},
    **{"keep_checkpoints": 1, "patience": 6, "final": "best"},
}


def flags(data: Path, output_dir: Path, /, **changes) -> list[str]:
    """The command line of a small run."""
    values = {"data": data, "output_dir": output_dir} | SIZES | changes
    if not values["eval_every"]:
        del values["eval_tokens"]  # which has no effect then
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def launcher_of(config: str) -> list[str]:
    """`accelerate launch` with one of our configurations, as Python's arguments."""
    command = ["-m", "accelerate.commands.accelerate_cli", "launch"]
    return [*command, "--config_file", str(Path("accelerate_configs") / config)]


def our_launcher_of(config: str) -> list[str]:
    """`gpt2scratch launch` with one of our configurations, as Python's arguments."""
    command = ["-m", "modeling_gpt2scratch", "launch"]
    return [*command, "--config_file", str(Path("accelerate_configs") / config)]


def launch(
    *arguments: str,
    config: str | Path | None = None,
    launcher_flags: Sequence[str] = (),
    warm: Path | None = None,
    script: str = "train_accelerate.py",
    **options,
) -> subprocess.CompletedProcess:
    """Runs the script in a process of its own, or as many as an Accelerate configuration says.

    Args:
        warm: Directory of commands whose imports are done, for a run with a configuration that
            nobody kills.
    """
    python = [sys.executable, *(launcher_of(config) if config else [])]
    if warm:
        path = Path("accelerate_configs") / config
        python = [warm / "accelerate", "launch", "--config_file", path]
    command = [*python, *launcher_flags, script, *arguments]
    return run_process(command, **{"cwd": REPOSITORY} | options)


def curve(output_dir: Path) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm of each step."""
    metrics = read_metrics(output_dir / "metrics.jsonl")
    return {row["step"]: (row["loss"], row["grad_norm"]) for row in metrics}


@contextlib.contextmanager
def fresh_state():
    """Accelerate's singletons, as if nobody had asked for them; signal handlers as before."""
    AcceleratorState._reset_state(reset_partial_state=True)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run_here(monkeypatch, *arguments: str) -> int:
    """Runs the script's main function in this process and returns its exit code.

    Its report has no picture: to draw one takes longer than such a run.
    """
    monkeypatch.setattr(sys, "argv", ["train_accelerate.py", *arguments])
    monkeypatch.setattr(run_page, "draw_curves", _draw_nothing)
    with fresh_state():
        try:
            train_accelerate.main()
        except SystemExit as error:
            return error.code
    return 0


def _draw_nothing(run: Path, logged: Sequence[dict]) -> bytes:
    raise PlotError("drawn elsewhere")


def refusal(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    """Exit code and error line of a run that must be refused before its first step."""
    code = run_here(monkeypatch, *arguments)
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1
    return code, errors[0]


def train_with(faults, *arguments, launcher_flags=(), warm=None, **environment):
    """Runs the training script on two processes with faults at given steps; see the script."""
    return launch(
        *(json.dumps(faults), *arguments),
        config="cpu_2proc.yaml",
        launcher_flags=launcher_flags,
        warm=warm,
        script="tests/support/programs/faulty_training.py",
        env=os.environ | environment,
    )


def events_of(output_dir):
    """What happened in a run."""
    lines = (output_dir / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def require_same_curve(left, right, steps=range(1, 13)):
    """Compares losses, gradient norms, learning rates and validation losses of two runs."""
    left, right = (
        {row["step"]: row for row in read_metrics(d / "metrics.jsonl")} for d in (left, right)
    )
    assert set(steps) <= left.keys() & right.keys()
    for step in steps:
        assert left[step]["learning_rate"] == right[step]["learning_rate"]
        assert left[step]["loss"] == pytest.approx(right[step]["loss"], abs=1e-4)
        assert left[step]["grad_norm"] == pytest.approx(right[step]["grad_norm"], rel=1e-3)
        if "eval_loss" in left[step]:
            assert left[step]["eval_loss"] == pytest.approx(right[step]["eval_loss"], abs=1e-4)


LAYERS = {"n_layer": 3, "n_head": 2, "n_embd": 24, "n_positions": 40}


def stock_model(directory: Path, **changes) -> GPT2LMHeadModel:
    """A stock gpt2 directory with the vocabulary of the small data, and the model in it."""
    torch.manual_seed(3)
    ends = {"bos_token_id": 299, "eos_token_id": 299}
    config = GPT2Config(**{"vocab_size": 300, "initializer_range": 0.3} | ends | LAYERS | changes)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(directory)
    return model
