"""Logs of one JSON object per line: one reader and one appender for all of them.

A kill or a full disk can cut the last line, and anything can happen to the others. Such a line is
named by file and number and left out: it ends neither a run nor a report of one.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .console import warn

MAX_NAMED = 3  # bad lines of one file
SHOWN_CHARACTERS = 40  # of a bad line


def read_json_lines(
    path: Path,
    *,
    rising: str | None = None,
    texts: Sequence[str] | None = None,
    warn: Callable[[str], None] = warn,
) -> list[dict]:
    """The objects in a file, in their order; none if there is no file.

    Args:
        rising: a key that must be in each object, with a whole number of at least 0 and above that
            of the object before.
        texts: keys that hold texts; if given, all others hold numbers or null.
        warn: is told of each line that is left out, by file and number.

    Raises:
        OSError: if the file cannot be read.
    """
    if not path.exists():
        return []
    if not path.is_file():  # a pipe would not end
        raise OSError(f"{path}: expected a file of JSON lines, found something else")
    rows, numbers, problems = [], [], []
    *lines, end = path.read_bytes().split(b"\n")
    for number, line in enumerate([*lines, end], start=1):
        if not line.strip():
            continue
        try:
            row = _object_of(line)
            _require_types(row, texts)
            if rising is not None:
                _require_count(row, rising)
                if _is_outlier(rows, row, rising):
                    last, place = rows.pop(), numbers.pop()
                    problems.append(_problem(path, place, _behind(rising, row, last)))
                elif rows and row[rising] <= rows[-1][rising]:
                    raise ValueError(_behind(rising, rows[-1], row))
            rows.append(row)
            numbers.append(number)
        except ValueError as error:
            is_cut = number > len(lines)  # nothing ended it
            found = f"{_shown(line)}, the cut end" if is_cut else str(error)
            problems.append(_problem(path, number, found))
    for problem in problems[:MAX_NAMED]:
        warn(problem)
    if len(problems) > MAX_NAMED:
        warn(f"{path}: {len(problems) - MAX_NAMED} more lines like these are left out")
    return rows


def append_json_line(path: Path, row: dict) -> None:
    """Adds a line to a file, made if there is none, after cutting off what a kill left unfinished.

    Args:
        row: fit for JSON.

    Raises:
        OSError: if the disk is full; the file is then as it was before.
    """
    line = memoryview((json.dumps(row) + "\n").encode())
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        size = _end_last_line(descriptor, path)
        try:
            while line:
                line = line[os.write(descriptor, line) :]
        except OSError as error:
            os.ftruncate(descriptor, size)
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict:
    """An `object_pairs_hook` for JSON that lets no key stand twice.

    Raises:
        ValueError: "what was found in its place".
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} twice")
    return found


def _end_last_line(descriptor: int, path: Path) -> int:
    """The size of a file whose last line is now ended, or cut off if it is no whole object."""
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return size
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(0)
        content = file.read()
    start = content.rfind(b"\n") + 1
    try:
        _object_of(content[start:])
    except ValueError:
        os.ftruncate(descriptor, start)
        number = content.count(b"\n") + 1
        found = _shown(content[start:])
        warn(
            f"{path}:{number}: expected a complete line, found {found}, whose end is missing; the "
            f"line is removed"
        )
        return start
    os.write(descriptor, b"\n")
    return size + 1


def _object_of(line: bytes) -> dict:
    """The object that a line holds.

    Raises:
        ValueError: "what was found in its place".
    """
    try:
        row = json.loads(line, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError):
        raise ValueError(_shown(line)) from None
    if not isinstance(row, dict):
        raise ValueError(_shown(line))
    return row


def _require_types(row: dict, texts: Sequence[str] | None) -> None:
    """Refuses what is no text where one belongs, and what is no number in all other places.

    Raises:
        ValueError: "what was found in its place".
    """
    for key, value in row.items() if texts is not None else ():
        is_right = isinstance(value, str if key in texts else int | float)
        if value is not None and not (is_right and (key in texts or _fits_a_float(value))):
            raise ValueError(_shown(f"{key} {json.dumps(value)}".encode()))


def _fits_a_float(number: int | float) -> bool:
    """Whether whoever computes with a number meets no OverflowError, infinity or NaN."""
    return abs(number) <= sys.float_info.max


def _require_count(row: dict, key: str) -> None:
    """Refuses an object whose number is none.

    Raises:
        ValueError: "what was found in its place".
    """
    if type(row.get(key)) is not int or row[key] < 0:
        raise ValueError(f"{key} {_shown(json.dumps(row.get(key)).encode())}")


def _is_outlier(rows: list[dict], row: dict, key: str) -> bool:
    """Whether the next row fits all of the rows but the last, whose number is too high."""
    before = rows[-2][key] if len(rows) > 1 else -1
    return bool(rows) and before < row[key] < rows[-1][key]


def _behind(key: str, before: dict, row: dict) -> str:
    """What was found: a row whose number does not go with that of the one before or behind it."""
    return f"{key} {row[key]} beside {key} {before[key]}"


def _problem(path: Path, number: int, found: str) -> str:
    return f"{path}:{number}: expected a JSON object, found {found}; it is left out"


def _shown(line: bytes) -> str:
    """The beginning of a line, fit to be printed."""
    text = line[: 4 * SHOWN_CHARACTERS].decode(errors="replace")
    text = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} ..."
