"""What a run does about lost numbers, spikes, processes that hang and processes that die."""

import errno
import json

import pytest
from safetensors.torch import load_file
from support.training_runs import curve, events_of, flags, launch, refusal, run_here, train_with

from modeling_gpt2scratch.common import json_lines
from modeling_gpt2scratch.tracking import metrics

pytestmark = pytest.mark.gate


def status_of(output_dir):
    """The status that a scheduler reads."""
    return json.loads((output_dir / "status.json").read_text())


def test_what_is_not_finite_is_skipped_by_all_and_a_spike_is_gone_back_from(
    small_data, tmp_path, warm_commands
):
    output_dir = tmp_path / "run"
    faults = [["nan", 3, 1], ["nan", 4, 0], ["spike", 45, 1]]
    options = {"max_steps": 52, "log_every": 5, "save_every": 20, "eval_every": 0, "dropout": 0}
    arguments = flags(small_data, output_dir, **options, rollback_on_spike=True)
    process = train_with(faults, *arguments, warm=warm_commands)
    assert process.returncode == 0, process.stderr
    first, second, spike, rollback = events_of(output_dir)
    assert [event["event"] for event in (first, second, spike)] == ["skipped", "skipped", "spike"]
    assert [(e["step"], e["process"]) for e in (first, second, spike)] == [(4, 1), (5, 0), (46, 1)]
    assert first["loss"] is None and spike["deviation"] > 8
    for event in (first, second, spike):
        assert len(event["rows"]) == 4  # of one micro-batch
        assert all(file.startswith("train_0") for _, file, _ in event["rows"])
    assert (rollback["event"], rollback["step"], rollback["to_step"]) == ("rollback", 50, 40)
    losses = curve(output_dir)
    assert sorted(losses) == [1, *range(5, 51, 5), 52]
    assert losses[50][0] < 5  # of other data than those that were left out
    state = json.loads((output_dir / "checkpoint-52" / "training_state.json").read_text())
    assert (state["left_out_steps"], state["guard"]["skipped_steps"]) == (10, 2)
    assert status_of(output_dir) == {"status": "finished", "step": 52}


def test_a_spike_before_the_first_checkpoint_leaves_the_step_what_it_is(
    small_data, tmp_path, warm_commands
):
    output_dir = tmp_path / "run"
    options = {"max_steps": 40, "log_every": 5, "save_every": 40, "eval_every": 40, "dropout": 0}
    arguments = flags(small_data, output_dir, **options, rollback_on_spike=True)
    process = train_with([["spike", 39, 1]], *arguments, warm=warm_commands)
    assert process.returncode == 0, process.stderr
    assert "no checkpoint to go back to from step 40; going on" in process.stdout
    assert [event["event"] for event in events_of(output_dir)] == ["spike"]
    assert max(curve(output_dir)) == 40 and (output_dir / "checkpoint-40").is_dir()
    assert status_of(output_dir) == {"status": "finished", "step": 40}


def test_a_disk_that_is_full_for_a_moment_costs_a_line_of_the_log_and_not_the_run(
    small_data, tmp_path, monkeypatch, capsys
):
    def append(path, row):
        if row["step"] == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        json_lines.append_json_line(path, row)

    monkeypatch.setattr(metrics, "append_json_line", append)
    options = {"max_steps": 5, "eval_every": 0, "dropout": 0}
    assert run_here(monkeypatch, *flags(small_data, tmp_path / "run", **options)) == 0
    assert sorted(curve(tmp_path / "run")) == [1, 2, 4, 5]
    warning = "warning: step 3 is not logged: "
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith(warning)] == [
        f"{warning}{tmp_path}/run/metrics.jsonl: expected to read or write it, found No space left "
        f"on device; the run goes on"
    ]
    assert any(line.startswith("step 3: loss") for line in lines)


def test_a_run_that_only_skips_ends_in_one_line_with_its_checkpoint(small_data, tmp_path):
    output_dir = tmp_path / "run"
    # Steps 5 to 7 are looked at after the 8th, which is as it should be.
    faults = [["nan", step, 1] for step in range(4, 7)]
    options = {"eval_every": 0, "log_every": 12, "max_skipped_steps": 3}
    arguments = flags(small_data, output_dir, **options)
    process = train_with(faults, *arguments)
    assert process.returncode == 1
    errors = [line for line in process.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1 and "found none in 3 steps in a row" in errors[0]
    assert (output_dir / "latest").read_text() == "checkpoint-4\n"
    assert status_of(output_dir)["status"] == "failed"


def test_a_process_that_hangs_ends_the_run_and_is_named(small_data, tmp_path):
    output_dir = tmp_path / "run"
    # A tenth of a minute would be too short for the start of a process on a busy machine.
    arguments = flags(small_data, output_dir, eval_every=0, timeout_minutes=0.3)
    process = train_with([["stop", 6, 1]], *arguments)
    assert process.returncode == 1
    errors = [line for line in process.stderr.splitlines() if "py: error:" in line]
    assert len(errors) == 1
    assert "within 0.3 minutes, found none from process 1; go on with --resume auto" in errors[0]
    assert status_of(output_dir)["status"] == "failed"


def test_a_process_that_dies_is_restarted_by_the_launcher_and_the_curve_stays(
    small_data, tmp_path, warm_commands
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train_with([], *flags(small_data, whole), warm=warm_commands).returncode == 0
    process = train_with(
        [["die", 6, 1]],
        *flags(small_data, broken, resume="auto"),
        launcher_flags=["--max_restarts", "1"],
        FAULT_ONCE=str(tmp_path / "died"),
    )
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "died").exists()
    assert curve(broken) == curve(whole)
    left, right = (load_file(d / "model.safetensors") for d in (whole, broken))
    assert all(left[name].equal(right[name]) for name in left)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_whose_process_was_killed_says_that_it_has_failed(small_data, tmp_path, rank):
    output_dir = tmp_path / "run"
    arguments = flags(small_data, output_dir, eval_every=0)
    process = train_with([["die", 6, rank]], *arguments, FAULT_ONCE=str(tmp_path / "died"))
    assert process.returncode == 1
    errors = [line for line in process.stderr.splitlines() if "py: error:" in line]
    assert len(errors) == 1 and f"found that process {rank} has ended" in errors[0]
    found = status_of(output_dir)
    assert found["status"] == "failed" and f"process {rank} has ended" in found["message"]


@pytest.mark.parametrize(
    ("kilobytes", "preflight"),
    # Before the first record, in the middle of them, in the look at the space, and in checkpoints.
    [(4, True), (12, True), (24, True), (24, False), (150, False), (400, False), (800, False)],
)
def test_a_run_on_a_full_disk_says_that_it_has_failed(
    small_data, small_disk, monkeypatch, capsys, kilobytes, preflight
):
    output_dir = small_disk(f"{kilobytes}k") / "run"
    arguments = flags(small_data, output_dir, eval_every=0, preflight=preflight)
    code, error = refusal(monkeypatch, capsys, *arguments)
    assert code == 1 and "train_accelerate.py: error: " in error
    assert status_of(output_dir)["status"] == "failed"
    # The next attempt finds it as full.
    code, error = refusal(monkeypatch, capsys, *arguments, "--resume", "auto")
    assert code == 1 and status_of(output_dir)["status"] == "failed", error


def test_a_status_that_cannot_be_written_is_one_line_of_one_process(
    small_data, tmp_path, monkeypatch
):
    output_dir = tmp_path / "run"
    arguments = flags(small_data, output_dir, max_steps=4, eval_every=0)
    assert run_here(monkeypatch, *arguments) == 0
    (output_dir / "status.json").unlink()
    (output_dir / "status.json").mkdir()
    more = flags(small_data, output_dir, max_steps=6, eval_every=0, resume="auto")
    process = launch(*more, config="cpu_2proc.yaml")
    assert process.returncode == 1
    lines = [line for line in process.stderr.splitlines() if "train_accelerate.py: error:" in line]
    assert len(lines) == 1 and "status.json" in lines[0]
    assert "RuntimeError" not in process.stderr
