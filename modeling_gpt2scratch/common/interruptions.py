"""Ctrl-C and SIGTERM: a script that ends in one line at any moment, and a loop asked to stop.

Left to itself, Python keeps no such promise. Imports turn KeyboardInterrupt into other errors, a
destructor swallows it, and a thread that computes or waits in C++ does not see it at all.
"""

import _thread
import atexit
import contextlib
import math
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from .addresses import redacted

EXIT_CODE = 130  # what shells expect of a program that Ctrl-C has ended
ORDERLY_SECONDS = 4.0  # in which an interrupted program may tidy up
SILENT_SECONDS = 3.0  # after which a loop that was asked to stop, and has not, says so
PRESS_AGAIN = "Ctrl-C again does not wait for a checkpoint"
RAISE_AGAIN_SECONDS = 0.01  # to be out of what swallowed an interruption


class Interruptible:
    """Within the block, Ctrl-C ends the script in one line and with code 130, within seconds.

    It raises KeyboardInterrupt, whose text goes into the line, and whatever the block raises after
    it counts as its consequence. A second thread ends the process if that takes too long. After a
    press that a `StopRequest` has answered there is no hurry.

    Args:
        program: stands before the line.
    """

    def __init__(self, program: str):
        self.advice: Callable[[], str] = str  # the end of the line, asked for when it is needed
        self.was_pressed = False
        self._program = program
        self._ends_at_once = self._has_spoken = False
        self._is_over = threading.Event()
        self._hears = threading.current_thread() is threading.main_thread()  # as no other does

    def __enter__(self) -> "Interruptible":
        if not self._hears:
            return self
        StopRequest.n_polite = 0
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._old_handler = signal.signal(signal.SIGINT, self._handle)
        self._old_wakeup = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        self._old_hook, sys.unraisablehook = sys.unraisablehook, self._raise_again
        threading.Thread(target=self._watch, name="Ctrl-C", daemon=True).start()
        # While Python ends there is nothing left to interrupt.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
        return self

    def __exit__(self, kind, error, trace) -> None:
        is_interrupted = isinstance(error, KeyboardInterrupt)
        if error is not None and (self.was_pressed or is_interrupted):
            self._speak(str(error) if is_interrupted else "")
        # Else the thread stays, as something may keep Python from ending.
        if self._hears and not (self.was_pressed or StopRequest.n_polite):
            self._is_over.set()
            sys.unraisablehook = self._old_hook
            signal.set_wakeup_fd(self._old_wakeup)
            signal.signal(signal.SIGINT, self._old_handler)
            self._sender.close()  # which ends the thread
        if self._has_spoken:
            sys.exit(EXIT_CODE)

    @contextlib.contextmanager
    def ending_at_once(self) -> Iterator[None]:
        """Within the block, Ctrl-C raises nothing and ends the process: for imports."""
        self._ends_at_once = True
        try:
            yield
        finally:
            self._ends_at_once = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Answers Ctrl-C in the main thread."""
        self.was_pressed = True
        if self._ends_at_once or self._has_spoken:
            self._end()
        raise KeyboardInterrupt

    def _raise_again(self, unraisable) -> None:
        """Keeps a KeyboardInterrupt that a destructor or a callback would have swallowed."""
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            if issubclass(unraisable.exc_type, Stopped):
                StopRequest.n_swallowed += 1
                StopRequest.n_polite += 1  # what comes is no press
            threading.Timer(RAISE_AGAIN_SECONDS, _thread.interrupt_main).start()
        else:
            self._old_hook(unraisable)

    def _watch(self) -> None:
        """Ends the process if the main thread has not done so in time, or never hears of it."""
        n_presses = self._receiver.recv(64).count(signal.SIGINT)  # waits for the first signal
        self._receiver.setblocking(False)
        deadline = silent_until = None
        while not self._is_over.wait(0.1):
            with contextlib.suppress(BlockingIOError):
                n_presses += self._receiver.recv(64).count(signal.SIGINT)
            now = time.monotonic()
            if n_presses > StopRequest.n_polite:
                self.was_pressed = True
                deadline = deadline or now + ORDERLY_SECONDS
                if now > deadline:
                    self._end()
            elif n_presses and StopRequest.is_open:
                silent_until = silent_until or now + SILENT_SECONDS
                if now > silent_until:
                    self._write(f"stopping ({PRESS_AGAIN})")
                    silent_until = math.inf
        self._receiver.close()

    def _end(self) -> NoReturn:
        """Ends the process, whatever the main thread does."""
        try:
            self._speak("")
            sys.stdout.flush()
        finally:  # another thread may be writing
            os._exit(EXIT_CODE)

    def _speak(self, what: str) -> None:
        """Writes the line, once, by the first process of each machine."""
        if self._has_spoken:
            return
        self._has_spoken = True
        line = "; ".join(filter(None, [what or "interrupted", self.advice()]))
        self._write(f"{self._program}: {line}")

    def _write(self, line: str) -> None:
        """Writes a line in one piece, in place of a bar that may stand there."""
        if os.environ.get("LOCAL_RANK", "0") == "0":
            erase = "\r\x1b[K" if os.isatty(2) else ""
            with contextlib.suppress(OSError):  # of a terminal that is gone, or a full disk
                os.write(2, f"{erase}{line}\n".encode())


class Stopped(KeyboardInterrupt):
    """A request to stop that reached work which can be left."""


class StopRequest:
    """Within the block, SIGTERM and the first Ctrl-C only ask; the loop looks and stops.

    So does SIGHUP, which a closed terminal sends, unless it is ignored as under nohup. A second
    Ctrl-C interrupts the loop. Only the main thread can be asked.
    """

    n_polite = 0  # presses of Ctrl-C that a loop has answered, or would answer
    n_swallowed = 0  # Stopped that are raised once more
    is_open = False  # whether there is such a loop now

    def __init__(self):
        self.signal: int | None = None  # that asked
        self._raises = False
        self._old_handlers: dict[int, Callable | int | None] = {}

    @property
    def is_made(self) -> bool:
        """Whether somebody has asked."""
        return self.signal is not None

    @property
    def is_from_keyboard(self) -> bool:
        """Whether it was Ctrl-C."""
        return self.signal == signal.SIGINT

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            StopRequest.n_polite += 1
            StopRequest.is_open = True
            is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            hang_up = set() if is_ignored else {signal.SIGHUP}
            for number in {signal.SIGTERM, signal.SIGINT} | hang_up:
                self._old_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._old_handlers and not self.is_from_keyboard:
            StopRequest.n_polite -= 1
        StopRequest.is_open &= not self._old_handlers
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Within the block, a request raises Stopped: for work that can be left."""
        self._raises = True
        try:
            if self.is_made:
                raise Stopped
            yield
        finally:
            self._raises = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if StopRequest.n_swallowed and number == signal.SIGINT:
            StopRequest.n_swallowed -= 1
        elif self.is_made and number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            self.signal = number
        if self._raises:
            raise Stopped


def started_as() -> str:
    """The command that started this program, as typed, with that of a launcher around it.

    The launcher must still be there: Accelerate's is gone as soon as it sees Ctrl-C. Secrets of
    addresses are left out.
    """
    import psutil

    command = [redacted(word) for word in sys.orig_argv]
    with contextlib.suppress(psutil.Error):
        parents = [redacted(word) for word in psutil.Process(os.getppid()).cmdline()]
        if parents[-len(sys.argv) :] == [redacted(word) for word in sys.argv]:
            command = parents
    first, *rest = [Path(command[0]).name, *command[1:]]
    if first.startswith("python"):
        is_command = rest and Path(rest[0]).parent == Path(sys.executable).parent
        first, rest = (Path(rest[0]).name, rest[1:]) if is_command else ("python", rest)
    return shlex.join([first, *rest])
