"""A run that is stopped or killed, again and again, ends as the one that nobody disturbed."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from support.processes import PATIENCE
from support.programs import training_process
from support.training_runs import OVERFITTING, flags, refusal, run_here

from modeling_gpt2scratch.checkpoints.checkpoint import (
    find_checkpoints,
    find_model,
    verify_checkpoint,
)
from modeling_gpt2scratch.checkpoints.writer import CheckpointWriter
from modeling_gpt2scratch.tracking.metrics import read_metrics
from modeling_gpt2scratch.training import loop
from modeling_gpt2scratch.training.guard_rails import StepFinding

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
        assert not (killed / "model.safetensors").exists()
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


def curve_rows(output_dir: Path) -> list[dict]:
    """The logged lines, in their order."""
    return read_metrics(output_dir / "metrics.jsonl")


def rows_of(output_dir: Path) -> dict[int, dict]:
    """The logged values by step."""
    return {row["step"]: row for row in read_metrics(output_dir / "metrics.jsonl")}


@pytest.mark.gate
def test_logged_losses_are_means_wherever_a_run_was_stopped(small_data, tmp_path, monkeypatch):
    options = {"max_steps": 23, "eval_every": 8, "save_every": 4}
    for name, log_every in (("each", 1), ("whole", 5)):
        arguments = flags(small_data, tmp_path / name, **options, log_every=log_every)
        assert run_here(monkeypatch, *arguments) == 0
    arguments = flags(small_data, tmp_path / "stopped", **options, log_every=5, resume="auto")
    for step in (7, 10, 18, None):
        with monkeypatch.context() as patch:
            patch.setattr(
                loop, "is_asked_to_stop", lambda run, request, at=step: run.progress.step == at
            )
            assert run_here(patch, *arguments) == 0
    each, whole, stopped = (rows_of(tmp_path / name) for name in ("each", "whole", "stopped"))
    assert whole.keys() == {1, 4, 5, 8, 10, 12, 15, 16, 20, 23}
    assert stopped.keys() == whole.keys() | {7, 18}
    for step, row in stopped.items():
        first = (step - 1) // 5 * 5 + 1  # after the last multiple of log_every
        for name in ("loss", "grad_norm"):
            values = [each[earlier][name] for earlier in range(first, step + 1)]
            assert row[name] == sum(values) / len(values)
            assert step not in whole or row[name] == whole[step][name]


@pytest.mark.gate
def test_a_validation_that_a_stop_has_left_is_made_when_the_run_goes_on(
    small_data, tmp_path, monkeypatch
):
    options = {"max_steps": 6, "eval_every": 2, "save_every": 4, "log_every": 1, "final": "best"}
    assert run_here(monkeypatch, *flags(small_data, tmp_path / "whole", **options)) == 0
    arguments = flags(small_data, tmp_path / "stopped", **options, resume="auto")
    for step in (2, 2, 4, 6, None):  # the second stop comes within the validation after the first
        with monkeypatch.context() as patch:
            patch.setattr(
                loop, "is_asked_to_stop", lambda run, request, at=step: run.progress.step == at
            )
            assert run_here(patch, *arguments) == 0
        status = json.loads((tmp_path / "stopped" / "status.json").read_text())["status"]
        assert status == ("finished" if step is None else "stopped")
    assert curve(tmp_path / "stopped") == curve(tmp_path / "whole")
    weights = [tmp_path / name / "model.safetensors" for name in ("whole", "stopped")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.gate
def test_a_validation_that_was_left_is_made_though_it_is_no_longer_due(
    small_data, tmp_path, monkeypatch
):
    options = {"save_every": 0, "log_every": 100, "resume": "auto"}
    first = flags(small_data, tmp_path / "run", max_steps=3, eval_every=2, **options)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "is_asked_to_stop", lambda run, request: run.progress.step == 3)
        assert run_here(patch, *first) == 0
    assert (
        run_here(
            monkeypatch, *flags(small_data, tmp_path / "run", max_steps=5, eval_every=4, **options)
        )
        == 0
    )
    assert [row["step"] for row in curve_rows(tmp_path / "run")] == [1, 2, 3, 4, 5]


def test_a_stop_within_a_step_writes_no_line_of_its_own(small_data, tmp_path, monkeypatch):
    train_step = loop.train_step

    def stopped(run, batches, request):
        return None if run.progress.step == 2 else train_step(run, batches, request)

    options = {"max_steps": 4, "save_every": 0, "eval_every": 0, "log_every": 1, "resume": "auto"}
    arguments = flags(small_data, tmp_path / "run", **options)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stopped)
        assert run_here(patch, *arguments) == 0
    assert [row["step"] for row in curve_rows(tmp_path / "run")] == [1, 2]
    assert run_here(monkeypatch, *arguments) == 0
    assert [row["step"] for row in curve_rows(tmp_path / "run")] == [1, 2, 3, 4]


def test_a_stop_is_heard_while_data_are_long_in_coming(small_data, tmp_path, monkeypatch):
    take = loop.Prefetcher.__next__

    def take_or_wait(batches):
        if batches.n_taken == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(PATIENCE)
            pytest.fail("the stop was not heard")
        batches.n_taken += 1
        return take(batches)

    options = {"max_steps": 4, "eval_every": 0, "save_every": 0, "log_every": 1}
    options |= {"total_batch_tokens": 128, "micro_batch_size": 4, "preflight": False}
    with monkeypatch.context() as patch:
        patch.setattr(loop.Prefetcher, "n_taken", 0, raising=False)
        patch.setattr(loop.Prefetcher, "__next__", take_or_wait)
        assert run_here(patch, *flags(small_data, tmp_path / "run", **options)) == 0
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    (checkpoint,) = find_checkpoints(tmp_path / "run")
    assert status["status"] == "stopped"
    assert checkpoint.name == f"checkpoint-{status['step']}"


@pytest.mark.gate
def test_a_finished_run_that_goes_on_has_no_result_until_its_new_end(
    small_data, tmp_path, monkeypatch
):
    options = {"eval_every": 0, "save_every": 2, "resume": "auto"}
    assert run_here(monkeypatch, *flags(small_data, tmp_path / "run", max_steps=2, **options)) == 0
    first = (tmp_path / "run" / "model.safetensors").read_bytes()
    again = flags(small_data, tmp_path / "run", max_steps=4, **options)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "is_asked_to_stop", lambda run, request: run.progress.step == 3)
        assert run_here(patch, *again) == 0
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "config.json").exists()
    assert find_model(tmp_path / "run").name == "checkpoint-3"
    assert run_here(monkeypatch, *again) == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() != first
    assert run_here(monkeypatch, *again) == 0  # nothing left to do, and the result stays
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_what_a_rollback_leaves_out_is_not_forgotten_by_a_stop_after_it(
    small_data, tmp_path, monkeypatch
):
    train_step, judge_steps = loop.train_step, loop.judge_steps
    has_spiked = []

    def stopped(run, batches, request):
        return None if has_spiked else train_step(run, batches, request)

    def spiking(run, outcomes):
        values, findings = judge_steps(run, outcomes)
        if run.progress.step == 3:
            has_spiked.append(StepFinding(3, "spike", loss=9.0, grad_norm=9.0, deviation=9.0))
        return values, [*findings, *has_spiked]

    options = {"max_steps": 6, "eval_every": 0, "save_every": 2, "log_every": 1}
    arguments = flags(small_data, tmp_path / "run", **options, rollback_on_spike=True)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stopped)
        patch.setattr(loop, "judge_steps", spiking)
        assert run_here(patch, *arguments) == 0
    checkpoint = find_checkpoints(tmp_path / "run")[0]
    assert checkpoint.name == "checkpoint-2"
    state = json.loads((checkpoint / "training_state.json").read_text())
    assert state["left_out_steps"] == 1


@pytest.mark.gate
def test_nothing_goes_back_to_a_continuation_that_was_left(small_data, tmp_path, monkeypatch):
    arguments = flags(small_data, tmp_path / "run", max_steps=4, save_every=2, eval_every=0)
    assert run_here(monkeypatch, *arguments) == 0
    earlier = tmp_path / "run" / "checkpoint-2"
    with monkeypatch.context() as patch:  # before it has saved anything
        patch.setattr(loop, "report", die_after(3))
        with pytest.raises(Killed):
            run_here(patch, *arguments, "--resume", str(earlier), "--log_every", "1")
    assert find_checkpoints(tmp_path / "run")[0] == earlier


def test_best_weights_that_somebody_has_deleted_are_named(
    small_data, tmp_path, monkeypatch, capsys
):
    options = {"max_steps": 4, "eval_every": 2, "save_every": 2, "final": "best"}
    arguments = flags(small_data, tmp_path / "run", **options)
    wait = CheckpointWriter.wait

    def delete(writer):
        wait(writer)
        shutil.rmtree(tmp_path / "run" / "checkpoint-4", ignore_errors=True)

    monkeypatch.setattr(CheckpointWriter, "wait", delete)
    code, error = refusal(monkeypatch, capsys, *arguments)
    assert code == 1 and "expected checkpoint-4, which had the lowest validation loss" in error


@pytest.mark.gate
def test_a_run_that_overfits_ends_early_with_its_best_weights_killed_or_not(
    few_documents, tmp_path, monkeypatch
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_here(monkeypatch, *flags(few_documents, whole, **OVERFITTING)) == 0
    losses = {step: row["eval_loss"] for step, row in rows_of(whole).items() if "eval_loss" in row}
    best = min(losses, key=losses.get)
    assert 5 < best < 20 and max(losses) == best + 6 * 5 < 60  # it has overfitted
    assert {path.name for path in whole.glob("checkpoint-*")} == {
        *(f"checkpoint-{best}", f"checkpoint-{max(losses)}")
    }

    arguments = flags(few_documents, killed, **OVERFITTING, resume="auto")
    for step in (best, best + 10, max(losses)):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "report", die_after(step))
            with pytest.raises(Killed):
                run_here(patch, *arguments)
        assert (killed / f"checkpoint-{best}").is_dir()
    assert run_here(monkeypatch, *arguments) == 0
    for directory in (whole, killed):
        weights = (directory / "model.safetensors").read_bytes()
        assert weights == (directory / f"checkpoint-{best}" / "model.safetensors").read_bytes()
        assert json.loads((directory / "status.json").read_text())["status"] == "finished"
    assert curve(killed) == curve(whole)
    assert (whole / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()

    # Nothing is left to do, unless one is more patient; and then the last weights are others.
    assert run_here(monkeypatch, *arguments) == 0
    assert curve(killed) == curve(whole)
    more = ("--patience", "7", "--final", "last", "--keep_best")
    assert run_here(monkeypatch, *arguments, *more) == 0
    assert max(rows_of(killed)) == max(losses) + 5
    assert (killed / f"checkpoint-{best}").is_dir()
    assert (killed / "model.safetensors").read_bytes() != weights


class Killed(Exception):
    """What ends a run without a word."""


def die_after(step: int):
    """In place of the loop's report: what a kill does after this step."""
    report = loop.report

    def report_and_die(run, bar, values):
        report(run, bar, values)
        if run.progress.step == step:
            raise Killed

    return report_and_die


def test_what_looks_at_validations_is_refused_without_them(
    few_documents, small_data, tmp_path, monkeypatch, capsys
):
    for name, value in (("keep_best", True), ("final", "best"), ("patience", 3)):
        options = OVERFITTING | {"final": "last", "patience": 0, "eval_every": 0, name: value}
        code, error = refusal(monkeypatch, capsys, *flags(small_data, tmp_path / "run", **options))
        reason = f"because {name} = {str(value).lower()} needs validations, found 0"
        assert code == 2 and f"expected eval_every above 0, {reason}" in error
    data = shutil.copytree(few_documents, tmp_path / "data")
    (data / "val_000000.bin").unlink()
    manifest = json.loads((data / "manifest.json").read_text())
    del manifest["splits"]["val"]
    (data / "manifest.json").write_text(json.dumps(manifest))
    code, error = refusal(monkeypatch, capsys, *flags(data, tmp_path / "run", **OVERFITTING))
    assert code == 2 and "expected data with a validation split for --keep_best" in error
