"""Training in fp16: the loss is scaled, and a scale that is too large costs steps and no more."""

import copy
import functools

import pytest
import torch
from accelerate import Accelerator
from support.tiny_models import random_ids, tiny_model
from support.training_runs import curve, events_of, flags, fresh_state, run_here, train_with

from modeling_gpt2scratch.distributed import accelerator as accelerators
from modeling_gpt2scratch.optim.optimizer import make_optimizer
from modeling_gpt2scratch.tracking.metrics import read_metrics
from modeling_gpt2scratch.training import loop
from modeling_gpt2scratch.training.steps import clip_gradients, update_weights

SMALL = {"n_positions": 16, "total_batch_tokens": 128, "eval_every": 0, "dropout": 0}
# A few halvings from here, a tiny model's gradients fit.
TOO_LARGE = 2.0**24


def scaler_from(monkeypatch, **options):
    """Gives runs a scaler with other options than torch's."""
    scaler = functools.partial(torch.amp.GradScaler, **options)
    monkeypatch.setattr(accelerators.torch.amp, "GradScaler", scaler)


def test_updates_are_those_of_torch_own_recipe(tmp_path):
    ids = [random_ids(4, 16, seed=seed) for seed in range(24)]
    weights = []
    for is_ours in (True, False):
        model = tiny_model().train()
        optimizer = make_optimizer(model, learning_rate=0.01, weight_decay=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=TOO_LARGE, growth_interval=7)
        with fresh_state():
            accelerator = Accelerator(cpu=True, mixed_precision="fp16")
            accelerator.native_amp, accelerator.scaler = True, scaler
            wrapped = accelerator.prepare_optimizer(optimizer)
            scales = []
            for row in ids:
                scales.append(scaler.get_scale())
                with torch.autocast("cpu", torch.float16):
                    loss = model(row, labels=row).loss
                scaler.scale(loss).backward()
                if is_ours:
                    norm = clip_gradients(model, accelerator, 1.0)
                    update_weights(wrapped, accelerator, loss.detach(), norm)
                else:
                    scaler.unscale_(optimizer)
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    scaler.step(optimizer)
                    scaler.update()
                optimizer.zero_grad()
        weights.append((scales, copy.deepcopy(model.state_dict())))
    (ours, left), (theirs, right) = weights
    assert ours == theirs and ours[1] < ours[0] < 2 * max(ours)
    assert any(after > before for before, after in zip(ours, ours[1:], strict=False))
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.gate
def test_two_hundred_steps_have_the_curve_of_float32(small_data, tmp_path, monkeypatch):
    options = SMALL | {"max_steps": 200, "save_every": 0, "learning_rate": 0.003}
    for precision in ("no", "fp16"):
        arguments = flags(small_data, tmp_path / precision, **options, mixed_precision=precision)
        assert run_here(monkeypatch, *arguments) == 0
    left, right = (curve(tmp_path / precision) for precision in ("no", "fp16"))
    assert set(left) == set(right) == set(range(1, 201))
    assert left[200][0] < 0.8 * left[1][0] and left != right
    for step, (loss, _) in left.items():
        assert right[step][0] == pytest.approx(loss, rel=0.01)
    last = read_metrics(tmp_path / "fp16" / "metrics.jsonl")[-1]
    assert (last["loss_scale"], last["overflowed_steps"]) == (2.0**16, 0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_overflow_costs_a_step_and_is_no_divergence(
    small_data, tmp_path, monkeypatch, optimizer
):
    scaler_from(monkeypatch, init_scale=TOO_LARGE)
    output_dir = tmp_path / "run"
    options = SMALL | {"max_steps": 14, "optimizer": optimizer, "max_skipped_steps": 2}
    arguments = flags(small_data, output_dir, **options, mixed_precision="fp16")
    assert run_here(monkeypatch, *arguments) == 0
    events, rows = events_of(output_dir), read_metrics(output_dir / "metrics.jsonl")
    lost, n = [event["step"] for event in events], len(events)
    assert lost[:3] == [1, 2, 3] and n < 14  # more in a row than steps that are lost may be
    assert [(event["event"], event["loss_scale"]) for event in events] == [
        ("overflow", TOO_LARGE / 2**earlier) for earlier in range(n)
    ]
    assert [row["step"] for row in rows if row["grad_norm"] is None] == lost
    assert rows[-1]["overflowed_steps"] == n and "skipped_steps" not in rows[-1]
    assert rows[-1]["loss_scale"] == events[-1]["loss_scale"] / 2


class Killed(Exception):
    """What ends a run without a word."""


@pytest.mark.gate
def test_a_killed_run_goes_on_with_its_scale(small_data, tmp_path, monkeypatch):
    scaler_from(monkeypatch, init_scale=TOO_LARGE, growth_interval=3)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = SMALL | {"dropout": 0.1, "micro_batch_size": 2, "optimizer": "muon"}
    options |= {"mixed_precision": "fp16", "resume": "auto", "save_every": 4, "log_every": 1}
    assert run_here(monkeypatch, *flags(small_data, whole, **options)) == 0
    report = loop.report

    def report_and_die(run, bar, values):
        report(run, bar, values)
        if run.progress.step == 10:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "report", report_and_die)
        run_here(patch, *flags(small_data, killed, **options))
    scaler_from(monkeypatch)  # what a checkpoint has counts
    assert run_here(monkeypatch, *flags(small_data, killed, **options)) == 0

    names = ("step", "loss", "grad_norm", "loss_scale", "overflowed_steps")
    curves = [
        [tuple(row[name] for name in names) for row in read_metrics(directory / "metrics.jsonl")]
        for directory in (whole, killed)
    ]
    assert curves[0] == curves[1]
    scales = [row[3] for row in curves[0]]
    assert scales[8] < scales[0] and scales[-1] != scales[8]  # it changes before and after
    assert any(after > before for before, after in zip(scales, scales[1:], strict=False))
    for name in ("model.safetensors", "checkpoint-12/optimizer/state.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.gate
def test_an_overflow_of_one_process_is_left_out_by_both(small_data, tmp_path, warm_commands):
    output_dir = tmp_path / "run"
    options = SMALL | {"log_every": 1, "mixed_precision": "fp16", "learning_rate": 0.003}
    arguments = flags(small_data, output_dir, **options)
    process = train_with([["spike", 5, 1]], *arguments, warm=warm_commands)
    assert process.returncode == 0, process.stderr
    rows = read_metrics(output_dir / "metrics.jsonl")
    assert [event["step"] for event in events_of(output_dir)] == [6]
    assert [row["loss_scale"] for row in rows] == [2.0**16] * 6 + [2.0**15] * 6
    assert rows[-1]["loss"] < rows[0]["loss"]
