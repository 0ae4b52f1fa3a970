"""Text files: valid rows that Python alone would refuse, and the limit of what a row may hold."""

import gzip
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.processes import run_process
from support.table_files import COMPRESS, csv_table, jsonl, written

from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.data.sources import local_files, text_rows
from modeling_gpt2scratch.data.sources.filters import parse_condition
from modeling_gpt2scratch.data.sources.local_files import read_documents
from modeling_gpt2scratch.data.sources.rows import BadRows


def texts_of(path, **options):
    return [text for _, text in read_documents(path, **options)]


def refusal(path, **options):
    with pytest.raises(SourceError) as caught:
        texts_of(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Valid rows


def test_an_integer_that_python_refuses_to_read_does_not_hide_the_text(tmp_path):
    huge = b"9" * 5000
    lines = [
        b'{"text": "one", "n": ' + huge + b"}",
        b'{"text": "two", "n": -' + huge + b', "m": [1, 2.5, {"k": ' + huge + b"}]}",
        b'{"text": "three", "n": 4}',
    ]
    path = written(tmp_path / "a.jsonl", b"\n".join(lines))
    assert texts_of(path) == ["one", "two", "three"]
    assert texts_of(path, where=[parse_condition("n > 1000")]) == ["one"]
    assert texts_of(path, where=[parse_condition("n == 4")]) == ["three"]


def test_bytes_that_are_not_utf8_in_a_csv_column_nobody_asked_for_do_not_matter(tmp_path):
    path = written(tmp_path / "a.csv", b"id,text\n\xff,one\n2,caf\xe9\n3,three\n")
    assert refusal(path) == f"{path}:3: expected UTF-8, found byte 0xe9; convert the file first"
    assert texts_of(path, bad_rows=BadRows("skip")) == ["one", "three"]


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_broken_quote_in_csv_ends_the_reading_as_the_next_row_may_be_within_it(tmp_path, policy):
    path = tmp_path / "a.csv"
    path.write_text('text,label\nfine,0\n"He said "hi" to\nher.",1\n')
    with pytest.raises(SourceError, match=r"a\.csv:3: expected CSV, found .*; double each quote"):
        texts_of(path, bad_rows=BadRows(policy))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('text\n"fine, because quoted"\nHello, world, again\n', "3 for 1"),
        ("id,text,language\n1,one,en\n2,a break\nin a cell,en\n", "2 for 3"),
        ("id,text,language\n1,one,en\n2,the end is mis", "2 for 3"),
    ],
)
def test_a_csv_row_of_more_or_fewer_cells_than_columns_is_refused(tmp_path, content, found):
    path = tmp_path / "a.csv"
    path.write_text(content)
    assert refusal(path) == (
        f"{path}:3: expected as many cells as columns, found {found} in the header; put cells with "
        f"commas or line breaks in quotes, fill up short rows with commas"
    )


def test_empty_cells_and_columns_of_spreadsheets_are_no_fault(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("label,text,,\nham,one,,\nham,two,,,\n")
    assert texts_of(path) == ["one", "two"]


def test_a_csv_header_that_names_a_column_twice_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,text\none,two\n")
    assert refusal(path) == f"{path}:1: expected columns of different names, found 'text' twice"


@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.jsonl"])
def test_utf16_is_refused_in_one_line(tmp_path, name):
    path = written(tmp_path / name, "id,text\n1,one\n".encode("utf-16"))
    assert ": expected UTF-8, found byte 0xff; convert the file first" in refusal(path)


@pytest.mark.parametrize("text", ["Plain letters.\n", "Русский текст, как он есть.\n", "ไทย ก\n"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_its_mark_is_refused_in_one_line(tmp_path, text, encoding):
    path = written(tmp_path / "a.txt", text.encode(encoding))
    message = "document 1: expected text in UTF-8, found control characters, as in UTF-16"
    assert refusal(path) == f"{path}: {message}; convert the file first"


@pytest.mark.parametrize(("name", "place"), [("a.csv", ":1"), ("a.jsonl", ":1")])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_table_in_utf16_without_its_mark_is_named_as_such(tmp_path, name, place, encoding):
    rows = {"a.csv": "id,text\n1,one\n", "a.jsonl": '{"text": "one"}\n'}
    path = written(tmp_path / name, rows[name].encode(encoding))
    message = refusal(path)
    assert message.startswith(f"{path}{place}: expected ")
    assert message.endswith("found zero bytes, as in UTF-16; convert the file to UTF-8 first")


def test_colours_of_a_terminal_are_no_other_encoding(tmp_path):
    path = written(tmp_path / "a.txt", b"one \x1b[31mred\x1b(B\x1b[m word\n")
    assert texts_of(path) == ["one \x1b[31mred\x1b(B\x1b[m word"]


def test_marks_of_the_byte_order_in_files_that_were_joined_are_no_text(tmp_path):
    mark = "\ufeff"
    text = f"{mark}one<|endoftext|>\n{mark}two<|endoftext|>{mark}"
    assert texts_of(written(tmp_path / "a.txt", text.encode())) == ["one", "two"]
    rows = "".join(f'{mark}{{"text": "{word}"}}\n' for word in ("one", "two"))
    assert texts_of(written(tmp_path / "a.jsonl", rows.encode())) == ["one", "two"]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_table_with_other_separators_is_named_as_such(tmp_path, separator):
    path = written(tmp_path / "a.csv", f"id{separator}text\n1{separator}one\n".encode())
    assert "expected columns separated by commas, found columns ['id" in refusal(path)


def test_columns_without_a_name_at_the_end_need_no_cells(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label,,\none,ham\ntwo,ham,\n")
    assert texts_of(path) == ["one", "two"]


def test_text_that_changes_its_alphabet_by_escapes_is_refused(tmp_path):
    path = written(tmp_path / "a.txt", "日本語の文".encode("iso-2022-jp"))
    assert refusal(path).endswith(
        "found control characters, as in ISO-2022; convert the file first"
    )


# Rows that cannot be read


BAD = {
    "a.jsonl": b"\n".join(
        [
            *(b'{"text": "one"}', b"{oops}", b'{"text": null}', b"[]", b'{"id": 1}'),
            *(b'{"text": "\xff"}', b'{"text": 5}', b"[" * 100_000, b'{"text": "nine"}'),
        ]
    ),
    "a.csv": b"id,text\n1,one\n2,a,b\n3\n4,\xff\n5,six\n",
    "a.txt": b"one<|endoftext|>\xff<|endoftext|>three",
}


@pytest.mark.parametrize(
    ("name", "kept", "n_bad"),
    [
        ("a.jsonl", [(1, "one"), (9, "nine")], 7),
        ("a.csv", [(1, "one"), (5, "six")], 3),
        ("a.txt", [(1, "one"), (3, "three")], 1),
    ],
)
@pytest.mark.parametrize("suffix", COMPRESS)
def test_bad_rows_are_left_out_and_counted(tmp_path, name, suffix, kept, n_bad):
    path = written(tmp_path / f"{name}{suffix}", COMPRESS[suffix](BAD[name]))
    bad_rows = BadRows("skip")
    assert list(read_documents(path, bad_rows=bad_rows)) == kept
    assert bad_rows.count == n_bad
    assert list(read_documents(path, skip_rows=kept[-1][0] - 1, bad_rows=BadRows())) == kept[-1:]


@pytest.mark.parametrize("name", BAD)
def test_the_first_bad_row_stops_where_nothing_else_is_said(tmp_path, name):
    path = written(tmp_path / name, BAD[name])
    place = {"a.txt": ": document 2", "a.jsonl": ":2", "a.csv": ":3"}[name]
    assert refusal(path).startswith(f"{path}{place}: expected ")


def test_rows_of_other_kinds_than_a_condition_expects_are_bad_rows(tmp_path):
    rows = [{"text": "one", "n": 5}, {"text": "two", "n": "x"}, {"text": "three"}]
    path = written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)).encode())
    bad_rows = BadRows("skip")
    assert texts_of(path, where=[parse_condition("n > 1")], bad_rows=bad_rows) == ["one"]
    assert bad_rows.count == 2


def test_only_the_first_bad_rows_are_named(tmp_path, capsys):
    path = written(tmp_path / "a.jsonl", b"{}\n" * 20 + jsonl(["one"]))
    bad_rows = BadRows("skip")
    assert texts_of(path, bad_rows=bad_rows) == ["one"]
    lines = capsys.readouterr().err.splitlines()
    assert bad_rows.count == 20
    assert [line.split(": ")[1] for line in lines] == [f"{path}:{n}" for n in range(1, 6)]
    assert lines[-1].endswith("; further ones are only counted")


# Limits


@pytest.fixture
def limit(monkeypatch):
    """Rows of at most 100 bytes, and chunks of 16."""
    monkeypatch.setattr(text_rows, "MAX_ROW_BYTES", 100)
    monkeypatch.setattr(text_rows, "MAX_TEXT_BYTES", 100)
    monkeypatch.setattr(text_rows, "CHUNK_BYTES", 16)


def test_a_line_of_json_beyond_the_limit_is_refused_with_its_number(tmp_path, limit):
    fits, is_long = b'{"text": "%s"}' % (b"a" * 88), b'{"text": "%s"}' % (b"b" * 89)
    assert len(fits) == 100
    lines = [fits, is_long, fits, is_long * 9, fits, is_long]
    path = written(tmp_path / "a.jsonl", b"\n".join(lines))
    assert refusal(path) == (
        f"{path}:2: expected at most 128 MiB, found more; make several documents of it"
    )
    bad_rows = BadRows("skip")
    assert [n for n, _ in read_documents(path, bad_rows=bad_rows)] == [1, 3, 5]
    assert bad_rows.count == 3


@pytest.mark.parametrize("on_bad_row", ["stop", "skip"])
@pytest.mark.parametrize(
    ("rows", "line"),
    [(["one line" * 20], 3), (["lines\n" * 30], 19), (['"', "lines\n" * 30], 20)],
)
def test_a_row_of_csv_beyond_the_limit_ends_the_reading(tmp_path, limit, rows, line, on_bad_row):
    # Where the next row begins, nobody knows then.
    content = csv_table(["fits", *rows, "fits, too"])
    path = written(tmp_path / "a.csv", content)
    message = refusal(path, bad_rows=BadRows(on_bad_row))
    assert message.startswith(f"{path}:{line}: expected at most 128 MiB, found more; close its ")


def test_a_quote_that_is_never_closed_does_not_fill_the_memory(tmp_path, limit):
    path = written(tmp_path / "a.csv", b'text\n"open\n' + b"row\n" * 1000)
    assert refusal(path).startswith(f"{path}:26: expected at most ")


@given(sizes=st.lists(st.integers(0, 250), min_size=1, max_size=6))
def test_a_text_beyond_the_limit_is_left_out_and_its_neighbours_stay(tmp_path_factory, sizes):
    path = tmp_path_factory.mktemp("limit") / "a.txt"
    texts = [chr(ord("a") + i) * size for i, size in enumerate(sizes)]
    path.write_text("<|endoftext|>".join(texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_rows, "MAX_TEXT_BYTES", 100)
        patch.setattr(text_rows, "CHUNK_BYTES", 7)
        kept = texts_of(path, bad_rows=BadRows("skip"))
    # The limit is checked in whole chunks, and a mark may lie in the chunk.
    assert [text for text in kept if len(text) <= 80] == [t for t in texts if 0 < len(t) <= 80]
    assert {*kept} <= {text for text in texts if len(text) <= 130}


def test_a_line_of_a_joined_text_beyond_the_limit_is_refused(tmp_path, limit):
    path = written(tmp_path / "a.txt", b"# one\n" + b"x" * 500 + b"\n# two\n")
    options = {"document_start": "#"}
    assert refusal(path, **options).startswith(f"{path}: line 2: expected at most ")
    assert texts_of(path, bad_rows=BadRows("skip"), **options) == ["# one\n", "# two\n"]


def test_rows_that_join_to_no_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(local_files, "MAX_TEXT_BYTES", 100)
    path = written(tmp_path / "a.jsonl", jsonl(["one row"] * 50))
    message = refusal(path, document_start="never")
    assert message.startswith(f"{path}: the document with row 15: expected at most 0 MiB")


READ_WITH_LITTLE_MEMORY = """
import re, sys
from pathlib import Path
from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.data.sources.local_files import read_documents
try:
    for _ in read_documents(Path(sys.argv[1])):
        pass
except SourceError as error:
    print(error)
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the memory from /proc")
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.txt.gz"])
def test_a_small_file_of_a_long_line_does_not_fill_the_memory(tmp_path, name):
    path = tmp_path / name
    start = {"a.jsonl.gz": b'{"text": "', "a.csv.gz": b"text\n", "a.txt.gz": b""}[name]
    with open(path, "wb") as file:  # members one after another are one file
        file.write(gzip.compress(start, 1))
        file.write(gzip.compress(b"a" * 10**6, 1) * 1500)
    finished = run_process([sys.executable, "-c", READ_WITH_LITTLE_MEMORY, path], check=True)
    message, peak_kib = finished.stdout.splitlines()
    assert message.startswith(str(path)) and "expected at most " in message
    limit = text_rows.MAX_TEXT_BYTES if name == "a.txt.gz" else 4 * text_rows.MAX_ROW_BYTES
    assert int(peak_kib) * 1024 < limit + 300 * 2**20
