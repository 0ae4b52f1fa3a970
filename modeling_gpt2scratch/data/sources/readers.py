"""Rows of files of text: plain text, JSON lines, CSV and parquet, each read from front to back.

Every reader yields the number of rows so far and the text of those that satisfy the conditions. It
holds a little of the file at a time: some MiB, and the row at hand.
"""

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

import pyarrow as pa
import pyarrow.parquet as pq

from modeling_gpt2scratch.common.errors import SourceError, one_line
from modeling_gpt2scratch.data.tokens.text import END_OF_TEXT, well_formed

from .filters import Condition, shown_columns

COMPRESSIONS = (".gz", ".zst", ".xz")
CHUNK_BYTES = 1 << 20  # read from a file, or turned into Python's strings, at a time
MAX_BATCH_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class RowRules:
    """Which rows of a table are documents, and where their text is."""

    text_column: str
    where: tuple[Condition, ...] = ()

    def counts(self, row: Mapping[str, object], place: str) -> bool:
        """Whether the row satisfies all conditions."""
        return all(condition.holds(row, place) for condition in self.where)

    def text_of(self, row: object, place: str) -> str:
        """The row's text; SourceError if there is none."""
        text = row.get(self.text_column) if isinstance(row, dict) else None
        if isinstance(text, str):
            return text
        if not isinstance(row, dict):
            raise self.no_text(place, type(row).__name__)
        if self.text_column not in row:
            raise self.no_text(place, shown_columns(row))
        if text is None:
            raise SourceError(
                f"{place}: expected text in column {self.text_column!r}, found null; "
                f'--where "{self.text_column} != null" leaves such rows out'
            )
        raise self.no_text(place, f"a {type(text).__name__} there")

    def no_text(self, place: str, found: str) -> SourceError:
        """The error for a row or a file without the text column."""
        return SourceError(
            f"{place}: expected text in column {self.text_column!r}, found {found}; "
            "see --text_column"
        )


@dataclass(frozen=True, kw_only=True)
class Reading(RowRules):
    """What is asked of a reader; `name` stands for the file in messages."""

    path: Path
    name: str
    skip_rows: int = 0
    by_lines: bool = False


def reader_of(name: str) -> Callable[[Reading], Iterator[tuple[int, str]]] | None:
    """The reader for a file's ending, a compression's ending set aside."""
    path = PurePath(name)
    if path.suffix not in COMPRESSIONS:
        return READERS.get(path.suffix)
    reader = READERS.get(path.with_suffix("").suffix)
    return None if reader is _read_parquet else reader  # parquet compresses its own pages


def _read_txt(reading: Reading) -> Iterator[tuple[int, str]]:
    """The file as one document, or the pieces between `END_OF_TEXT` marks if it has them."""
    with _open(reading) as file:
        pieces = _lines_of(file) if reading.by_lines else map(str.strip, _pieces_of(file))
        for n_rows, text in enumerate(pieces, start=1):
            row = {reading.text_column: text}
            if n_rows > reading.skip_rows and reading.counts(row, reading.name):
                yield n_rows, text


def _lines_of(file: io.BufferedReader) -> Iterator[str]:
    """The lines of a text file, each with one line feed at its end."""
    return iter(io.TextIOWrapper(file, encoding="utf-8"))


def _pieces_of(file: io.BufferedReader) -> Iterator[str]:
    """What stands between the marks, with line feeds for line ends, one piece at a time."""
    utf8 = codecs.getincrementaldecoder("utf-8")()
    decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
    n_kept = len(END_OF_TEXT) - 1  # may be the beginning of a mark that the next chunk completes
    parts, end = [], ""
    while chunk := file.read(CHUNK_BYTES):
        first, *others = (end + decoder.decode(chunk)).split(END_OF_TEXT)
        for piece in others:
            yield "".join((*parts, first))
            parts, first = [], piece
        parts.append(first[:-n_kept])
        end = first[-n_kept:]
    yield "".join((*parts, end, decoder.decode(b"", final=True)))


def _read_jsonl(reading: Reading) -> Iterator[tuple[int, str]]:
    with _open(reading) as file:
        lines = itertools.islice(file, reading.skip_rows, None)
        for number, line in enumerate(lines, start=reading.skip_rows + 1):
            if line.isspace():
                continue
            place = f"{reading.name}:{number}"
            content = line.decode()
            try:
                row = json.loads(content)
            except (ValueError, RecursionError) as error:
                raise SourceError(
                    f"{place}: expected one JSON object per line, found {error}"
                ) from None
            if not reading.where or not isinstance(row, dict) or reading.counts(row, place):
                yield number, well_formed(reading.text_of(row, place))


def _read_csv(reading: Reading) -> Iterator[tuple[int, str]]:
    csv.field_size_limit(2**31 - 1)  # documents are longer than the default of 128 KiB
    with _open(reading) as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as lines:
        parser = csv.reader(lines, strict=True)
        rows = filter(None, parser)  # blank lines count for nothing
        try:
            columns = next(rows, None)
            if columns is not None and reading.text_column not in columns:
                found = shown_columns(dict.fromkeys(columns))
                raise reading.no_text(f"{reading.name}:{parser.line_num}", found)
            for number, cells in enumerate(rows, start=1):
                if number <= reading.skip_rows:
                    continue
                row = dict(itertools.zip_longest(columns, cells[: len(columns)]))
                # An empty cell is the null of CSV; in the text column it is an empty document.
                nulls = {column: cell or None for column, cell in row.items()}
                place = f"{reading.name}:{parser.line_num}"
                if reading.counts(nulls, place):
                    yield number, reading.text_of(row, place)
        except csv.Error as error:
            place = f"{reading.name}:{parser.line_num}"
            raise SourceError(f"{place}: expected CSV, found {error}") from None


def _read_parquet(reading: Reading) -> Iterator[tuple[int, str]]:
    columns = list(dict.fromkeys([reading.text_column, *(c.column for c in reading.where)]))
    try:
        # Without these two, all of a row group is read ahead, which may be all of the file.
        with pq.ParquetFile(reading.path, pre_buffer=False, buffer_size=CHUNK_BYTES) as table:
            _check_schema(reading, table.schema_arrow)
            n_rows, groups = _groups_behind(table.metadata, reading.skip_rows)
            batches = table.iter_batches(
                batch_size=_rows_per_batch(table.metadata, reading.text_column),
                row_groups=groups,
                columns=columns,
                use_threads=False,
            )
            for batch in batches:
                n_skipped = min(batch.num_rows, max(0, reading.skip_rows - n_rows))
                if n_skipped < batch.num_rows:
                    yield from _texts_of(batch.slice(n_skipped), n_rows + n_skipped, reading)
                n_rows += batch.num_rows
    except UnicodeDecodeError as error:
        raise _not_utf8(reading.name, error) from None
    except (pa.ArrowException, OSError) as error:
        message = f"{reading.name}: expected a parquet file, found {one_line(error)}"
        raise SourceError(message) from None


def _texts_of(batch: pa.RecordBatch, n_before: int, reading: Reading) -> Iterator[tuple[int, str]]:
    """The rows of a batch that count, numbered from behind the `n_before` rows before it."""
    columns = batch.schema.names  # arrow adds those named like "text.length" to "text"
    text_index = columns.index(reading.text_column)
    values = (batch.column(column).to_pylist() for column in columns)
    for n_rows, cells in enumerate(zip(*values, strict=True), start=n_before + 1):
        if not reading.where and isinstance(cells[text_index], str):
            yield n_rows, cells[text_index]  # without the cost of what the others need
            continue
        row = dict(zip(columns, cells, strict=True))
        place = f"{reading.name}: row {n_rows}"
        if reading.counts(row, place):
            yield n_rows, reading.text_of(row, place)


def _check_schema(reading: Reading, schema: pa.Schema) -> None:
    """Refuses a table without the columns that are needed, before any row is read."""
    row = dict.fromkeys(schema.names)
    for column in (reading.text_column, *(condition.column for condition in reading.where)):
        if schema.names.count(column) > 1:
            raise SourceError(f"{reading.name}: expected one column {column!r}, found several")
    if reading.text_column not in row:
        raise reading.no_text(reading.name, shown_columns(row))
    for condition in reading.where:
        if condition.column not in row:
            condition.holds(row, reading.name)  # raises: it knows all columns, a row only some
    arrow_type = schema.field(reading.text_column).type
    value_type = arrow_type.value_type if pa.types.is_dictionary(arrow_type) else arrow_type
    is_text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not any(check(value_type) for check in is_text):
        raise reading.no_text(reading.name, f"{arrow_type} there")


def _groups_behind(metadata: pq.FileMetaData, n_rows: int) -> tuple[int, list[int]]:
    """The rows of the row groups that end within the first `n_rows`, and the other row groups."""
    n_passed = 0
    for group in range(metadata.num_row_groups):
        if n_passed + metadata.row_group(group).num_rows > n_rows:
            return n_passed, list(range(group, metadata.num_row_groups))
        n_passed += metadata.row_group(group).num_rows
    return n_passed, []


def _rows_per_batch(metadata: pq.FileMetaData, column: str) -> int:
    """As many rows as have some `CHUNK_BYTES` of the column in the row group of the longest."""
    longest = 1
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema == column:
                longest = max(longest, chunk.total_uncompressed_size // max(1, group.num_rows))
    return max(1, min(MAX_BATCH_ROWS, CHUNK_BYTES // longest))


@contextlib.contextmanager
def _open(reading: Reading) -> Iterator[io.BufferedReader]:
    """The bytes of a text file, decompressed by its ending; what is wrong with it names it.

    Broken compression and broken UTF-8 show only while reading, so the reading stands inside.
    """
    suffix = PurePath(reading.name).suffix
    try:
        if suffix in COMPRESSIONS and reading.path.stat().st_size == 0:
            raise EOFError("expected compressed data, found an empty file")
        with (
            _decompressed(reading.path, suffix) as raw,
            io.BufferedReader(raw, CHUNK_BYTES) as file,
        ):
            if file.peek(3).startswith(codecs.BOM_UTF8):  # Windows marks UTF-8 with it
                file.read(3)
            yield file
    except UnicodeDecodeError as error:
        raise _not_utf8(reading.name, error) from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise SourceError(f"{reading.name}: cannot be read: {error}") from None


def _decompressed(path: Path, suffix: str) -> io.RawIOBase | io.BufferedIOBase:
    """A file whose content ends with an error if the compressed data end too early."""
    if suffix == ".zst":
        return pa.input_stream(path, compression="zstd")  # Python < 3.14 has none itself
    opened = {".gz": gzip.open, ".xz": lzma.open}.get(suffix)
    return opened(path) if opened else open(path, "rb", buffering=0)


def _not_utf8(name: str, error: UnicodeDecodeError) -> SourceError:
    byte = error.object[error.start]
    return SourceError(f"{name}: expected UTF-8, found byte {byte:#04x}; convert the file first")


READERS = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
