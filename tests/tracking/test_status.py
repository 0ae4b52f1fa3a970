"""status.json tells the truth: after failures, signals, kills and on a full disk."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from support.processes import PATIENCE, started

from modeling_gpt2scratch.tracking import status as statuses
from modeling_gpt2scratch.tracking.status import KILLED, N_BYTES, RunStatus, read_status, recorded

# A run that holds its lock and works at its third step, in the way that is asked for.
PROGRAM = """
import ctypes, sys, time
from pathlib import Path
from filelock import FileLock
from modeling_gpt2scratch.tracking.status import recorded

run, way = Path(sys.argv[1]), sys.argv[2]
lock = FileLock(run / "run.lock")
lock.acquire()
with recorded(run, lambda: 3):
    if way == "in a library":  # where Python's own handlers never run
        ctypes.CDLL(None).system(b"echo ready; exec sleep 20 > /dev/null 2>&1")
    print("ready", flush=True)
    time.sleep(300)
"""


def content_of(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())


@pytest.fixture
def start(tmp_path):
    """Starts the program, and returns it when it is within its step."""
    processes = []

    def start(way: str = "") -> subprocess.Popen:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), way]
        manager = started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        processes.append(manager)
        process = manager.__enter__()
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for manager in processes:
        manager.__exit__(None, None, None)


def wait_for(run: Path, status: str) -> dict:
    deadline = time.monotonic() + PATIENCE
    while content_of(run)["status"] != status:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return content_of(run)


def test_a_block_says_how_it_ended(tmp_path):
    step = 0
    with recorded(tmp_path, lambda: step) as outcome:
        found = content_of(tmp_path)
        assert (found["status"], found["step"], found["pid"]) == ("running", 0, os.getpid())
        outcome["status"], step = "finished", 12
    assert content_of(tmp_path) == {"status": "finished", "step": 12}
    with pytest.raises(ValueError), recorded(tmp_path, lambda: 13):
        raise ValueError("expected this,\nfound that")
    message = "expected this, found that"
    assert content_of(tmp_path) == {"status": "failed", "step": 13, "message": message}
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_comes_after_a_settled_end_does_not_change_it(tmp_path):
    for error in (KeyboardInterrupt, SystemExit, ValueError):
        with pytest.raises(error), recorded(tmp_path, lambda: 12) as outcome:
            outcome.settle("finished")
            assert content_of(tmp_path) == {"status": "finished", "step": 12}
            raise error("too late")
        assert content_of(tmp_path) == {"status": "finished", "step": 12}


def test_the_file_is_whole_whatever_its_length_was(tmp_path):
    status = RunStatus(tmp_path / "status.json", step=0)
    for message in ("x" * 600, "short", "é" * 200):
        status.note(message, step=1)
        assert content_of(tmp_path) == {"status": "failed", "step": 1, "message": message}
    status.end("stopped", step=2)
    assert content_of(tmp_path) == {"status": "stopped", "step": 2}
    status.note("too late", step=3)
    assert content_of(tmp_path) == {"status": "stopped", "step": 2}


def test_a_reader_never_finds_the_ends_of_two_contents(tmp_path):
    path = tmp_path / "status.json"
    status = RunStatus(path, step=0)
    with path.open("rb", buffering=0) as file:  # as a reader whose second look comes later
        n_read = len(file.read(path.stat().st_size))
        status.note("stopping after SIGTERM, not finished yet", step=3)
        assert (n_read, file.read()) == (N_BYTES, b"")
    status.end("failed", step=3, message="x" * 2000)
    assert content_of(tmp_path)["message"] == "x" * 2000


def test_a_deleted_directory_does_not_come_back(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    status = RunStatus(run / "status.json", step=0)
    (run / "status.json").unlink()
    run.rmdir()
    status.end("failed", step=1)
    assert not run.exists()


def test_a_file_system_that_cannot_write_in_place_gets_a_new_file(tmp_path, monkeypatch):
    status = RunStatus(tmp_path / "status.json", step=0)

    def refuse(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    status.end("failed", step=1, message="full")
    assert content_of(tmp_path) == {"status": "failed", "step": 1, "message": "full"}


def test_a_full_disk_has_room_for_the_truth(small_disk):
    run = small_disk("256k")
    with (
        pytest.raises(OSError, match="No space left"),
        recorded(run, lambda: 7),
        open(run / "large", "wb", buffering=0) as file,
    ):
        while True:
            file.write(b"x" * 1000)
    found = content_of(run)
    assert (found["status"], found["step"]) == ("failed", 7)
    assert "No space left" in found["message"]
    # The next attempt finds the disk full at its start.
    (run / "status.json").write_text('{"status": "running", "step": 7}\n')
    with open(run / "larger", "wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(b"x")
    with pytest.raises(OSError, match="No space left"), recorded(run, lambda: 8):
        raise AssertionError
    assert content_of(run)["status"] == "failed"


@pytest.mark.parametrize("way", ["in Python", pytest.param("in a library", marks=pytest.mark.gate)])
def test_sigterm_is_noted_at_once(start, tmp_path, way):
    process = start(way)
    process.send_signal(signal.SIGTERM)
    found = wait_for(tmp_path, "failed")
    if way == "in a library":
        message = "stopping after SIGTERM, not finished yet"
        assert found == {"status": "failed", "step": 3, "message": message}
        process.kill()  # as launchers do when their patience is over
        process.wait()
        assert content_of(tmp_path) == found
    else:
        _, stderr = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert stderr == "ended by SIGTERM, before there was a step to save\n"
        assert "before there was a step to save" in content_of(tmp_path)["message"]


@pytest.mark.gate
def test_another_process_speaks_for_a_main_one_that_was_killed(start, tmp_path):
    process = start()
    process.kill()
    process.wait()
    with pytest.raises(ValueError), recorded(tmp_path, lambda: 6, is_main=False):
        raise ValueError("expected process 0 to go on")
    found = {"status": "failed", "step": 6, "message": "expected process 0 to go on"}
    assert content_of(tmp_path) == found
    # What the main process has said itself stays.
    with pytest.raises(ValueError), recorded(tmp_path, lambda: 7, is_main=False):
        raise ValueError("found the same")
    with recorded(tmp_path, lambda: 8, is_main=False) as outcome:
        outcome["status"] = "finished"
    assert content_of(tmp_path) == found


def test_sigterm_does_not_hide_what_ends_the_run_already(tmp_path):
    with pytest.raises(ValueError, match="process 1"), recorded(tmp_path, lambda: 3):
        try:
            raise RuntimeError("of a library")
        except RuntimeError:
            os.kill(os.getpid(), signal.SIGTERM)
            raise ValueError("expected process 1 to go on") from None
    assert content_of(tmp_path)["message"] == "expected process 1 to go on"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_before_the_first_step_is_named(tmp_path, hang_up_is_heard, name):
    message = f"ended by {name}, before there was a step to save"
    with pytest.raises(SystemExit, match=message), recorded(tmp_path, lambda: 3):
        os.kill(os.getpid(), signal.Signals[name])
    assert content_of(tmp_path)["message"] == message


@pytest.mark.gate
def test_a_killed_run_is_running_for_nobody_who_looks_closely(start, tmp_path):
    process = start()
    assert read_status(tmp_path)["status"] == "running"
    assert not statuses.was_killed(tmp_path.parent)
    process.kill()
    process.wait()
    assert content_of(tmp_path)["status"] == "running"
    assert read_status(tmp_path) == {"status": "failed", "step": 3, "message": KILLED}
    assert statuses.was_killed(tmp_path)


def test_a_run_on_another_machine_is_believed(tmp_path):
    status = {"status": "running", "step": 3, "pid": 1, "host": "another"}
    (tmp_path / "status.json").write_text(json.dumps(status))
    assert read_status(tmp_path) == status
    (tmp_path / "status.json").write_text('{"status": "running", "step": 3}')
    assert read_status(tmp_path)["message"] == KILLED
    with FileLock(tmp_path / "run.lock"):
        assert read_status(tmp_path)["status"] == "running"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"status": "running"}', "[" * 9999, "\0\0"])
def test_what_makes_no_sense_says_nothing(tmp_path, content):
    assert read_status(tmp_path) is None
    (tmp_path / "status.json").write_text(content)
    assert read_status(tmp_path) is None and not statuses.was_killed(tmp_path)
