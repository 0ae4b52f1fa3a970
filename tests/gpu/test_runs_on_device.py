"""Whole runs on an accelerator: killed and resumed, with a lost number, with a trace."""

import json

import pytest
from support.training_runs import curve, events_of, flags, run_here

from modeling_gpt2scratch import GPT2ScratchForCausalLM
from modeling_gpt2scratch.tracking.metrics import read_metrics
from modeling_gpt2scratch.training import loop

SMALL = {"n_positions": 16, "total_batch_tokens": 128, "eval_every": 0, "max_steps": 8}


class Killed(Exception):
    """What ends a run without a word."""


def test_a_killed_run_goes_on(small_data, tmp_path, monkeypatch, device):
    options = SMALL | {"optimizer": "muon", "resume": "auto", "micro_batch_size": "auto"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_here(monkeypatch, *flags(small_data, whole, **options)) == 0
    environment = json.loads((whole / "environment.json").read_text())
    assert (environment["device"] == "cpu") is (device.type == "cpu")
    report = loop.report

    def report_and_die(run, bar, values):
        report(run, bar, values)
        if run.progress.step == 6:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "report", report_and_die)
        run_here(patch, *flags(small_data, killed, **options))
    assert run_here(monkeypatch, *flags(small_data, killed, **options)) == 0
    assert curve(killed).keys() == curve(whole).keys() == set(range(1, 9))
    for step, values in curve(whole).items():
        assert curve(killed)[step] == pytest.approx(values, rel=1e-3)


@pytest.mark.parametrize("mixed_precision", ["auto", "fp16"])
def test_a_lost_number_is_left_out_and_a_trace_is_written(
    small_data, tmp_path, monkeypatch, device, mixed_precision
):
    forward, calls = GPT2ScratchForCausalLM.forward, []

    def faulty_forward(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        calls.append(None)
        if len(calls) == 4:
            outputs.loss = outputs.loss * float("nan")
        return outputs

    monkeypatch.setattr(GPT2ScratchForCausalLM, "forward", faulty_forward)
    output_dir = tmp_path / "run"
    options = SMALL | {"micro_batch_size": 8, "preflight": False, "profile": True}
    options |= {"mixed_precision": mixed_precision, "document_mask": mixed_precision == "fp16"}
    assert run_here(monkeypatch, *flags(small_data, output_dir, **options)) == 0
    left_out = [(event["event"], event["step"]) for event in events_of(output_dir)]
    if mixed_precision == "auto":
        assert left_out == [("skipped", 4)]
    assert 4 in [step for _, step in left_out]  # fp16 may have lowered its scale before
    losses = [row["loss"] for row in read_metrics(output_dir / "metrics.jsonl")]
    assert losses[3] is None and None not in losses[:3] + losses[4:]
    assert (output_dir / "profile" / "trace-0.json.gz").stat().st_size > 0
