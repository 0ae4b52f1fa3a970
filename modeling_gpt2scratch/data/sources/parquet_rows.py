"""Rows of parquet files: a little of a row group at a time, with the checksums of its pages."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from modeling_gpt2scratch.common.errors import SourceError, named, one_line

from .filters import shown_columns
from .rows import CHUNK_BYTES, MAX_ROW_BYTES, Reading, Rows, behind, not_utf8, too_long

MAX_BATCH_ROWS = 4096


def read_parquet(reading: Reading) -> Rows:
    """The text column of a parquet file."""
    columns = list(dict.fromkeys([reading.text_column, *(c.column for c in reading.where)]))
    n_rows = 0
    try:
        with pq.ParquetFile(
            reading.path,
            pre_buffer=False,  # would read all of a row group ahead, which may be all of the file
            buffer_size=_buffer_bytes(pq.read_metadata(reading.path)),
            page_checksum_verification=True,
        ) as table:
            _check_schema(reading, table.schema_arrow)
            n_rows, groups = _groups_behind(table.metadata, reading.skip_rows)
            batches = table.iter_batches(
                batch_size=_rows_per_batch(table.metadata, reading.name),
                row_groups=groups,
                columns=columns,
                use_threads=False,
            )
            for batch in batches:
                n_skipped = min(batch.num_rows, max(0, reading.skip_rows - n_rows))
                if n_skipped < batch.num_rows:
                    yield from _texts_of(batch.slice(n_skipped), n_rows + n_skipped, reading)
                n_rows += batch.num_rows
            if n_rows != table.metadata.num_rows:  # the head of a page has no checksum
                raise OSError(f"{n_rows:,} rows in place of {table.metadata.num_rows:,}")
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"{reading.name}: expected a parquet file, found {one_line(error)}{behind(n_rows)}; "
            f"the file is cut or damaged: fetch it again"
        ) from None


@dataclass(frozen=True)
class _BadCell:
    """What Python cannot hold: bytes that are no text, a time beyond its calendar."""

    error: Exception

    def described(self, place: str, column: str) -> SourceError:
        """The line for the user."""
        if isinstance(self.error, UnicodeDecodeError):
            return not_utf8(place, self.error.object[self.error.start])
        return SourceError(
            f"{place}: expected a value in column {column!r} that Python can hold, "
            f"found {named(self.error)}"
        )


def _texts_of(batch: pa.RecordBatch, n_before: int, reading: Reading) -> Rows:
    """The rows of a batch that count, numbered from behind the `n_before` rows before it."""
    columns = batch.schema.names  # arrow adds those named like "text.length" to "text"
    text_index = columns.index(reading.text_column)
    values = (_cells_of(batch.column(column)) for column in columns)
    for n_rows, cells in enumerate(zip(*values, strict=True), start=n_before + 1):
        text = cells[text_index]
        if not reading.where and isinstance(text, str) and len(text) <= MAX_ROW_BYTES:
            yield n_rows, text  # without the cost of what the others need
            continue
        place = f"{reading.name}: row {n_rows}"
        row = dict(zip(columns, cells, strict=True))
        bad = next((column for column in columns if isinstance(row[column], _BadCell)), None)
        if bad is not None:
            yield n_rows, row[bad].described(place, bad)
        elif isinstance(text, str) and len(text) > MAX_ROW_BYTES:
            yield n_rows, too_long(place)
        elif (document := reading.document(row, place)) is not None:
            yield n_rows, document


def _cells_of(column: pa.Array) -> list:
    """The values of a column, with a `_BadCell` for each that Python cannot hold."""
    # 0.9 and not the 0.8999999761581421 that stands for it.
    if column.type == pa.float32():
        column = column.cast(pa.string()).cast(pa.float64())
    elif column.type == pa.float16():  # of which pyarrow writes every digit
        return [None if value is None else _short(float(value)) for value in column.to_pylist()]
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):  # both a byte that is not UTF-8 and pyarrow's own
        return [_cell(scalar) for scalar in column]


def _short(value: float) -> float:
    """The number of the fewest digits for a value of two bytes; whole ones stay as they are."""
    return value if value.is_integer() else float(str(np.float16(value)))


def _cell(scalar: pa.Scalar) -> object:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError) as error:
        return _BadCell(error)


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
        raise reading.other_type(reading.name, str(arrow_type))


def _groups_behind(metadata: pq.FileMetaData, n_rows: int) -> tuple[int, list[int]]:
    """The rows of the row groups that end within the first `n_rows`, and the other row groups."""
    n_passed = 0
    for group in range(metadata.num_row_groups):
        if n_passed + metadata.row_group(group).num_rows > n_rows:
            return n_passed, list(range(group, metadata.num_row_groups))
        n_passed += metadata.row_group(group).num_rows
    return n_passed, []


def _buffer_bytes(metadata: pq.FileMetaData) -> int:
    """0 reads a column of a row group as a whole, in which a damaged page can claim no more.

    Behind a buffer, a page may claim up to 2 GiB.
    """
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    is_small = all(group.total_byte_size <= MAX_ROW_BYTES for group in groups)
    return 0 if is_small else CHUNK_BYTES


def _rows_per_batch(metadata: pq.FileMetaData, name: str) -> int:
    """As many rows as have some `CHUNK_BYTES` in the row group of the longest.

    A row group knows only the bytes of all columns together. The columns know theirs, but at a
    damaged one pyarrow ends the process.
    """
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    longest = max((g.total_byte_size // max(1, g.num_rows) for g in groups), default=0)
    if longest > MAX_ROW_BYTES:
        raise too_long(f"{name}: rows")
    return max(1, min(MAX_BATCH_ROWS, CHUNK_BYTES // max(1, longest)))
