"""One clear line, with the file and the place in it, for content that cannot be read."""

import gzip
import io
import os
import socket
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.processes import run_process
from support.table_files import COMPRESS, DOCUMENTS, csv_table, jsonl, parquet_table, written

from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.data.sources.filters import parse_condition
from modeling_gpt2scratch.data.sources.local_files import find_files, read_documents
from modeling_gpt2scratch.data.sources.rows import RowRules


def refusal(path, **options):
    """The one-line message of the SourceError that reading ends in."""
    with pytest.raises(SourceError) as caught:
        list(read_documents(path, **options))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_a_file_that_is_not_utf8_is_refused_by_name(tmp_path, name):
    path = written(tmp_path / name, "text\ncafé au lait\n".encode("latin-1"))
    if name == "a.jsonl":
        written(path, b'{"text": "fine"}\n{"text": "caf\xe9 au lait"}\n')
    place = {"a.txt": ": document 1"}.get(name, ":2")
    message = refusal(path)
    assert message == f"{path}{place}: expected UTF-8, found byte 0xe9; convert the file first"


@pytest.mark.parametrize(
    "line", [b"{oops}", b'{"text": "cut', b'{"text": "a"} {"text": "b"}', b"text"]
)
def test_a_line_that_is_not_json_is_refused_with_its_number(tmp_path, line):
    path = written(tmp_path / "a.jsonl", jsonl(["one"]) + b"\n" + line + b"\n" + jsonl(["two"]))
    assert refusal(path).startswith(f"{path}:3: expected one JSON object per line, found ")


def test_a_line_that_python_cannot_decode_is_refused_with_its_number(tmp_path):
    line = b'{"text": "a", "meta": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    path = written(tmp_path / "a.jsonl", jsonl(["one"]) + line)
    assert refusal(path).startswith(f"{path}:2: expected one JSON object per line, found ")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"story": "a", "id": 1}', "columns ['id', 'story']"),
        (b"{}", "columns []"),
        (b'{"text": 5}', "a value of type int"),
        (b'{"text": ["a"]}', "a value of type list"),
    ],
)
def test_a_line_without_text_is_refused_with_its_number(tmp_path, line, found):
    path = written(tmp_path / "a.jsonl", jsonl(["one"]) + line + b"\n")
    rest = "; see --text_column"
    if found.startswith("a "):
        rest = " there; write one text per row first, or name another --text_column"
    assert refusal(path) == f"{path}:2: expected text in column 'text', found {found}{rest}"


@pytest.mark.parametrize(("line", "found"), [(b'["a"]', "list"), (b'"a"', "str")])
def test_a_line_that_is_no_object_is_refused_as_such(tmp_path, line, found):
    path = written(tmp_path / "a.jsonl", jsonl(["one"]) + line + b"\n")
    assert (
        refusal(path)
        == f"{path}:2: expected one JSON object per line, found a value of type {found}"
    )


def test_a_csv_file_without_the_column_is_refused_with_its_columns(tmp_path):
    path = written(tmp_path / "a.csv", b"id,story\r\n1,a\r\n")
    assert refusal(path) == (
        f"{path}:1: expected text in column 'text', found columns ['id', 'story']; "
        "see --text_column"
    )


def test_a_parquet_file_without_the_column_is_refused_with_its_columns(tmp_path):
    path = written(tmp_path / "a.parquet", parquet_table(DOCUMENTS, column="story"))
    assert refusal(path) == (
        f"{path}: expected text in column 'text', found columns ['id', 'story']; see --text_column"
    )


@pytest.mark.parametrize(
    "values", [[1, 2], [b"bytes"], [["a"]], [{"a": "b"}]], ids=["int", "bytes", "list", "struct"]
)
def test_a_parquet_column_of_something_else_is_refused_by_name(tmp_path, values):
    path = written(tmp_path / "a.parquet", parquet_table(values))
    assert refusal(path).startswith(f"{path}: expected text in column 'text', found ")


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("n_missing", [3, 2000])
def test_a_truncated_file_is_refused_by_name(tmp_path, suffix, n_missing):
    content = COMPRESS[suffix](b"".join(jsonl([f"{i} {i * i}"]) for i in range(2000)))
    path = written(tmp_path / f"a.jsonl{suffix}", content[:-n_missing])
    assert refusal(path).startswith(f"{path}: cannot be read: ")


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_file_that_is_not_compressed_as_its_name_says_is_refused_by_name(tmp_path, suffix):
    path = written(tmp_path / f"a.jsonl{suffix}", jsonl(DOCUMENTS))
    assert refusal(path).startswith(f"{path}: cannot be read: ")


def test_a_gzip_file_with_a_damaged_middle_is_refused_by_name(tmp_path):
    content = bytearray(gzip.compress(b"".join(jsonl([f"{i} {i * i}"]) for i in range(2000))))
    # The first bits behind the 10 bytes of gzip's header now announce a block type that is none.
    content[10] = 0xFF
    path = written(tmp_path / "a.jsonl.gz", bytes(content))
    assert refusal(path).startswith(f"{path}: cannot be read: ")


@pytest.mark.parametrize("change", [lambda c: b"", lambda c: c[: len(c) // 2], lambda c: c[4:-4]])
def test_a_broken_parquet_file_is_refused_by_name(tmp_path, change):
    content = parquet_table([f"document {i}" for i in range(100)])
    path = written(tmp_path / "a.parquet", change(content))
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert "expected a parquet file, found " in message or message.endswith(
        "expected data, found an empty file; copy or download it again"
    )


def test_a_parquet_file_with_a_damaged_page_is_refused_by_name(tmp_path):
    content = bytearray(parquet_table([f"document {i}" for i in range(3000)]))
    column = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0).column(1)
    start = column.dictionary_page_offset
    content[start : start + 40] = b"\xff" * 40
    path = written(tmp_path / "a.parquet", bytes(content))
    assert refusal(path).startswith(f"{path}: ")


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_compressed_file_is_refused_wherever_it_was_cut(tmp_path, suffix):
    content = COMPRESS[suffix](b"".join(jsonl([f"{i} {i * i}"]) for i in range(300)))
    path = tmp_path / f"a.jsonl{suffix}"
    for n_bytes in (*range(0, 30), *range(30, len(content) - 30, 50), *range(-29, 0)):
        message = refusal(written(path, content[:n_bytes]))
        assert message.startswith(f"{path}: cannot be read: "), n_bytes


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"text": null}\n', ":2"),
        ("a.parquet", parquet_table(["one", None]), ": row 2"),
    ],
)
def test_a_null_is_refused_with_its_place_and_the_condition_that_helps(
    tmp_path, name, content, place
):
    path = written(tmp_path / name, content)
    assert refusal(path) == (
        f"{path}{place}: expected text in column 'text', found null; "
        '--where "text != null" leaves such rows out'
    )
    kept = list(read_documents(path, where=[parse_condition("text != null")]))
    assert [n_rows for n_rows, _ in kept] == [1]


def test_a_null_behind_skipped_rows_is_refused_with_its_place_in_the_file(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [*(["text"] * 24), None]})
    pq.write_table(table, path, row_group_size=10)
    assert refusal(path, skip_rows=13).startswith(f"{path}: row 25: expected text")


def test_a_csv_file_without_a_header_is_refused_with_what_stands_for_it(tmp_path):
    path = written(tmp_path / "a.csv", b"1," + b"x" * 100_000 + b"\r\n2,b\r\n")
    assert refusal(path) == (
        f"{path}:1: expected text in column 'text', found columns ['1', '{'x' * 40}...']; "
        "see --text_column"
    )


def test_a_csv_file_that_ends_inside_quotes_is_refused_with_its_line(tmp_path):
    path = written(tmp_path / "a.csv", b'id,text\n1,one\n2,"two\nlines\n')
    assert refusal(path) == (
        f"{path}:4: expected CSV, found unexpected end of data; double each quote within quotes"
    )


def test_a_column_that_a_parquet_file_has_twice_is_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    message = refusal(tmp_path / "a.parquet")
    assert message == f"{tmp_path / 'a.parquet'}: expected one column 'text', found several"


def test_a_condition_on_a_column_that_is_not_there_is_refused_before_any_row(tmp_path):
    path = written(tmp_path / "a.parquet", parquet_table([], type=pa.string()))
    assert refusal(path, where=[parse_condition("score > 1")]) == (
        f"{path}: expected column 'score' for --where 'score > 1', found columns ['id', 'text']; "
        "--on_bad_row skip leaves such rows out"
    )


@pytest.mark.parametrize("arrow_type", [pa.string(), pa.large_string()])
def test_a_parquet_text_that_is_not_utf8_is_refused_by_name(tmp_path, arrow_type):
    raw = pa.array([b"fine", b"caf\xe9 au lait"], pa.binary())
    if arrow_type == pa.large_string():
        raw = raw.cast(pa.large_binary())
    array = pa.Array.from_buffers(arrow_type, 2, raw.buffers())
    path = written(tmp_path / "a.parquet", parquet_table(array))
    message = refusal(path)
    assert message == f"{path}: row 2: expected UTF-8, found byte 0xe9; convert the file first"


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv.gz", "a.parquet", "a.jsonl.zst"])
def test_a_directory_in_place_of_a_file_is_refused_by_name(tmp_path, name):
    (tmp_path / name).mkdir()
    assert refusal(tmp_path / name).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_that_may_not_be_read_is_refused_by_name(tmp_path, name):
    path = written(tmp_path / name, b"text")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        message = refusal(path)
    finally:
        if user == 0:
            os.seteuid(0)
    assert message.startswith(f"{path}: ")
    assert "Permission denied" in message


def test_another_name_stands_for_the_path_and_tells_the_format(tmp_path):
    path = written(tmp_path / "3f1a9c", jsonl(["one"]) + b"[]")
    name = "aesop/fables/data/train.jsonl"
    assert refusal(path, name=name).startswith(f"{name}:2: expected one JSON object")
    assert refusal(written(path, b""), name=f"{name}.gz").startswith(f"{name}.gz: cannot be read")


def test_a_file_of_an_unknown_kind_is_refused_before_it_is_opened(tmp_path):
    with pytest.raises(SourceError, match="a.pdf: expected a file ending in .txt, "):
        read_documents(tmp_path / "a.pdf")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.parquet", "a.jsonl.zst"])
def test_a_pointer_of_git_lfs_is_no_text(tmp_path, name):
    path = written(tmp_path / name, POINTER)
    assert refusal(path) == (
        f"{path}: cannot be read: expected data, found a Git-LFS pointer; run `git lfs pull` there"
    )


def test_only_regular_files_are_read(tmp_path):
    written(tmp_path / "a.jsonl", jsonl(["one"]))
    (tmp_path / "b.jsonl").symlink_to(written(tmp_path.parent / "other.jsonl", jsonl(["two"])))
    os.mkfifo(tmp_path / "c.jsonl")
    os.mkfifo(tmp_path / "d.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "e.csv"))
    (tmp_path / "f.txt").symlink_to("/dev/zero")
    found = [file.path.name for file in find_files(str(tmp_path))]
    assert found == ["a.jsonl", "b.jsonl"]
    kinds = {"c.jsonl": "a pipe", "d.txt": "a pipe", "e.csv": "a socket", "f.txt": "a device"}
    for name, kind in kinds.items():
        expected = f"{tmp_path / name}: expected a regular file, found {kind}"
        assert refusal(tmp_path / name) == expected
        with pytest.raises(SourceError) as caught:
            find_files(str(tmp_path / name))
        assert str(caught.value) == expected


def test_a_link_to_nothing_is_refused_and_not_passed_over(tmp_path):
    written(tmp_path / "a.jsonl", jsonl(["one"]))
    (tmp_path / "b.jsonl").symlink_to("nowhere")
    with pytest.raises(SourceError, match=r"b\.jsonl: expected a file, found a link to nowhere, w"):
        find_files(str(tmp_path))
    (tmp_path / "b.jsonl").rename(tmp_path / "b.md")  # which would not be read anyway
    assert [file.path.name for file in find_files(str(tmp_path))] == ["a.jsonl"]


@pytest.mark.parametrize("error", [OverflowError("too large"), MemoryError(), KeyError("a")])
def test_an_error_that_nobody_expects_names_the_file_and_the_row_before_it(
    tmp_path, monkeypatch, error
):
    def document(self, row, place, **options):
        if row["text"] == "two":
            raise error
        return row["text"]

    monkeypatch.setattr(RowRules, "document", document)
    path = written(tmp_path / "a.jsonl", jsonl(["one", "two"]))
    message = refusal(path)
    assert message.startswith(f"{path}: cannot be read: {type(error).__name__}")
    assert message.endswith(" (behind row 1)")


READ_AND_MEASURE = """
import re, sys
from pathlib import Path
from modeling_gpt2scratch.data.sources.local_files import read_documents
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
n_characters = sum(len(text) for _, text in read_documents(Path(sys.argv[1])))
print(n_characters, peak() - before)
"""


@pytest.mark.gate
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the memory from /proc")
@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.zst", "a.csv", "a.txt"])
def test_a_large_file_is_never_in_memory_as_a_whole(tmp_path, name):
    # 200 MB that do not compress to nothing, in parquet as a single row group.
    documents = [os.urandom(1000).hex() for _ in range(100_000)]
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.table({"text": documents}), path, row_group_size=len(documents))
    elif name == "a.csv":
        written(path, csv_table(documents))
    elif name == "a.txt":
        written(path, "<|endoftext|>".join(documents).encode())
    else:
        written(path, COMPRESS[path.suffix.replace(".jsonl", "")](jsonl(documents)))
    command = [sys.executable, "-c", READ_AND_MEASURE, path]
    finished = run_process(command, check=True)
    n_characters, grown_kib = map(int, finished.stdout.split())
    assert n_characters == 200_000_000
    assert grown_kib < 64 * 1024
