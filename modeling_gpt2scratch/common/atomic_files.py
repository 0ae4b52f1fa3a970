"""Files and directories that are either complete under their name or not there at all.

Everything is written under a temporary name beside its destination, flushed to the disk and then
renamed, which a file system does in one step. A run that is killed, or whose disk is full, leaves
what was there before. (Replacing a directory takes two steps: a kill between them leaves the old
one as `.NAME.old`.)
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

PARTIAL_SUFFIX = ".partial"  # of what was not complete when its process was killed
OLD_SUFFIX = ".old"  # of a directory that is being replaced


def write_file(path: Path, *chunks: bytes | memoryview) -> None:
    """Replaces `path` by the chunks, one after another, in one step.

    Raises:
        OSError: if the disk is full; `path` is then as it was before.
    """
    partial = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
    try:
        partial.unlink(missing_ok=True)  # a link there would lead the bytes elsewhere
        with open(partial, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # a write names no file
    finally:
        partial.unlink(missing_ok=True)
    fsync(path.parent)


def write_json(path: Path, content: dict, *, indent: int | None = 2, **options: bool) -> None:
    """Replaces `path` by the JSON of `content` in one step; `options` are those of `json.dumps`."""
    write_file(path, (json.dumps(content, indent=indent, **options) + "\n").encode())


def write_json_lines(path: Path, rows: Iterable[dict], *, ensure_ascii: bool = True) -> None:
    """Replaces `path` by one JSON object per line in one step."""
    lines = (json.dumps(row, ensure_ascii=ensure_ascii) + "\n" for row in rows)
    write_file(path, *(line.encode() for line in lines))


@contextlib.contextmanager
def new_directory(path: Path, *, check: Callable[[], None] | None = None) -> Iterator[Path]:
    """A temporary directory to fill, which becomes `path` when the block ends without an error.

    Whatever stood at `path` is replaced; before that, `check` can look at it and raise.
    """
    with _partial_directory(path.with_name(f".{path.name}{PARTIAL_SUFFIX}")) as partial:
        yield partial
        if check is not None:
            check()
        publish_directory(partial, path)


def publish_directory(partial: Path, path: Path) -> None:
    """Makes a directory that is complete `path`, in one step; whatever stood there is replaced.

    An old directory there steps aside first and goes last.
    """
    _fsync_tree(partial)
    remove_old(path)
    if path.exists():
        os.rename(path, _old(path))
    os.rename(partial, path)
    fsync(path.parent)
    remove_old(path)


def remove_old(path: Path) -> None:
    """Removes the directory that stepped aside for the one that is `path` now."""
    shutil.rmtree(_old(path), ignore_errors=True)


@contextlib.contextmanager
def new_files(directory: Path) -> Iterator[Path]:
    """A temporary directory to fill, whose files move into `directory` when the block ends.

    Each file moves in one step, and only after all of them are complete.
    """
    with _partial_directory(directory / PARTIAL_SUFFIX) as partial:
        yield partial
        _fsync_tree(partial)
        for file in sorted(partial.iterdir()):
            os.replace(file, directory / file.name)
        fsync(directory)


def fsync(path: Path) -> None:
    """Flushes one file or folder."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}{OLD_SUFFIX}")


@contextlib.contextmanager
def _partial_directory(partial: Path) -> Iterator[Path]:
    """An empty directory that is gone afterwards; a killed attempt may have left an old one."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fsync_tree(directory: Path) -> None:
    """Flushes every file and folder below `directory`, and itself, to the disk."""
    for file in sorted(directory.rglob("*")):
        fsync(file)
    fsync(directory)
