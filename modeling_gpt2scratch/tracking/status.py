"""status.json: how a run stands, for schedulers and for whoever comes after a crash.

It is written once as a new file, and from then on in place: a full disk has room for what is there
already. Its size stays the same, or a reader might have the beginning of one content and the end of
another. A process that is killed cannot write anything, so a file that says "running" is believed
only while the run's lock is held.
"""

import contextlib
import json
import os
import platform
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from modeling_gpt2scratch.common.atomic_files import write_file
from modeling_gpt2scratch.common.errors import one_line
from modeling_gpt2scratch.common.output_directory import STATUS_NAME, is_in_use

RUNNING, FINISHED, FAILED = "running", "finished", "failed"
N_BYTES = 1024  # of the file; longer messages make a larger one
KILLED = "its process ended without an error message: it was killed, or its machine stopped"


class RunStatus:
    """The file of a run, from its start to its end.

    Args:
        path: of the file, which becomes a new one that says "running".
        step: optimizer updates made.

    Raises:
        OSError: if it cannot be written.
    """

    def __init__(self, path: Path, *, step: int):
        self._path = path
        self._lock = threading.Lock()
        # For people, and for readers on other machines, who cannot see the lock.
        start = {"status": RUNNING, "step": step, "pid": os.getpid(), "host": platform.node()}
        self._content = _as_bytes(start)
        self._is_over = False
        try:
            write_file(path, self._content)
            self._descriptor = os.open(path, os.O_RDWR)
        except OSError as error:
            with contextlib.suppress(OSError):  # an earlier file has room for it
                self._descriptor = os.open(path, os.O_RDWR)
                self.end(FAILED, step=step, message=one_line(error))
            raise

    def note(self, message: str, *, step: int) -> None:
        """Says "failed" for the case that this process does not live to say what became of it."""
        with self._lock:
            if not self._is_over:
                self._write({"status": FAILED, "step": step, "message": message})

    def end(self, status: str, *, step: int, message: str | None = None) -> None:
        """Says how the run ended, once. What cannot be written stays as it was."""
        content = {"status": status, "step": step}
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
            self._write(content | ({} if message is None else {"message": message}))
            os.close(self._descriptor)

    def _write(self, status: dict) -> None:
        """Replaces the content in one write, whose length covers that of the old one."""
        content = _as_bytes(status)
        try:
            os.pwrite(self._descriptor, content.ljust(len(self._content)), 0)
            os.ftruncate(self._descriptor, len(content))
            os.fsync(self._descriptor)
        except OSError:  # a file system that does not write in place, and is full
            with contextlib.suppress(OSError):
                write_file(self._path, content)
        self._content = content


class Outcome(dict[str, str]):
    """How a block of `recorded` ends, under "status".

    Args:
        write: puts it into the file, at the first call.
    """

    def __init__(self, write: Callable[["Outcome"], None]):
        super().__init__(status=RUNNING)
        self._write = write

    def settle(self, status: str) -> None:
        """Writes the status at once; whatever raises later in the block does not change it."""
        self["status"] = status
        self._write(self)


def read_status(run: Path) -> dict | None:
    """What `status.json` says, None if it says nothing.

    A run whose process is gone has failed, whatever it said last.
    """
    status = _read(run)
    if status is None or status["status"] != RUNNING or is_in_use(run):
        return status
    if status.get("host") not in (None, platform.node()):
        return status  # locks of another machine may not be seen here
    return {"status": FAILED, "step": status["step"], "message": KILLED}


def was_killed(run: Path) -> bool:
    """Whether the last process of a run did not live to say how it ended; for who has the lock."""
    status = _read(run)
    return status is not None and status["status"] == RUNNING


@contextlib.contextmanager
def recorded(run: Path, step: Callable[[], int], *, is_main: bool = True) -> Iterator[Outcome]:
    """Keeps `status.json` during the block, which puts how it ended under "status" of what it gets.

    If the block raises, the file says "failed" with a message. It does so as soon as a signal asks
    the process to end, and until the block says otherwise: it may be killed before. Where nobody
    else answers to SIGTERM or SIGHUP, the block ends with SystemExit.

    Args:
        run: its directory.
        step: returns the optimizer updates made so far.
        is_main: whether this is the process that writes. Another one only says that the run has
            failed, where the main one has died without a word.

    Raises:
        OSError: on every process alike, if the file cannot be written.
    """
    from modeling_gpt2scratch.distributed.processes import on_all_processes  # loads torch

    path = run / STATUS_NAME
    # Without room for it all processes end, or the others would wait for this one.
    status = on_all_processes(lambda: RunStatus(path, step=step()) if is_main else None)
    if status is None:
        try:
            with _ended_by_signals():
                yield Outcome(lambda outcome: None)
        except BaseException as error:
            _note_for_main(path, step=step(), message=one_line(error))
            raise
        return

    def note(number: int) -> None:
        name = signal.Signals(number).name
        status.note(f"stopping after {name}, not finished yet", step=step())

    def write(outcome: Outcome) -> None:
        status.end(outcome["status"], step=step(), message=outcome.get("message"))

    outcome = Outcome(write)
    try:
        with _heard_at_once(note), _ended_by_signals():
            yield outcome
    except BaseException as error:
        is_silent = isinstance(error, KeyboardInterrupt) and not str(error)
        message = "interrupted" if is_silent else one_line(error)
        outcome |= {"status": FAILED, "message": message}
        raise
    finally:
        write(outcome)


@contextlib.contextmanager
def _heard_at_once(note: Callable[[int], None]) -> Iterator[None]:
    """Within the block, a thread notes SIGTERM, SIGINT and SIGHUP, if there are handlers for them.

    It does so even if the main thread is in a library, where Python's handlers cannot run.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    previous = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)

    def listen() -> None:
        while numbers := receiver.recv(64):
            if previous != -1:  # somebody else listens, too
                with contextlib.suppress(OSError):
                    os.write(previous, numbers)
            for number in {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}.intersection(numbers):
                note(number)

    thread = threading.Thread(target=listen, name="status", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        sender.close()
        thread.join()
        receiver.close()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP raise SystemExit, if they would have ended the process.

    While another exception is on its way, they change nothing.
    """
    is_main = threading.current_thread() is threading.main_thread()
    numbers = [signal.SIGTERM, signal.SIGHUP] if is_main else []
    numbers = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]

    def handle(number: int, frame: object) -> None:
        if sys.exc_info()[0] is None:
            name = signal.Signals(number).name
            raise SystemExit(f"ended by {name}, before there was a step to save")

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _note_for_main(path: Path, *, step: int, message: str) -> None:
    """Says "failed" in a file that says "running"; the main process may still overwrite it."""
    if was_killed(path.parent):
        content = _as_bytes({"status": FAILED, "step": step, "message": message})
        with contextlib.suppress(OSError), open(path, "r+b", buffering=0) as file:
            file.write(content)
            file.truncate()


def _read(run: Path) -> dict | None:
    """What the file says, None if that makes no sense."""
    try:
        status = json.loads((run / STATUS_NAME).read_bytes())
        makes_sense = isinstance(status["status"], str) and type(status["step"]) is int
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return status if makes_sense else None


def _as_bytes(status: dict) -> bytes:
    """The content of the file, filled up with spaces."""
    return json.dumps(status, indent=2).encode().ljust(N_BYTES - 1) + b"\n"
