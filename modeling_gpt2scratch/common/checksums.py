"""Sizes and sha256 of a directory's files, by which damage is found when they are read again."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from .atomic_files import write_file

CHECKSUMS_NAME = "checksums.json"


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, as sha256sum prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(path: Path) -> dict:
    """Size in bytes and sha256 of a file."""
    return {"size": path.stat().st_size, "sha256": file_sha256(path)}


def write_checksums(directory: Path, checksums: dict[str, dict]) -> None:
    """`checksums.json` of a directory, in one step: one entry of `checksum` per name."""
    write_file(directory / CHECKSUMS_NAME, _as_text(checksums).encode())


def read_checksums(directory: Path) -> dict[str, dict]:
    """The entries that `write_checksums` wrote, by name."""
    return json.loads((directory / CHECKSUMS_NAME).read_text(encoding="utf-8"))


def damage(
    directory: Path, *, listed: Sequence[str] = (), part: int = 0, n_parts: int = 1
) -> Iterator[str]:
    """What is wrong with the files of a directory, one line each; nothing without checksums.

    Files that are not listed are somebody's additions, and may be there.

    Args:
        directory: with `checksums.json`, or of a version that wrote none.
        listed: names that nobody adds, which must have an entry.
        part: the share of this process, from 0.
        n_parts: processes that share the work. Each takes files from the largest down.
    """
    path = directory / CHECKSUMS_NAME
    if not directory.is_dir():
        yield f"{directory}: expected a directory that all processes see, found none"
        return
    try:
        text = path.read_text(encoding="utf-8")
        checksums = json.loads(text)
        # A changed byte that JSON does not mind is damage, too.
        if text != _as_text(checksums):
            raise ValueError("not as it was written")
        names = sorted(checksums, key=lambda name: -checksums[name]["size"])
        if unlisted := [name for name in listed if name not in checksums]:
            raise ValueError(f"no entry for {unlisted[0]}")
        if not all(isinstance(checksums[name]["sha256"], str) for name in names):
            raise ValueError("not as it was written")
        if outside := [
            name for name in names if ".." in Path(name).parts or Path(name).is_absolute()
        ]:
            raise ValueError(f"{outside[0]}, which is not in this directory")
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        yield f"{path}: expected checksums, found damage: {error}"
        return
    for name in names[part::n_parts]:
        if problem := _difference(directory / name, checksums[name]):
            yield problem


def drop_from_cache(path: Path) -> None:
    """Lets the next reader of a flushed file see the disk, where the system can do that."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _difference(path: Path, expected: dict) -> str | None:
    """How a file differs from its entry, None if it does not."""
    try:
        size = path.stat().st_size
        if not path.is_file():  # a device may never end
            return f"{path}: expected a file, found something else"
        if size != expected["size"]:
            return f"{path}: expected {expected['size']} bytes, found {size}"
        found = checksum(path)["sha256"]
    except OSError as error:
        return f"{path}: expected {expected['size']} bytes, found {error.strerror}"
    if found == expected["sha256"]:
        return None
    shown = [f"{text[:12]}…" for text in (expected["sha256"], found)]
    if shown[0] == shown[1]:
        shown = [expected["sha256"], found]
    return f"{path}: expected sha256 {shown[0]} as in {CHECKSUMS_NAME}, found {shown[1]}"


def _as_text(checksums: dict) -> str:
    """The one text of these checksums."""
    return json.dumps(checksums, indent=2, sort_keys=True) + "\n"
