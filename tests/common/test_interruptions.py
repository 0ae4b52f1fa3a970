"""Ctrl-C and SIGTERM, wherever they meet a program."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.paths import REPOSITORY
from support.processes import started

from modeling_gpt2scratch.common.interruptions import Interruptible, Stopped, StopRequest

# Each says "ready" and is interrupted; {0} is what it does then.
PROGRAM = """
import hashlib, os, signal, sys, time
from modeling_gpt2scratch.common import interruptions
from modeling_gpt2scratch.common.interruptions import Interruptible, StopRequest
interruptions.ORDERLY_SECONDS = 0.5

class Swallowing:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(60)

def compute():  # in C, where Python's handlers do not run
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

def destroy():
    Swallowing()
    time.sleep(60)

def fail():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        raise ValueError("a consequence") from None

def load():
    with ctrl_c.ending_at_once():
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("this takes place, too", flush=True)

def stop():
    with StopRequest() as request:
        print("ready", flush=True)
        while not request.is_made:
            time.sleep(0.01)
    raise KeyboardInterrupt("stopped after step 7")

with Interruptible("program.py") as ctrl_c:
    ctrl_c.advice = lambda: "go on with: program.py --again"
    {0}()
"""


@pytest.mark.parametrize("work", ["compute", "destroy", "fail", "load", "stop"])
def test_a_program_ends_in_one_line_whatever_it_is_at(work):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", PROGRAM.replace("{0}", work)]
    with started(command, cwd=REPOSITORY, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate()
    what = "stopped after step 7" if work == "stop" else "interrupted"
    assert errors == f"program.py: {what}; go on with: program.py --again\n"
    assert (output, process.returncode) == ("", 130)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_line_that_cannot_be_written_does_not_change_how_a_program_ends():
    command = [sys.executable, "-c", PROGRAM.replace("{0}", "compute")]
    with (
        open("/dev/full", "w") as full,
        started(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=full) as process,
    ):
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130


def test_a_loop_that_takes_its_time_to_stop_says_so():
    program = """
import time
from modeling_gpt2scratch.common import interruptions
from modeling_gpt2scratch.common.interruptions import Interruptible, StopRequest
interruptions.SILENT_SECONDS = 0.2
with Interruptible("program.py"):
    with StopRequest() as request:
        print("ready", flush=True)
        while not request.is_made:
            time.sleep(0.01)
        input()  # the step goes on
    raise KeyboardInterrupt("stopped after step 7")
"""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with started([sys.executable, "-c", program], cwd=REPOSITORY, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        line = process.stderr.readline()
        assert line == "stopping (Ctrl-C again does not wait for a checkpoint)\n"
        _, errors = process.communicate("\n")
    assert (errors, process.returncode) == ("program.py: stopped after step 7\n", 130)


ANSWERED = """
import gc, sys, time
from modeling_gpt2scratch.common import interruptions
from modeling_gpt2scratch.common.interruptions import Interruptible, Stopped, StopRequest
interruptions.ORDERLY_SECONDS = 0.2

class Slow:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(60)

with Interruptible("program.py") as ctrl_c:
    with StopRequest() as request:
        try:
            {0}
        except Stopped:
            print("left", flush=True)
    {1}
"""
LOOP = """print("ready", flush=True)
            while not request.is_made:
                time.sleep(0.01)"""
DESTRUCTOR = """with request.raising():
                slow = Slow()
                del slow
                while True:
                    time.sleep(0.01)"""


@pytest.mark.parametrize(
    ("work", "rest", "output", "errors", "code"),
    [
        # A save that fails after the loop was asked is an error like any other.
        (
            LOOP,
            "time.sleep(0.5); print(ctrl_c.was_pressed); sys.exit('program.py: error: disk full')",
            *("False\n", "program.py: error: disk full\n", 1),
        ),
        # Whoever ends in order, such as a tracker that sends the rest, has time.
        (
            LOOP,
            "time.sleep(0.5); raise KeyboardInterrupt('stopped')",
            *("", "program.py: stopped\n", 130),
        ),
        (DESTRUCTOR, "raise KeyboardInterrupt('saved')", "left\n", "program.py: saved\n", 130),
    ],
    ids=["failure", "slow end", "in a destructor"],
)
def test_ctrl_c_that_a_loop_has_answered_interrupts_nothing_else(work, rest, output, errors, code):
    program = ANSWERED.replace("{0}", work).replace("{1}", rest)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started([sys.executable, "-c", program], cwd=REPOSITORY, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        found = process.communicate()
    assert (*found, process.returncode) == (output, errors, code)


def test_a_second_ctrl_c_after_an_answered_one_ends_the_program():
    program = ANSWERED.replace("{0}", LOOP).replace(
        "{1}", "print('end', flush=True); gc.collect(); time.sleep(60)"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started([sys.executable, "-c", program], cwd=REPOSITORY, **pipes) as process:
        for line in ("ready\n", "end\n"):
            assert process.stdout.readline() == line
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert (errors, process.returncode) == ("program.py: interrupted\n", 130)


def test_ctrl_c_while_python_ends_changes_nothing():
    program = """
import atexit, os, signal
from modeling_gpt2scratch.common.interruptions import Interruptible
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
with Interruptible("program.py"):
    print("done")
"""
    command = [sys.executable, "-c", program]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (process.stdout, process.stderr, process.returncode) == ("done\n", "", 0)


def test_what_is_not_interrupted_ends_as_ever():
    before = signal.getsignal(signal.SIGINT), sys.unraisablehook
    with pytest.raises(ValueError, match="^mine$"), Interruptible("program.py"):
        raise ValueError("mine")
    with pytest.raises(SystemExit) as ended, Interruptible("program.py"):
        sys.exit(3)
    assert ended.value.code == 3
    assert (signal.getsignal(signal.SIGINT), sys.unraisablehook) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_processes_beside_the_first_of_a_machine_say_nothing(monkeypatch, capfd):
    for rank, n_lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(SystemExit) as ended, Interruptible("program.py"):
            raise KeyboardInterrupt
        assert ended.value.code == 130
        assert capfd.readouterr().err == "program.py: interrupted\n" * n_lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_loop_is_asked_to_stop_and_a_second_ctrl_c_interrupts_it(number, hang_up_is_heard):
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopRequest() as request:
        assert not request.is_made
        os.kill(os.getpid(), number)
        assert request.is_made and request.is_from_keyboard == (number == signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers


def test_a_program_may_run_in_another_thread_which_hears_no_signal():
    def program():
        with Interruptible("program.py") as ctrl_c, ctrl_c.ending_at_once():
            return signal.getsignal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(program).result() is handler
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_hang_up_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopRequest() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not request.is_made
    finally:
        signal.signal(signal.SIGHUP, before)


def test_work_that_can_be_left_is_left_when_or_once_somebody_asks():
    with StopRequest() as request:
        with pytest.raises(Stopped), request.raising():
            os.kill(os.getpid(), signal.SIGTERM)
        assert request.is_made
        with pytest.raises(Stopped), request.raising():
            pytest.fail("asked already")


def test_a_loop_in_another_thread_is_never_asked():
    found = []

    def loop():
        with StopRequest() as request:
            found.append(request.is_made)

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join()
    assert found == [False]
