"""What people see of a program: its output, what goes on, and for how long, each second anew."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

from tqdm import tqdm

REFRESH_SECONDS = 1.0
CLOCK = "{desc} ... {elapsed}"


@contextlib.contextmanager
def readable_output() -> Iterator[None]:
    """Within the block, output may go nowhere, to a terminal of few letters, or a closing pipe.

    What was printed and cannot be written ends in exit code 1; what was told does not.
    """
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        # A notebook's shows everything, and one may have changed its kind.
        with contextlib.suppress(AttributeError, OSError):
            stream.reconfigure(errors="replace")
    try:
        try:
            yield
        finally:
            _flush_output()
    except BrokenPipeError:  # the reader, such as `head`, has enough
        _discard(sys.stdout)
        sys.exit(1)


def tell(text: str, *, file: TextIO | None = None) -> None:
    """Writes a line, above the bar if there is one, on the standard output unless told otherwise.

    A terminal that is gone, a pipe that is closed or a full disk loses the line and nothing else.
    """
    file = sys.stdout if file is None else file
    if file is None:
        return
    try:
        # In one piece, or the lines of several processes may lie within one another.
        tqdm.write(f"{text}\n", file=file, end="")
        file.flush()
    except OSError:
        _discard(file)


def warn(text: str) -> None:
    """Tells it on the standard error, as a warning."""
    tell(f"warning: {text}", file=sys.stderr)


def gigabytes(n_bytes: int) -> str:
    """A number of bytes in units of 10^9, to two digits where it is less than one."""
    return f"{n_bytes / 1e9:,.1f}" if n_bytes >= 10**9 else f"{n_bytes / 1e9:.2g}"


def has_terminal() -> bool:
    """Whether bars are seen."""
    # There may be none, or an object of some other program that knows nothing of terminals.
    return getattr(sys.stderr, "isatty", bool)()


@contextlib.contextmanager
def activity(text: str) -> Iterator[None]:
    """Shows the text and the time since its start until the block ends.

    Nothing is shown without a terminal, and by one process only.
    """
    is_first = os.environ.get("RANK", "0") == "0"
    with progress_bar(desc=text, bar_format=CLOCK, leave=False, is_shown=is_first):
        yield


@contextlib.contextmanager
def progress_bar(*, is_shown: bool = True, **options: Any) -> Iterator[tqdm]:
    """A bar of tqdm with these options, on a terminal only, whose clock goes on between updates."""
    with tqdm(**options, disable=not (is_shown and has_terminal())) as bar, _kept_moving(bar):
        yield bar


@contextlib.contextmanager
def _kept_moving(bar: tqdm) -> Iterator[None]:
    """Refreshes a bar each second until the block ends, so that its clock goes on."""
    if bar.disable:
        yield
        return
    is_over = threading.Event()

    def refresh() -> None:
        while not is_over.wait(REFRESH_SECONDS):
            bar.refresh()

    thread = threading.Thread(target=refresh, name="bar", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        # An interruption may have left the bar's lock taken.
        thread.join(REFRESH_SECONDS)


def _flush_output() -> None:
    """Writes what was printed; where that fails, one line says so and the program ends."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard(sys.stdout)
        tell(f"error: expected to write the output, found {error.strerror}", file=sys.stderr)
        sys.exit(1)


def _discard(stream: TextIO) -> None:
    """Lets go of what could not be written, which Python would try again at the end."""
    with contextlib.suppress(AttributeError, OSError), open(os.devnull, "w") as nowhere:
        kept = os.dup(stream.fileno())
        os.dup2(nowhere.fileno(), stream.fileno())
        stream.flush()
        os.dup2(kept, stream.fileno())
        os.close(kept)


def _open_what_is_closed() -> None:
    """Opens each standard stream that is closed, so that no file gets its number and its lines."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: SIM115 the lowest number free, which is its own
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
