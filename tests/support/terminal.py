"""Commands in a terminal of their own, at which somebody may type and press Ctrl-C."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator

from support.paths import REPOSITORY
from support.processes import PATIENCE

CTRL_C = "\x03"
ROWS, COLUMNS = 40, 250


class Terminal:
    """A command that has a terminal for its input and output.

    Args:
        descriptor: of the terminal's other end.
        process: the command.
    """

    def __init__(self, descriptor: int, process: subprocess.Popen):
        self._descriptor, self._process = descriptor, process
        self.output = ""

    @property
    def pid(self) -> int:
        """Of the command."""
        return self._process.pid

    def wait_for(self, pattern: str) -> bool:
        """Whether the pattern appears before the command ends."""
        deadline = time.monotonic() + PATIENCE
        while not re.search(pattern, self.output):
            assert time.monotonic() < deadline, f"no {pattern} in: {self.output[-2000:]}"
            if not self._read():
                return False
        return True

    def go_on_for(self, seconds: float) -> None:
        """Lets time pass."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._read(until=deadline):
            pass

    def type(self, keys: str) -> None:
        """Types; what the terminal shows from now on is its whole `output`."""
        self.output = ""
        os.write(self._descriptor, keys.encode())

    def press_ctrl_c(self) -> None:
        """As `type`."""
        self.type(CTRL_C)

    def wait(self) -> int:
        """The command's exit code when it has ended, with all that had the terminal open."""
        deadline = time.monotonic() + PATIENCE
        while self._read():
            assert time.monotonic() < deadline, f"no end after: {self.output[-2000:]}"
        return self._process.wait(PATIENCE)

    def _read(self, until: float | None = None) -> bool:
        """Adds what is new to `output`; False at its end."""
        seconds = PATIENCE if until is None else max(0.0, until - time.monotonic())
        ready, _, _ = select.select([self._descriptor], [], [], seconds)
        if not ready:
            assert until is not None, f"nothing happens after: {self.output[-2000:]}"
            return True
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:  # as Linux says that nobody has it open any more
            return False
        self.output += data.decode(errors="replace")
        return bool(data)


def _take_terminal() -> None:
    """In the new process: its input is its terminal, and Ctrl-C counts, as it does for people.

    What a shell starts in the background ignores it.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextlib.contextmanager
def terminal(command: list[str], **options) -> Iterator[Terminal]:
    """Starts the command in a terminal; it does not outlive the block."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        command,
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        start_new_session=True,
        preexec_fn=_take_terminal,
        **{"cwd": REPOSITORY} | options,
    )
    os.close(theirs)
    try:
        yield Terminal(ours, process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(ours)
