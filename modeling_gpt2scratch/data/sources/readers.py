"""One reader for each format, and the one boundary through which everything foreign is read.

Whatever a library says of a file becomes one line that names the file and what can be done.
"""

import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

from modeling_gpt2scratch.common.errors import (
    LFS_POINTER,
    SourceError,
    content_instead,
    named,
    one_line,
)

from .decompression import COMPRESSIONS, DAMAGES
from .parquet_rows import read_parquet
from .rows import BadRows, Reading, Rows, behind
from .text_rows import read_csv, read_jsonl, read_txt

READERS = {".txt": read_txt, ".jsonl": read_jsonl, ".csv": read_csv, ".parquet": read_parquet}


def reader_of(name: str) -> Callable[[Reading], Rows] | None:
    """The reader for a file's ending, a compression's ending set aside."""
    path = PurePath(name.lower())
    if path.suffix not in COMPRESSIONS:
        return READERS.get(path.suffix)
    reader = READERS.get(path.with_suffix("").suffix)
    return None if reader is read_parquet else reader  # parquet compresses its own pages


def read_rows(reading: Reading, bad_rows: BadRows) -> Iterator[tuple[int, str | None]]:
    """The rows of a file that count, each with the number of rows up to it; None for a bad row.

    Raises:
        SourceError: if the file cannot be read, or one of its rows and `bad_rows` wants to stop.
    """
    n_rows = reading.skip_rows
    try:
        _require_data(reading.path, reading.name)
        for n_rows, text in reader_of(reading.name)(reading):
            if isinstance(text, SourceError):
                bad_rows.take(text)
                text = None
            yield n_rows, text
    except SourceError:
        raise
    except Exception as error:  # of the file system, or any library
        is_damaged = isinstance(error, DAMAGES)
        reason = one_line(error) if is_damaged or isinstance(error, OSError) else named(error)
        advice = "; the file is cut, damaged or not what its name says: fetch it again"
        raise SourceError(
            f"{reading.name}: cannot be read: {reason}{behind(n_rows)}{advice * is_damaged}"
        ) from None


def kind_of_file(path: Path) -> str | None:
    """What else than a regular file a path is, in words.

    Reading another kind may wait for ever, or never end.

    Raises:
        OSError: if there is nothing, or it may not be looked at.
    """
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return None
    kinds = {stat.S_ISDIR: "a directory", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((words for is_kind, words in kinds.items() if is_kind(mode)), "a device")


def _require_data(path: Path, name: str) -> None:
    """Refuses what only stands for a file."""
    kind = kind_of_file(path)
    if kind is not None:
        raise SourceError(f"{name}: expected a regular file, found {kind}")
    with open(path, "rb") as file:
        is_binary = PurePath(name.lower()).suffix in (".parquet", *COMPRESSIONS)
        # Any text may be empty or a web page, but none begins like this.
        if is_binary or file.read(len(LFS_POINTER)) == LFS_POINTER:
            found = content_instead(path)
            if found is not None:
                raise SourceError(f"{name}: cannot be read: expected data, found {found}")
