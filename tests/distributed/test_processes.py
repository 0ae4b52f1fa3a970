"""Processes that act together on what one of them has noticed."""

import errno
import json
import sys
from types import SimpleNamespace

import pytest
from accelerate.state import AcceleratorState
from support.paths import REPOSITORY
from support.processes import run_process
from support.training_runs import flags, run_here

from modeling_gpt2scratch.distributed.agreement import Agreement
from modeling_gpt2scratch.distributed.processes import (
    LAUNCH_VARIABLES,
    LaunchError,
    require_expected,
    say,
)
from modeling_gpt2scratch.tracking.status import recorded

# Scripts that are started without a launcher, where one has left its variables.
LEFT = ["WORLD_SIZE=2", "LOCAL_RANK=0", "WORLD_SIZE=x", "LOCAL_RANK=b", "WORLD_SIZE="]
ALONE = """
import os, sys
from modeling_gpt2scratch.common.errors import ending_in_one_line
from modeling_gpt2scratch.distributed.accelerator import make_accelerator
for variable in sys.argv[1:]:
    if os.fork():
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 1
        continue
    os.environ.update([variable.split("=")])
    try:
        with ending_in_one_line("alone"):
            make_accelerator(mixed_precision="no", timeout_minutes=1)
    except SystemExit as end:
        print(end.code, file=sys.stderr, flush=True)  # as Python would
        os._exit(1)  # at once, without freeing all that was imported
    os._exit(0)
"""
# One process raises a flag at its second step; all know it one step later, and none before.
TOGETHER = """
from accelerate import PartialState
from modeling_gpt2scratch.distributed.agreement import Agreement
state = PartialState(cpu=True)
agreement = Agreement(timeout_minutes=1)
with agreement.naming_the_stalled():
    for step in range(4):
        known = agreement.exchange([step == 1 and state.process_index == 1, False])
        assert known == [step == 2, False], (state.process_index, step, known)
print("agreed")
state.destroy_process_group()
"""


# The first of three processes does not come to the second step.
STALLED = """
import os, signal, time
from accelerate import PartialState
from modeling_gpt2scratch.distributed.agreement import Agreement, StalledError
state = PartialState(cpu=True)
agreement = Agreement(timeout_minutes=0.2)
agreement.exchange([False])
if state.process_index == 0:
    time.sleep(300)
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, when the first of the two has ended
try:
    with agreement.naming_the_stalled():
        agreement.exchange([False])
        agreement.exchange([False])
except StalledError as error:
    os.write(1, f"{state.process_index} {error}\\n".encode())
os._exit(1)
"""


def test_variables_of_a_launcher_that_do_not_go_together_are_named(monkeypatch):
    for name in LAUNCH_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    finished = run_process([sys.executable, "-c", ALONE, *LEFT], cwd=REPOSITORY)
    assert finished.returncode == 0, finished.stderr
    errors = [line for line in finished.stderr.splitlines() if line.startswith("alone: error:")]
    assert errors == [
        f"alone: error: expected RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT all set, "
        f"and numbers but for the address, found {variable}; start with accelerate launch, or "
        f"unset them"
        for variable in LEFT
    ]


def launched(script, num_processes):
    """A script that ran on several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    return run_process(
        [
            sys.executable,
            *launcher,
            str(num_processes),
            "--no-python",
            sys.executable,
            "-c",
            script,
        ],
        cwd=REPOSITORY,
    )


def test_a_process_alone_agrees_with_itself_at_once():
    try:
        agreement = Agreement(timeout_minutes=1)
        assert agreement.exchange([True, False]) == [True, False]
        assert agreement.exchange([False, False]) == [False, False]
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.gate
def test_what_one_process_notices_all_know_at_the_next_step():
    process = launched(TOGETHER, 2)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("agreed") == 2


@pytest.mark.gate
def test_all_that_are_left_know_who_is_missing_whatever_connections_are_closed():
    lines = sorted(launched(STALLED, 3).stdout.splitlines())
    assert [line.split()[0] for line in lines] == ["1", "2"]
    for line in lines:
        assert "within 0.2 minutes, found none from process 0; go on with --resume auto" in line


def test_an_error_that_is_no_failed_operation_stays_what_it_is():
    try:
        agreement = Agreement(timeout_minutes=1)
        with pytest.raises(RuntimeError, match="shapes"), agreement.naming_the_stalled():
            raise RuntimeError("shapes do not fit")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_a_log_that_cannot_be_written_ends_no_run(monkeypatch):
    def fail(*text):
        raise OSError(errno.EPIPE, "Broken pipe")

    try:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", SimpleNamespace(write=fail, flush=fail))
            say("step 1: loss 4")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_a_launch_that_is_not_the_expected_one_is_refused_by_name():
    require_expected("parameters", 124_439_808, 124_439_808)
    require_expected("processes", 8, None)
    with pytest.raises(LaunchError, match="expected 16 processes as --expect_processes says"):
        require_expected("processes", 8, 16)


@pytest.mark.parametrize("local_rank", [0, 1])
def test_before_they_have_met_one_process_of_each_machine_speaks(
    local_rank, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("RANK", str(8 + local_rank))  # of a second machine
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    arguments = flags(tmp_path / "nowhere", tmp_path / "run")
    assert run_here(monkeypatch, *arguments) == 1
    assert capsys.readouterr().err.count("error: ") == 1 - local_rank


def test_an_interrupted_run_is_no_longer_said_to_be_running(tmp_path):
    try:
        with pytest.raises(KeyboardInterrupt), recorded(tmp_path, lambda: 3):
            assert json.loads((tmp_path / "status.json").read_text())["status"] == "running"
            raise KeyboardInterrupt
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    expected = {"status": "failed", "message": "interrupted", "step": 3}
    assert json.loads((tmp_path / "status.json").read_text()) == expected
