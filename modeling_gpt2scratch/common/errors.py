"""What the user can mend, and any error in one line."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from .addresses import redacted

MAX_READ_CHARACTERS, MAX_MESSAGE_CHARACTERS = 10_000, 1_000  # some libraries write pages
# What moves the cursor of a terminal or worse, without tab and line feed.
CONTROLS = {*range(32), *range(127, 160)} - {ord("\t"), ord("\n")}
REPLACEMENTS = dict.fromkeys(CONTROLS, "\N{REPLACEMENT CHARACTER}")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class MendableError(Exception):
    """What the user can mend; beside OSError, what ends a command in one line."""


class SourceError(MendableError, ValueError):
    """Input that cannot be read; the message names the file, and the line where there is one."""


def printable(text: str) -> str:
    """A text as a terminal may show it, whoever wrote it."""
    return text.translate(REPLACEMENTS)


def one_line(error: BaseException) -> str:
    """The message of an error, without line breaks and cut if long; without one, its class."""
    words = redacted(str(error)[:MAX_READ_CHARACTERS]).split()
    message = printable(" ".join(words)) or type(error).__name__
    if len(message) <= MAX_MESSAGE_CHARACTERS:
        return message
    return f"{message[:MAX_MESSAGE_CHARACTERS]} ..."


def named(error: BaseException) -> str:
    """The class of an error and its message, in one line."""
    name = type(error).__name__
    return f"{name}: {one_line(error)}" if str(error) else name


def in_words(error: BaseException) -> str:
    """The message of an error that speaks for itself, and any other with its class, in one line."""
    if isinstance(error, OSError):
        return file_problem(error)
    return one_line(error) if isinstance(error, MendableError | ValueError) else named(error)


def file_problem(error: OSError) -> str:
    """What the system said of a file, in one line that names the file."""
    if error.strerror is None or error.filename is None:  # raised with a whole sentence
        return one_line(error)
    name = printable(str(error.filename))
    return f"{name}: expected to read or write it, found {error.strerror}"


def located(error: OSError, place: str | Path) -> OSError:
    """What the system said, with the name of a file; `place` is it if the error has none."""
    if error.errno is None or error.filename is not None:
        return error
    return OSError(error.errno, error.strerror, str(place))


def reason(error: OSError | UnicodeError) -> str:
    """What the system said, in one line, where the message names the file itself."""
    return getattr(error, "strerror", None) or one_line(error)


@contextlib.contextmanager
def ending_in_one_line(
    program: str, *kinds: type[Exception], placed: Callable[[str], str] = str
) -> Iterator[None]:
    """Within the block, what the user can mend ends the program in one line and with code 1.

    Args:
        program: its name, at the head of the line.
        kinds: errors that count as mendable besides `MendableError` and `OSError`.
        placed: adds to a message where its cause stands.
    """
    try:
        yield
    except BrokenPipeError:  # who reads the output, such as `head`, has enough: nothing to mend
        raise
    except (MendableError, OSError, *kinds) as error:
        sys.exit(f"{program}: error: {placed(in_words(error))}")


def content_instead(path: Path) -> str | None:
    """What stands in a binary file that no reader takes, and what to do; None if it is not known.

    Args:
        path: a regular file. One that cannot be opened is not known, either.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError:
        return None
    if not start:
        return "an empty file; copy or download it again"
    if start == LFS_POINTER:
        return "a Git-LFS pointer; run `git lfs pull` there"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "a web page; download the file itself"
    return None


def json_problem(path: Path) -> str | None:
    """What stands in a file in place of a JSON object; None if it holds one, or there is none."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        return content_instead(path) or one_line(error)
    return None if isinstance(content, dict) else f"a {type(content).__name__}"
