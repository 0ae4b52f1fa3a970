"""Documents of some sources in batches, in an order that is a function of the arguments alone.

With a seed, files are taken in a random order, a few at a time, and give a batch of documents in
turn; without one, they are read one after another as their names sort. Sources with weights are
mixed so that their characters keep to the weights at any moment, to about a hundredth or to one
document, until the first of them has no more.

Every batch carries the position behind it, from which a later run can read on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.data.tokens.workers import DocumentBatch

from .dataset_argument import FILES_AT_ONCE, Source
from .file_queue import File, FileQueue
from .hub_files import HubFile
from .hub_stream import HubStream
from .local_files import read_documents
from .rows import BadRows

BATCH_CHARACTERS = 2**20
BATCH_DOCUMENTS = 1024
BATCHES_TO_BALANCE = 100  # a batch of a mixture is so small a part of all that came before


class DocumentStream:
    """Batches of the documents of some sources; see the head of this file for the order.

    Args:
        sources: all with weights, or all without.
        seed: of the order of the files; None reads them one after another.
        downloads: directory for files of the Hub.
        limit_documents: after so many documents the stream ends.
        batch_characters: a batch ends with the document that reaches it.
        min_characters: shorter documents do not count for the weights, as whoever reads the
            batches leaves them out.
        on_bad_row: "stop" at a row that cannot be read, or "skip" and count it.
        named_rows: what was said of such rows in an earlier pass over the text.
        position: of the batch after which to go on; None is the start.

    Raises:
        SourceError: while reading, if the input is bad.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        seed: int | None,
        downloads: Path,
        limit_documents: int | None = None,
        batch_characters: int = BATCH_CHARACTERS,
        min_characters: int = 0,
        on_bad_row: str = "stop",
        named_rows: set[str] | None = None,
        position: dict | None = None,
    ):
        if sources[0].weight is None:
            parts = [[(source, file) for source in sources for file in source.files]]
            self._weights = [1.0]
        else:
            parts = [[(source, file) for file in source.files] for source in sources]
            self._weights = [source.weight for source in sources]
        self._names = [source.name for source in sources]
        positions = position["parts"] if position else [None] * len(parts)
        n_bad_rows = position["n_bad_rows"] if position else 0
        self._bad_rows = BadRows(on_bad_row, n_bad_rows, named_rows)
        self._parts = [
            _Part(
                files,
                seed=None if seed is None else (seed, index),
                downloads=downloads,
                bad_rows=self._bad_rows,
                min_characters=min_characters,
                **start,
            )
            for index, (files, start) in enumerate(
                zip(parts, (at or {} for at in positions), strict=True)
            )
        ]
        self._n_documents = position["n_documents"] if position else 0
        self._limit = limit_documents
        self._batch_characters = batch_characters
        self.used_up: str | None = None  # the source whose end ended the mixture

    def __iter__(self) -> Iterator[DocumentBatch]:
        n_bad_rows = self._bad_rows.count
        while self._limit is None or self._n_documents < self._limit:
            part = self._most_behind()
            batch = part.next_batch(self._most_characters())
            if batch is None:
                name = self._names[self._parts.index(part)]
                if len(self._parts) > 1 and not part.characters:
                    raise SourceError(
                        f"{name}: expected documents for its share "
                        f"of --dataset, found none after --where, --min_characters and "
                        f"--on_bad_row; leave this source out, or loosen them"
                    )
                self.used_up = name if len(self._parts) > 1 else None
                if self._bad_rows.count > n_bad_rows:  # there were some behind the last document
                    yield DocumentBatch([], self._position())
                return
            name, documents, rows = batch
            if self._limit is not None:
                documents = documents[: self._limit - self._n_documents]
            self._n_documents += len(documents)
            n_bad_rows = self._bad_rows.count
            yield DocumentBatch(documents, self._position(), name, rows)

    def _position(self) -> dict:
        """From where to read on, with all that came before counted."""
        return {
            "n_documents": self._n_documents,
            "n_bad_rows": self._bad_rows.count,
            "parts": [part.position() for part in self._parts],
        }

    def release(self, position: dict) -> None:
        """Deletes downloads that nobody who goes on from `position` needs."""
        for part, at in zip(self._parts, position["parts"], strict=True):
            part.release(at)

    def close(self) -> None:
        """Ends downloads that are under way."""
        for part in self._parts:
            part.close()

    def _most_characters(self) -> int:
        """With so many the next batch ends: a function of what came before, for a resume."""
        if len(self._parts) == 1:
            return self._batch_characters
        given = sum(part.characters for part in self._parts)
        return min(self._batch_characters, max(1, given // BATCHES_TO_BALANCE))

    def _most_behind(self) -> "_Part":
        """The part that has given the least, measured by its weight."""
        total = sum(part.characters for part in self._parts)
        behind = [
            weight * total - part.characters
            for part, weight in zip(self._parts, self._weights, strict=True)
        ]
        return self._parts[int(np.argmax(behind))]


@dataclass
class _Lane:
    """One of the files that are being read in turn."""

    index: int  # in the order of reading
    name: str  # of the file, in messages
    rows: int  # of the file that have been read
    documents: Iterator[tuple[int, str]] = field(repr=False)


class _Part:
    """The files of one weight, read a few at a time."""

    def __init__(
        self,
        files: list[tuple[Source, File]],
        *,
        seed: tuple[int, int] | None,
        downloads: Path,
        bad_rows: BadRows,
        min_characters: int,
        next_file: int = 0,
        lanes: Sequence[tuple[int, int]] = (),
        turn: int = 0,
        characters: int = 0,
    ):
        self._files = files
        self._n_lanes = 1
        if seed is not None:
            keys = np.random.SeedSequence(seed).generate_state(len(files), np.uint64)
            self._files = [files[i] for i in np.argsort(keys, kind="stable")]
            self._n_lanes = FILES_AT_ONCE
        self._bad_rows = bad_rows
        self._next_file = next_file
        self._turn = turn
        self._min_characters = min_characters
        self.characters = characters  # that this part has given so far, in documents that count
        wanted = [index for index, _ in lanes] + list(range(next_file, len(files)))
        self._queue = FileQueue(
            [self._files[index][1] for index in wanted], downloads, ahead=self._n_lanes
        )
        self._read: dict[int, Path] = {}  # by their index, the files that were opened
        self._lanes = [self._open(index, rows) for index, rows in lanes]

    def next_batch(self, n_wanted: int) -> tuple[str, list[str], list[int]] | None:
        """A file's name, documents of it and the rows that end with each; None at the end.

        Args:
            n_wanted: characters; the batch ends with the document that reaches it.
        """
        while True:
            while len(self._lanes) < self._n_lanes and self._next_file < len(self._files):
                self._lanes.append(self._open(self._next_file, 0))
                self._next_file += 1
            if not self._lanes:
                return None
            self._turn %= len(self._lanes)
            lane = self._lanes[self._turn]
            documents, rows, is_at_end = self._take(lane, n_wanted)
            if is_at_end:
                del self._lanes[self._turn]
            else:
                self._turn += 1
            if documents:
                return lane.name, documents, rows

    def position(self) -> dict:
        """From where to read on, as the keyword arguments of a new part."""
        return {
            "next_file": self._next_file,
            "lanes": [[lane.index, lane.rows] for lane in self._lanes],
            "turn": self._turn,
            "characters": self.characters,
        }

    def release(self, position: dict) -> None:
        """Deletes the downloads that were read to the end before `position`."""
        needed = {index for index, _ in position["lanes"]}
        for index in [i for i in self._read if i < position["next_file"] and i not in needed]:
            self._queue.release(self._read.pop(index))

    def close(self) -> None:
        """Ends the download that is under way."""
        self._queue.close()

    def _open(self, index: int, rows: int) -> _Lane:
        source, file = self._files[index]
        path = self._read[index] = next(self._queue)
        name = str(file) if isinstance(file, HubFile) else file.name
        if isinstance(file, HubStream):
            documents = file.documents(source.where, skip_rows=rows, bad_rows=self._bad_rows)
        else:
            documents = read_documents(
                path,
                text_column=source.text_column,
                where=source.where,
                document_start=source.document_start,
                skip_rows=rows,
                name=name,
                bad_rows=self._bad_rows,
            )
        return _Lane(index, name, rows, documents)

    def _take(self, lane: _Lane, n_wanted: int) -> tuple[list[str], list[int], bool]:
        """The next documents of a file, the rows up to each, and whether it has no more."""
        documents, rows, n_characters = [], [], 0
        is_at_end = True
        for n_rows, document in lane.documents:
            lane.rows = n_rows
            documents.append(document)
            rows.append(n_rows)
            n_characters += len(document)
            if len(document) >= self._min_characters:
                self.characters += len(document)
            if n_characters >= n_wanted or len(documents) == BATCH_DOCUMENTS:
                is_at_end = False
                break
        return documents, rows, is_at_end
