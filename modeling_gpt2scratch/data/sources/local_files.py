"""Documents of files on this machine, found by a path, a directory or a glob.

Every document comes with the number of rows that end with it, from which to go on later.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from modeling_gpt2scratch.common.console import warn
from modeling_gpt2scratch.common.errors import SourceError, printable
from modeling_gpt2scratch.data.shards.manifest_checks import says_held_out

from .decompression import COMPRESSIONS
from .filters import Condition
from .readers import READERS, kind_of_file, read_rows, reader_of
from .rows import MAX_TEXT_BYTES, BadRows, Reading, too_long

CONVERT = "rename JSON lines to .jsonl, save data sets with `to_parquet`, unpack archives"
NO_BRACES = "a glob has no {a,b}: write both, with a comma between them"


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine, with the interface of the files that have to be downloaded first."""

    path: Path

    @property
    def name(self) -> str:
        """What messages and manifests call it."""
        return str(self.path)

    @property
    def n_bytes(self) -> int:
        """Its size on disk."""
        return self.path.stat().st_size

    def fetch(self, directory: Path) -> Path:
        """Where it can be read: where it is; `directory` is for downloads."""
        return self.path


def find_files(pattern: str) -> list[LocalFile] | None:
    """The readable files that a path stands for, in the order of their names.

    Args:
        pattern: a file, even if its name has brackets; a directory, which stands for all readable
            files below it (hidden ones aside); or a glob, in which `**` goes through directories.

    Returns:
        None for what looks like no path: a URL, or the name of a data set on the Hub.

    Raises:
        SourceError: if it looks like a path and leads to nothing, or to a file of another kind.
    """
    if not pattern or "://" in pattern:
        return None
    try:
        return _found(pattern)
    except OSError as error:
        raise SourceError(f"{pattern}: cannot be read: {error}") from None


def is_readable(name: str) -> bool:
    """Whether there is a reader for files whose name ends like this."""
    return reader_of(name) is not None


def read_documents(
    path: Path,
    *,
    text_column: str = "text",
    where: Sequence[Condition] = (),
    document_start: str | None = None,
    skip_rows: int = 0,
    name: str | None = None,
    bad_rows: BadRows | None = None,
) -> Iterator[tuple[int, str]]:
    """The documents of one file that are not empty and satisfy all conditions, in the file's order.

    Args:
        path: a file of one of `READERS`, the text formats also with one of `COMPRESSIONS`.
        text_column: the column that holds the document; .txt files have none.
        where: conditions on the rows, checked before their text is looked at.
        document_start: a regular expression. Rows (lines of a .txt file) are then joined, as they
            are, to documents, of which a new one begins at each row whose beginning matches.
        skip_rows: rows to pass over, a number that came with a document: those behind it follow.
        name: stands for the path in messages, and tells the format: where the file came from.
        bad_rows: what becomes of rows that cannot be read; without it, the first is an error.

    Returns:
        Pairs of the number of rows up to the end of the document, from the file's beginning, and
        the document.

    Raises:
        SourceError: if the format or `document_start` is unknown; while reading, if the content is
            not what the format, the conditions or the text column demand.
    """
    name = str(path) if name is None else name
    if not is_readable(name):
        raise _unknown_kind(name)
    reading = Reading(
        path=path,
        name=name,
        text_column=text_column,
        where=tuple(where),
        skip_rows=skip_rows,
        by_lines=document_start is not None,
    )
    rows = read_rows(reading, bad_rows or BadRows())
    if document_start is not None:
        try:
            starts = re.compile(document_start).match
        except re.error as error:
            raise SourceError(
                f"expected a regular expression that begins a document, found {document_start!r}: "
                f"{error}"
            ) from None
        rows = _joined(rows, starts, name)
    return ((n_rows, text) for n_rows, text in rows if text)


def _found(pattern: str) -> list[LocalFile] | None:
    """As `find_files`, with what the file system has to say as an OSError."""
    path = Path(pattern)
    if path.is_dir():
        files = _files_below(path)
        names = [str(file.path.relative_to(path)) for file in files]
        held_out = [name for name in names if says_held_out(name)]
        if held_out and len(held_out) < len(names):
            warn(
                printable(
                    f"{path}: all files are read as training text, also those whose names say "
                    f"validation or test, such as {held_out[0]}; to leave them out, name the "
                    f"others, by their folder or a glob"
                )
            )
        return files
    if path.exists():
        return [_local_file(path)]
    looks_local = pattern.startswith((".", "~")) or path.is_absolute()
    if not (glob.has_magic(pattern) or is_readable(pattern) or looks_local):
        return None
    paths = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    if not paths:
        hint = ""
        if pattern.startswith("~"):
            hint = f"; write {os.path.expanduser(pattern)}"
        elif pattern.count("{") != pattern.count("}"):
            hint = f"; {NO_BRACES}"
        elif "[" in pattern:
            hint = "; write [[] for a bracket in a name"
        raise SourceError(f"{pattern}: expected a file or glob, found nothing there{hint}")
    return [_local_file(path) for path in _each_once(paths)]


def _each_once(paths: Iterable[Path]) -> list[Path]:
    """The paths without those that lead to a file once more, through a link or a second match.

    Raises:
        SourceError: if there is a file beside its own compressed form.
    """
    places: dict[str, Path] = {}
    texts: dict[Path, Path] = {}
    for path in paths:
        place = os.path.realpath(path)
        if place in places:
            continue
        places[place] = path
        text = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
        if (other := texts.setdefault(text, path)) != path:
            raise SourceError(
                f"{path}: expected each text once, found {other} beside it; move one of them away, "
                f"or name the files by a glob"
            )
    return list(places.values())


def _joined(
    rows: Iterable[tuple[int, str | None]], starts: Callable[[str], object], name: str
) -> Iterator[tuple[int, str]]:
    """The rows, joined to documents; each comes with the number of rows before the next one."""
    parts: list[str] = []
    n_characters = 0
    n_rows = 0
    for n_rows, text in rows:
        if text is None:
            continue
        if parts and starts(text):
            yield n_rows - 1, "".join(parts)
            parts, n_characters = [], 0
        parts.append(text)
        n_characters += len(text)
        if n_characters > MAX_TEXT_BYTES:
            raise too_long(f"{name}: the document with row {n_rows}", MAX_TEXT_BYTES)
    yield n_rows, "".join(parts)


def _files_below(directory: Path) -> list[LocalFile]:
    """All readable files below a directory, hidden ones and those in hidden directories aside.

    Links are followed, but nothing is read twice. What is no file, such as a pipe, is not
    read, whatever its name. Files that have no reader are counted in one line on stderr.
    """

    def refuse(error: OSError) -> None:
        raise error

    files, others, visited = [], Counter(), set()
    for folder, folders, names in os.walk(directory, onerror=refuse, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = [Path(folder, name) for name in names if not name.startswith(".")]
        for path in paths:
            if is_readable(path.name) and path.is_symlink() and not path.exists():
                raise SourceError(
                    f"{path}: expected a file, found a link to {os.readlink(path)}, which is not "
                    f"there; bring the file or remove the link"
                )
        paths = [path for path in paths if path.exists()]
        found = [path for path in paths if kind_of_file(path) is None]
        files += [path for path in found if is_readable(path.name)]
        others.update(_ending(path) for path in found if not is_readable(path.name))
    endings = ", ".join(f"{ending} ({n:,})" for ending, n in others.most_common(5))
    if not files:
        hint = f"; {CONVERT}" if others else ""
        raise SourceError(
            printable(
                f"{directory}: expected a file ending in {_endings()} below it, found "
                f"{endings or 'none'}{hint}"
            )
        )
    if others:
        warn(printable(f"{directory}: left out, as there is no reader for them: {endings}"))
    return [LocalFile(file) for file in _each_once(sorted(files, key=str))]


def _ending(path: Path) -> str:
    """What tells the kind of a file: the last part of its name, with that of a compression."""
    is_packed = path.suffix.lower() in COMPRESSIONS
    return "".join(path.suffixes[-2:] if is_packed else path.suffixes[-1:]) or path.name


def _local_file(path: Path) -> LocalFile:
    """The file, if there is a reader for it."""
    kind = kind_of_file(path)
    if kind is not None:
        hint = "; name the folder itself, or end the glob in *.txt" * path.is_dir()
        raise SourceError(f"{path}: expected a regular file, found {kind}{hint}")
    if not is_readable(path.name):
        raise _unknown_kind(str(path))
    return LocalFile(path)


def _unknown_kind(name: str) -> SourceError:
    return SourceError(f"{name}: expected a file ending in {_endings()}; {CONVERT}")


def _endings() -> str:
    """The endings of the files that can be read, for a message."""
    return f"{', '.join(READERS)} (text formats also with {', '.join(COMPRESSIONS)})"
