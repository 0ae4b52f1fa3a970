"""Parquet files: the checksums of their pages, and cells that Python cannot hold."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.table_files import parquet_table, written

from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.data.sources import parquet_rows
from modeling_gpt2scratch.data.sources.filters import parse_condition
from modeling_gpt2scratch.data.sources.local_files import read_documents
from modeling_gpt2scratch.data.sources.rows import BadRows

DOCUMENTS = [f"document {i} {i * i}" for i in range(2000)]


def texts_of(path, **options):
    return [text for _, text in read_documents(path, **options)]


def refusal(path, **options):
    with pytest.raises(SourceError) as caught:
        texts_of(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "none"},
        {"compression": "zstd", "use_dictionary": False},
        {"data_page_version": "2.0"},
    ],
    ids=str,
)
def test_no_flipped_bit_of_a_page_with_a_checksum_gives_other_text(tmp_path, options):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": DOCUMENTS})
    pq.write_table(table, path, write_page_checksum=True, **options)
    whole = path.read_bytes()
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    bits = range(8 * start, 8 * (start + column.total_compressed_size))
    n_refused = 0
    for bit in random.Random(0).sample(bits, 60):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert texts_of(written(path, bytes(damaged))) == DOCUMENTS
        except SourceError as error:
            assert str(error).startswith(f"{path}: expected a parquet file, found ")
            n_refused += 1
    assert n_refused > 50  # the heads of pages hold a few bits that do not matter


def test_a_head_of_a_page_that_hides_rows_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table({"text": ["a"] * 60}), path, write_page_checksum=True, **options)
    whole, n_hidden = path.read_bytes(), 0
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    # The head is short, and the checksum covers what follows.
    for bit in range(8 * column.data_page_offset, 8 * (column.data_page_offset + 40)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert texts_of(written(path, bytes(damaged))) == ["a"] * 60
        except SourceError as error:
            n_hidden += "rows in place of 60" in str(error)
    assert n_hidden > 0


def test_a_damaged_page_names_the_row_before_it_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_rows, "MAX_BATCH_ROWS", 500)
    path = tmp_path / "a.parquet"
    table = pa.table({"text": DOCUMENTS})
    options = {"use_dictionary": False, "compression": "none", "row_group_size": 1000}
    pq.write_table(table, path, write_page_checksum=True, **options)
    content = path.read_bytes()
    written(path, content.replace(b"document 1500", b"document 1501", 1))
    message = refusal(path)
    assert "CRC checksum" in message
    assert message.endswith("(behind row 1000); the file is cut or damaged: fetch it again")


def bad_utf8(*values):
    """A column of text that holds any bytes."""
    raw = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), raw.buffers())


def test_rows_that_are_not_utf8_are_left_out_and_counted(tmp_path):
    column = bad_utf8(b"one", b"\xff", b"three", b"caf\xe9", b"five")
    path = written(tmp_path / "a.parquet", parquet_table(column))
    bad_rows = BadRows("skip")
    kept = list(read_documents(path, bad_rows=bad_rows))
    assert kept == [(1, "one"), (3, "three"), (5, "five")]
    assert bad_rows.count == 2
    later = BadRows("skip")
    assert list(read_documents(path, skip_rows=3, bad_rows=later)) == kept[2:]
    assert later.count == 1


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (bad_utf8(b"en", b"\xff"), "expected UTF-8, found byte 0xff"),
        (
            pa.array([0, 2**52], pa.timestamp("ms")),
            "expected a value in column 'other' that",
        ),
    ],
    ids=["bytes", "time"],
)
def test_a_cell_that_a_condition_cannot_look_at_is_refused_with_its_row(tmp_path, column, found):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one", "two"], "other": column}), path)
    assert texts_of(path) == ["one", "two"]  # nobody asks for the column
    where = [parse_condition("other != null")]
    assert refusal(path, where=where).startswith(f"{path}: row 2: {found}")
    assert texts_of(path, where=where, bad_rows=BadRows("skip")) == ["one"]


def test_a_text_beyond_the_limit_is_refused_with_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_rows, "MAX_ROW_BYTES", 1000)
    path = written(tmp_path / "a.parquet", parquet_table(["x" * 1000, "y" * 1001, *"zzzzz"]))
    assert refusal(path).startswith(f"{path}: row 2: expected at most ")
    assert texts_of(path, bad_rows=BadRows("skip")) == ["x" * 1000, *"zzzzz"]


def test_rows_that_cannot_fit_are_refused_before_one_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_rows, "MAX_ROW_BYTES", 1000)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x" * 3000]}), path, use_dictionary=False)
    message = refusal(path, bad_rows=BadRows("skip"))
    assert message.startswith(f"{path}: rows: expected at most 128 MiB, found more")


def test_a_condition_compares_what_a_number_of_four_bytes_is_written_as(tmp_path):
    scores = pa.array([0.9, 0.8, None, float("inf")], pa.float32())
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one", "two", "three", "four"], "score": scores}), path)
    for condition, expected in (
        ("score == 0.9", ["one"]),
        ("score != null", ["one", "two", "four"]),
    ):
        assert texts_of(path, where=[parse_condition(condition)]) == expected
    where = [parse_condition("score != null"), parse_condition("score >= 0.9")]
    assert texts_of(path, where=where) == ["one", "four"]


def test_a_condition_compares_what_a_number_of_two_bytes_is_written_as(tmp_path):
    scores = pa.array([0.9, 65504.0, None, float("inf"), float("nan")], pa.float32())
    path = tmp_path / "a.parquet"
    table = {"text": ["one", "two", "three", "four", "five"], "score": scores.cast(pa.float16())}
    pq.write_table(pa.table(table), path)
    for condition, expected in (
        ("score == 0.9", ["one"]),
        ("score == 65504", ["two"]),
        ("score != null", ["one", "two", "four", "five"]),
    ):
        assert texts_of(path, where=[parse_condition(condition)]) == expected
    where = [parse_condition("score != null"), parse_condition("score >= 0.9")]
    assert texts_of(path, where=where) == ["one", "two", "four"]
