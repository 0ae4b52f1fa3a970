"""Traces of training steps."""

import gzip
import json

import pytest
import torch
from accelerate import Accelerator

from modeling_gpt2scratch.hardware.profiling import profiler


def steps(tmp_path, n_steps):
    """Makes some steps under the profiler; returns the names in the trace, None without one."""
    accelerator = Accelerator(cpu=True)
    with profiler(accelerator, tmp_path / "run") as profile:
        for step in range(n_steps):
            with torch.profiler.record_function(f"step-{step}"):
                torch.ones(4, 4) @ torch.ones(4, 4)
            profile.step()
    directory = tmp_path / "run" / "profile"
    if not directory.exists():
        return None
    assert [file.name for file in directory.iterdir()] == ["trace-0.json.gz"]
    with gzip.open(directory / "trace-0.json.gz") as file:
        return {event.get("name") for event in json.load(file)["traceEvents"]}


def test_the_fourth_to_sixth_step_are_traced_and_the_operators_shown(tmp_path, capsys):
    names = steps(tmp_path, 9)
    assert {name for name in names if name.startswith("step-")} == {"step-3", "step-4", "step-5"}
    assert capsys.readouterr().out.count("aten::mm") == 1


@pytest.mark.parametrize("n_steps", [0, 3])
def test_a_run_that_is_too_short_has_no_trace_and_says_so(tmp_path, n_steps, capsys):
    assert steps(tmp_path, n_steps) is None
    found = f"note: expected at least 4 steps for --profile, found {n_steps}; there is no trace"
    assert found in capsys.readouterr().out


def test_a_run_that_ends_while_it_is_traced_has_what_there_is(tmp_path):
    assert {"step-3", "step-4"} <= steps(tmp_path, 5)
    assert "step-3" in steps(tmp_path, 4)


def test_without_a_directory_nothing_is_traced():
    with profiler(Accelerator(cpu=True), None) as profile:
        assert profile is None
