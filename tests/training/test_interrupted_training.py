"""A run that is killed again and again ends as the one that nobody disturbed."""

import os
import random
import time
from pathlib import Path

import pytest
from support.processes import PATIENCE
from support.programs import training_process

from modeling_gpt2scratch.checkpoints.checkpoint import find_checkpoints, verify_checkpoint
from modeling_gpt2scratch.tracking.metrics import read_metrics

N_KILLS = 20
MAX_STEPS = 160
# Dropout is on, so that a resumed run must also repeat its random numbers.
OPTIONS = {
    **{"model": "tiny", "n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 32},
    **{"total_batch_tokens": 512, "micro_batch_size": 4, "learning_rate": 0.01, "log_every": 1},
    **{"max_steps": MAX_STEPS, "eval_every": 40, "eval_tokens": 2048, "dropout": 0.1},
    **{"save_every": 4, "keep_checkpoints": 2, "keep_every": 40, "resume": "auto"},
}


def start(data: Path, output_dir: Path):
    """Begins the run, or continues it from wherever it is."""
    values = OPTIONS | {"data": data, "output_dir": output_dir}
    arguments = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    return training_process.start(arguments, output_dir.with_suffix(".log"))


def wait_until(condition, process) -> None:
    """Returns as soon as the condition holds, which must happen while the process lives."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.0005)


def wait_for_a_moment(
    process, output_dir: Path, generator: random.Random, number: int, started_with: int | None
) -> None:
    """Every fifth time soon after the start, else after its share of the run, or in a save then.

    A resumed run replaces `metrics.jsonl`, whose inode was `started_with`, by one without the steps
    that it will repeat.
    """
    if number % 5 == 0:
        process.join(timeout=generator.uniform(0.05, 0.8))
        return
    metrics = output_dir / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and os.stat(metrics).st_ino != started_with, process)
    share = MAX_STEPS * (number + 1) // (N_KILLS + 6) + generator.randint(0, 3)
    n_steps = max(share, len(read_metrics(metrics)) + 3)
    wait_until(lambda: len(read_metrics(metrics)) >= n_steps, process)
    if number % 2:
        wait_until(lambda: any(output_dir.glob(".checkpoint-*.partial")), process)
    time.sleep(generator.uniform(0, 0.02))


def require_whole(output_dir: Path) -> int:
    """Step of the newest checkpoint, 0 for none; each that can be seen must be undamaged."""
    checkpoints = find_checkpoints(output_dir)
    for checkpoint in checkpoints:
        verify_checkpoint(checkpoint)
    latest = output_dir / "latest"
    if latest.exists():
        assert latest.read_text().strip() == checkpoints[0].name
    return int(checkpoints[0].name.removeprefix("checkpoint-")) if checkpoints else 0


def curve(output_dir: Path) -> list[tuple]:
    """What must not depend on interruptions, of each step."""
    names = ("step", "loss", "grad_norm", "learning_rate", "eval_loss", "sample")
    return [tuple(row.get(n) for n in names) for row in read_metrics(output_dir / "metrics.jsonl")]


@pytest.mark.gate
def test_a_run_killed_twenty_times_is_the_uninterrupted_one(small_data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(small_data, whole)
    process.join()
    assert process.exitcode == 0, whole.with_suffix(".log").read_text()

    generator = random.Random(5)
    n_within_a_save = 0
    for number in range(N_KILLS):
        metrics = killed / "metrics.jsonl"
        started_with = os.stat(metrics).st_ino if metrics.exists() else None
        process = start(small_data, killed)
        wait_for_a_moment(process, killed, generator, number, started_with)
        process.kill()
        process.join()
        assert process.exitcode == -9, killed.with_suffix(".log").read_text()
        n_within_a_save += any(killed.glob(".checkpoint-*.partial"))
        assert require_whole(killed) < MAX_STEPS
    assert n_within_a_save > 0 and require_whole(killed) > 0
    process = start(small_data, killed)
    process.join()
    assert process.exitcode == 0, killed.with_suffix(".log").read_text()

    assert [row[0] for row in curve(whole)] == list(range(1, MAX_STEPS + 1))
    assert curve(killed) == curve(whole)
    assert {path.name for path in killed.iterdir()} == {path.name for path in whole.iterdir()}
    last = f"checkpoint-{MAX_STEPS}"
    of_checkpoint = (f"{last}/model.safetensors", f"{last}/optimizer/state.safetensors")
    for name in ("model.safetensors", *of_checkpoint):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
