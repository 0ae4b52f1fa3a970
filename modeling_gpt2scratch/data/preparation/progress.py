"""How far an unfinished preparation has come: what a killed one leaves for the next to go on from.

Beside the data directory `NAME` that is to be made stands `.NAME.preparing`, which no other command
touches:

    data/            what becomes NAME: tokenizer, finished shards, the two that are being written
    progress.json    what of it counts, and the place in the sources from which to read on
    seen.sqlite      digests of the documents so far, if duplicates are left out
    downloads/       files of the Hub that are being read

`progress.json` is replaced in one step, after everything that it speaks of is on the disk. Whatever
was written after it is cut off and made again, to the same bytes.
"""

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from modeling_gpt2scratch.common.atomic_files import publish_directory, remove_old, write_json
from modeling_gpt2scratch.common.errors import MendableError, one_line
from modeling_gpt2scratch.common.output_directory import PREPARING_SUFFIX, require_free
from modeling_gpt2scratch.data.shards.format import ShardError
from modeling_gpt2scratch.data.shards.manifest import DATA_MARKER, Manifest

PROGRESS_NAME = "progress.json"
SQLITE_CACHE_KIB = 64 * 1024


class ProgressError(MendableError, ValueError):
    """An unfinished preparation that cannot be continued as asked."""


@dataclass
class Progress:
    """The state after a number of blocks of documents.

    A preparation goes: `begun` (the tokenizer is saved), blocks, `finished` (all shards are).
    """

    arguments: dict  # that decide the result
    inputs: list  # names, sizes and ages of the files that are read
    vocabulary: list  # of the tokenizer that is saved; see `vocabulary_of`
    held_out: dict = field(default_factory=dict)  # for validation
    n_blocks: int = 0
    position: dict | None = None  # in the sources; None is their start
    splits: dict[str, dict] = field(default_factory=dict)  # of the writers
    counts: dict[str, int] = field(default_factory=dict)  # documents that were left out, by reason
    is_finished: bool = False


class WorkingDirectory:
    """`.NAME.preparing`, and the rule what may be done with one that is already there.

    Args:
        output_dir: the data directory that is to be made.
    """

    def __init__(self, output_dir: Path):
        self.output_dir = output_dir
        self.path = output_dir.with_name(f".{output_dir.name}{PREPARING_SUFFIX}")
        self.data = self.path / "data"
        self.downloads = self.path / "downloads"
        self.seen = self.path / "seen.sqlite"
        self.named_rows: set[str] = set()  # what was said of rows that cannot be read

    def finished(self, arguments: dict) -> Manifest | None:
        """The manifest of the data directory, if a preparation with these arguments made it.

        None if there also is one that is unfinished.
        """
        is_unfinished = (self.path / PROGRESS_NAME).exists()
        if is_unfinished or DATA_MARKER.difference(self.output_dir) is not None:
            return None
        try:
            manifest = Manifest.load(self.output_dir)
        except ShardError:  # damaged, so it is not known what made it
            return None
        as_saved = json.loads(json.dumps(arguments))
        return manifest if manifest.arguments == as_saved else None

    def revisions(self) -> dict[str, str | None]:
        """The commits of the streamed data sets that an unfinished preparation reads."""
        try:
            progress = self._load()
        except ProgressError:  # which `open` will say
            return {}
        inputs = progress.inputs if progress else []
        return {name: version for name, n_bytes, version in inputs if n_bytes == 0}

    def open(self, arguments: dict, inputs: list, *, overwrite: bool) -> Progress | None:
        """The progress of an unfinished preparation with these arguments and inputs, or None.

        Without one, nothing but downloads is in the directory afterwards: these are checked when
        they are used.

        Raises:
            ProgressError: if there is one of other arguments or inputs that has come so far that
                it is worth a question, or one that cannot be read, and `overwrite` is not set.
        """
        try:
            progress = self._load()
        except ProgressError:
            if not overwrite:
                raise
            progress = None
        if progress is not None and self.data.exists():
            difference = _first_difference(progress, arguments, inputs)
            if difference is None:
                return progress
            if progress.n_blocks and not overwrite:
                raise ProgressError(
                    f"{self.path}: expected an unfinished preparation with the same arguments, "
                    f"found {difference}; repeat the earlier command to finish it, or add "
                    f"--overwrite to begin anew"
                )
        self._clear(kept=self.downloads)
        self.data.mkdir(parents=True)
        return None

    def is_published(self, arguments: dict) -> bool:
        """Whether a kill came after the last rename, so that only `clean_up` is left to do."""
        try:
            progress = self._load()
        except ProgressError:
            return False
        return (
            progress is not None
            and progress.is_finished
            and progress.arguments == arguments
            and not self.data.exists()
            and DATA_MARKER.difference(self.output_dir) is None
        )

    def clean_up(self) -> None:
        """What `publish` does after the last rename."""
        self.remove()
        remove_old(self.output_dir)

    def save(self, progress: Progress) -> None:
        """Replaces `progress.json`, in one step."""
        content = asdict(progress)
        write_json(self.path / PROGRESS_NAME, content | {"sha256": _sha256(content)})

    def publish(self, overwrite: bool) -> None:
        """Makes `data` the data directory and removes the rest.

        Raises:
            OutputError: if that place was taken meanwhile.
        """
        require_free(self.output_dir, marker=DATA_MARKER, overwrite=overwrite)
        publish_directory(self.data, self.output_dir)
        self.remove()

    def remove(self) -> None:
        """Removes what is left, `progress.json` last."""
        self._clear(kept=self.path / PROGRESS_NAME)
        shutil.rmtree(self.path, ignore_errors=True)

    def give_up(self) -> None:
        """Removes what no command can go on from, which is all but the downloads."""
        if self.has_downloads:
            self._clear(kept=self.downloads)
        else:
            self.remove()

    @property
    def has_downloads(self) -> bool:
        """Whether there is a file that need not be downloaded again."""
        return any(path.is_file() for path in self.downloads.rglob("*"))

    def _clear(self, *, kept: Path) -> None:
        for path in self.path.glob("*"):
            if path == kept:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()

    def _load(self) -> Progress | None:
        """What was saved, None if nothing was."""
        path = self.path / PROGRESS_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or content.pop("sha256", None) != _sha256(content):
                raise ValueError("another content")
            return Progress(**content)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ProgressError(
                f"{path}: expected the progress of a preparation by this version, found "
                f"{one_line(error)}; add --overwrite to begin anew"
            ) from error


class SeenDocuments:
    """Which documents came before, by digest: a table on the disk, so that memory stays bounded.

    Args:
        path: of the table, made if there is none.
        n_blocks: blocks that count; what a killed preparation noted later is forgotten.

    Raises:
        OSError: from each method, if the disk is full or the table cannot be used.
    """

    def __init__(self, path: Path, *, n_blocks: int):
        self._path = path
        with self._in_words():
            self._connection = sqlite3.connect(path)
        self._execute("PRAGMA journal_mode = WAL")
        self._execute("PRAGMA synchronous = FULL")
        self._execute(f"PRAGMA cache_size = -{SQLITE_CACHE_KIB}")
        self._execute(
            "CREATE TABLE IF NOT EXISTS seen "
            "(digest BLOB PRIMARY KEY, block INTEGER NOT NULL) WITHOUT ROWID"
        )
        self._execute("DELETE FROM seen WHERE block >= ?", (n_blocks,))
        self.commit()

    def is_new(self, digest: bytes, block: int) -> bool:
        """Whether the document has not been seen yet; from now on it has."""
        return self._execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (digest, block)) == 1

    def commit(self) -> None:
        """Puts what was seen on the disk; to be called before the progress is saved."""
        with self._in_words():
            self._connection.commit()

    def close(self) -> None:
        self._connection.close()

    def _execute(self, statement: str, values: tuple = ()) -> int:
        """The number of rows that it changed."""
        with self._in_words():
            return self._connection.execute(statement, values).rowcount

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise OSError(f"{self._path}: {error}; is the disk full, or without locks?") from error


def _sha256(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _first_difference(progress: Progress, arguments: dict, inputs: list) -> str | None:
    """What differs between an unfinished preparation and the wanted one, in words."""
    for name in arguments | progress.arguments:
        found, wanted = progress.arguments.get(name), arguments.get(name)
        if found != wanted:
            return f"--{name} {found} instead of {wanted}"
    # As JSON, because the saved inputs went through it.
    found, wanted = (json.dumps(entries) for entries in (progress.inputs, inputs))
    if found != wanted:
        changed = [entry[0] for entry in progress.inputs if json.dumps(entry) not in wanted]
        return f"other input files ({', '.join(changed[:3]) or 'there are more now'})"
    return None
