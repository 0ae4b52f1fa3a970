"""Documents from files, docstrings and the Hub, and one clear line for whatever cannot be read."""

import csv
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import fake_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling_gpt2scratch import text_sources
from modeling_gpt2scratch.text_sources import SourceError, open_source

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = ["The ant stored grain.", "Größe: 5 µm\nzwei Zeilen", "狐と葡萄 🍇", 'a "quoted", word']


def compressed_zst(content):
    """A zstd frame; the standard library has no zstd before Python 3.14."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": compressed_zst}


def jsonl(documents, column="text"):
    """One JSON object per document, as bytes."""
    return "".join(json.dumps({"id": 1, column: text}) + "\n" for text in documents).encode()


def csv_table(documents, column="text"):
    """The documents as the second column of a CSV file, as bytes."""
    file = io.StringIO(newline="")
    csv.writer(file).writerows([["id", column], *([1, text] for text in documents)])
    return file.getvalue().encode()


def parquet_table(values, column="text", **arrow):
    """The values as the second column of a parquet file, as bytes."""
    sink = io.BytesIO()
    array = pa.array(values, **arrow)
    pq.write_table(pa.table({"id": list(range(len(array))), column: array}), sink)
    return sink.getvalue()


def written(path, content):
    """The path, now with this content."""
    path.write_bytes(content)
    return path


def documents_of(dataset, **options):
    """All documents; read twice, because a tokenizer may be trained on them first."""
    source = open_source(str(dataset), **options)
    documents = list(source)
    assert list(source) == documents
    return documents


def refusal(dataset, **options):
    """The one-line message of the SourceError that opening or reading ends in."""
    with pytest.raises(SourceError) as caught:
        list(open_source(str(dataset), **options))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


# Files that can be read


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_text_file_is_one_document(tmp_path, suffix):
    content = b"  Title\n\nFirst line.\r\nSecond line.\n"
    path = written(tmp_path / f"book.txt{suffix}", COMPRESS[suffix](content))
    assert documents_of(path) == ["Title\n\nFirst line.\nSecond line."]


def test_a_text_file_with_end_of_text_marks_is_split_at_them(tmp_path):
    content = b"one\n<|endoftext|>two<|endoftext|>\n\n<|endoftext|>three\nfour<|endoftext|>"
    path = written(tmp_path / "stories.txt", content)
    assert documents_of(path) == ["one", "two", "three\nfour"]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize(("kind", "table"), [(".jsonl", jsonl), (".csv", csv_table)])
def test_the_rows_of_a_table_are_read_through_any_compression(tmp_path, kind, table, suffix):
    path = written(tmp_path / f"fables{kind}{suffix}", COMPRESS[suffix](table(DOCUMENTS)))
    assert documents_of(path) == DOCUMENTS


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_compressed_pieces_one_after_another_are_read_to_the_end(tmp_path, suffix):
    pieces = [COMPRESS[suffix](jsonl([text])) for text in DOCUMENTS]
    path = written(tmp_path / f"fables.jsonl{suffix}", b"".join(pieces))
    assert documents_of(path) == DOCUMENTS


@pytest.mark.parametrize("arrow_type", [pa.string(), pa.large_string(), pa.string_view()])
def test_the_rows_of_a_parquet_file_are_read_across_row_groups(tmp_path, arrow_type):
    documents = [f"document {i}" for i in range(2500)]
    table = pa.table({"text": pa.array(documents, arrow_type)})
    pq.write_table(table, tmp_path / "fables.parquet", row_group_size=1000)
    assert documents_of(tmp_path / "fables.parquet") == documents


def test_a_csv_field_may_be_longer_than_128_kib(tmp_path):
    document = "a long, long tale\n" * 20_000
    assert len(document) > 2 * 128 * 1024
    path = written(tmp_path / "tales.csv", csv_table([document, "short"]))
    assert documents_of(path) == [document, "short"]


def test_a_csv_field_keeps_its_line_ends(tmp_path):
    document = "unix\nwindows\r\nold mac\rend"
    assert documents_of(written(tmp_path / "a.csv", csv_table([document]))) == [document]


@pytest.mark.parametrize(
    ("name", "table"),
    [("a.jsonl", jsonl), ("a.csv", csv_table), ("a.parquet", parquet_table)],
)
def test_another_column_may_hold_the_text(tmp_path, name, table):
    path = written(tmp_path / name, table(DOCUMENTS, column="story"))
    assert documents_of(path, text_column="story") == DOCUMENTS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", jsonl(["one", "", "two"]) + b"\n  \n" + jsonl(["three"])),
        ("a.csv", csv_table(["one", "", "two", "three"])),
        ("a.parquet", parquet_table(["one", "", "two", "three"])),
        ("a.txt", b"one<|endoftext|><|endoftext|>two<|endoftext|> \n <|endoftext|>three"),
    ],
)
def test_empty_documents_are_left_out(tmp_path, name, content):
    assert documents_of(written(tmp_path / name, content)) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", b""), ("a.csv", b""), ("a.txt", b""), ("a.jsonl.gz", b"")]
)
def test_an_empty_file_has_no_documents(tmp_path, name, content):
    assert documents_of(written(tmp_path / name, content)) == []


def test_a_glob_reads_its_files_in_the_order_of_their_names(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/1.jsonl", "a.jsonl", "c.jsonl", "a10.jsonl", "a2.jsonl"):
        written(tmp_path / name, jsonl([name]))
    written(tmp_path / "a.csv", b"not asked for")
    assert documents_of(tmp_path / "*.jsonl") == ["a.jsonl", "a10.jsonl", "a2.jsonl", "c.jsonl"]
    everywhere = ["a.jsonl", "a10.jsonl", "a2.jsonl", "b/1.jsonl", "c.jsonl"]
    assert documents_of(tmp_path / "**" / "*.jsonl") == everywhere


def test_a_glob_may_mix_formats(tmp_path):
    written(tmp_path / "1.jsonl", jsonl(["one"]))
    written(tmp_path / "2.txt.gz", gzip.compress(b"two"))
    written(tmp_path / "3.parquet", parquet_table(["three"]))
    assert documents_of(tmp_path / "*") == ["one", "two", "three"]


def test_a_file_whose_name_looks_like_a_glob_is_read(tmp_path):
    assert documents_of(written(tmp_path / "part[1].txt", b"one")) == ["one"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"text": "a\\ud800b \\udc00 \\ud83c\\udf47"}\n'),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a\\ud800b \\udc00 \\ud83c\\udf47"}\n')),
    ],
)
def test_lone_surrogates_are_replaced_and_pairs_are_kept(tmp_path, name, content):
    assert documents_of(written(tmp_path / name, content)) == ["a\ufffdb \ufffd \U0001f347"]


# Files that cannot be read


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_a_file_that_is_not_utf8_is_refused_by_name(tmp_path, name):
    path = written(tmp_path / name, "text\ncafé au lait\n".encode("latin-1"))
    if name == "a.jsonl":
        written(path, b'{"text": "caf\xe9 au lait"}\n')
    message = refusal(path)
    assert message == f"{path}: expected UTF-8, found byte 0xe9; convert the file first"


@pytest.mark.parametrize(
    "line", [b"{oops}", b'{"text": "cut', b'{"text": "a"} {"text": "b"}', b"text"]
)
def test_a_line_that_is_not_json_is_refused_with_its_number(tmp_path, line):
    path = written(tmp_path / "a.jsonl", jsonl(["one"]) + b"\n" + line + b"\n" + jsonl(["two"]))
    assert refusal(path).startswith(f"{path}:3: expected one JSON object per line, found ")


@pytest.mark.parametrize(
    "value", [b"9" * 5000, b"[" * 100_000 + b"]" * 100_000], ids=["long number", "deep nesting"]
)
def test_a_line_that_python_cannot_decode_is_refused_with_its_number(tmp_path, value):
    line = b'{"text": "a", "meta": ' + value + b"}\n"
    path = written(tmp_path / "a.jsonl", jsonl(["one"]) + line)
    assert refusal(path).startswith(f"{path}:2: expected one JSON object per line, found ")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"story": "a", "id": 1}', "columns ['id', 'story']"),
        (b"{}", "columns []"),
        (b'{"text": 5}', "a int there"),
        (b'{"text": null}', "a NoneType there"),
        (b'{"text": ["a"]}', "a list there"),
        (b'["a"]', "list"),
        (b'"a"', "str"),
    ],
)
def test_a_line_without_text_is_refused_with_its_number(tmp_path, line, found):
    path = written(tmp_path / "a.jsonl", jsonl(["one"]) + line + b"\n")
    assert refusal(path) == (
        f"{path}:2: expected text in column 'text', found {found}; see --text_column"
    )


@pytest.mark.parametrize(
    ("content", "line", "found"),
    [
        (b"id,story\r\n1,a\r\n", 2, "columns ['id', 'story']"),
        (b'id,text\r\n1,"two\r\nlines"\r\n2\r\n', 4, "a NoneType there"),
    ],
)
def test_a_csv_row_without_text_is_refused_with_its_line(tmp_path, content, line, found):
    path = written(tmp_path / "a.csv", content)
    assert refusal(path) == (
        f"{path}:{line}: expected text in column 'text', found {found}; see --text_column"
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
    assert refusal(path).startswith(f"{path}: expected a parquet file, found ")


def test_a_parquet_file_with_a_damaged_page_is_refused_by_name(tmp_path):
    content = bytearray(parquet_table([f"document {i}" for i in range(3000)]))
    column = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0).column(1)
    start = column.dictionary_page_offset
    content[start : start + 40] = b"\xff" * 40
    path = written(tmp_path / "a.parquet", bytes(content))
    assert refusal(path).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt.gz", "*.csv", "b/**/*.parquet"])
def test_a_file_or_glob_that_finds_nothing_is_refused_by_name(tmp_path, name):
    path = tmp_path / name
    assert refusal(path) == f"{path}: expected a file or glob, found nothing there"


@pytest.mark.parametrize("name", ["a.pdf", "a.json", "a.txt.bz2", "a"])
def test_a_file_of_an_unknown_kind_is_refused_with_the_known_ones(tmp_path, name):
    path = written(tmp_path / name, b"text")
    message = refusal(path)
    assert message.startswith(f"{path}: expected a file ending in .txt, .jsonl, .csv, .parquet (")
    assert "give a file or a glob" in message


def test_a_directory_is_refused_by_name(tmp_path):
    assert refusal(tmp_path).startswith(f"{tmp_path}: expected a file ending in .txt, ")


def test_one_bad_file_of_a_glob_is_refused_before_any_is_read(tmp_path):
    written(tmp_path / "1.jsonl", jsonl(DOCUMENTS))
    path = written(tmp_path / "2.pdf", b"")
    with pytest.raises(SourceError, match="2.pdf: expected a file ending in") as caught:
        open_source(str(tmp_path / "*"))
    assert str(caught.value).startswith(f"{path}: ")


# Docstrings


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Writes source files into a standard library and packages that are ours."""
    folders = {"stdlib": tmp_path / "stdlib", "purelib": tmp_path / "purelib"}
    paths = SimpleNamespace(get_path=lambda name: str(folders[name]))
    monkeypatch.setattr(text_sources, "sysconfig", paths)
    monkeypatch.setattr(text_sources, "DOCUMENTED_PACKAGES", ("alpha", "beta", "missing"))

    def write(files):
        for name, content in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def long_text(word):
    """A docstring of 100 characters, the shortest that counts."""
    return word.ljust(100, ".")


def module_of(*words):
    """A module whose functions have these docstrings, `long_text` of each word."""
    return "\n".join(f'def f{i}():\n    """{long_text(word)}"""' for i, word in enumerate(words))


@pytest.mark.parametrize("num_workers", [1, 3])
def test_docstrings_come_from_the_library_and_then_the_packages_in_path_order(
    installed, num_workers
):
    installed(
        {
            "purelib/alpha/z.py": module_of("alpha z"),
            "purelib/alpha/__init__.py": module_of("alpha"),
            "purelib/beta/core/b.py": module_of("beta"),
            "purelib/gamma/c.py": module_of("not among the documented packages"),
            "purelib/single.py": module_of("not inside a package"),
            "stdlib/b.py": module_of("library b"),
            "stdlib/a.py": module_of("library a 1", "library a 2"),
            "stdlib/a.txt": module_of("not Python"),
            "stdlib/site-packages/alpha/q.py": module_of("left out: site-packages"),
            "stdlib/test/a.py": module_of("left out: tests"),
            "purelib/alpha/deep/tests/a.py": module_of("left out: tests further down"),
        }
    )
    words = ["library a 1", "library a 2", "library b", "alpha", "alpha z", "beta"]
    found = documents_of("docstrings", num_workers=num_workers)
    assert found == [long_text(word) for word in words]


def test_docstrings_of_modules_classes_functions_and_methods_are_found(installed):
    source = '''
"""{module}"""

async def g():
    """{coroutine}"""

class A:
    """{cls}"""

    def f(self):
        """{method}

        at the margin
            indented
        """
        "{no_docstring}"
'''
    kinds = ("module", "coroutine", "cls", "method", "no_docstring")
    installed({"stdlib/a.py": source.format(**{kind: long_text(kind) for kind in kinds})})
    documents = documents_of("docstrings")
    assert documents[:3] == [long_text(kind) for kind in kinds[:3]]
    # As `inspect.getdoc` shows it: the common indent and the blank ends are gone.
    assert documents[3:] == [long_text("method") + "\n\nat the margin\n    indented"]


def test_a_docstring_that_is_repeated_is_one_document(installed):
    installed(
        {
            "stdlib/a.py": module_of("first", "second", "first"),
            "stdlib/b.py": module_of("second", "third"),
            "purelib/beta/c.py": module_of("third", "first"),
        }
    )
    words = ["first", "second", "third"]
    assert documents_of("docstrings") == [long_text(word) for word in words]


def test_a_docstring_below_a_hundred_characters_is_left_out(installed):
    long, short = "l" * 100, "s" * 99
    installed({"stdlib/a.py": f'"""{short}"""\ndef f():\n    """{long}"""'})
    assert documents_of("docstrings") == [long]


def test_interactive_examples_are_cut_out_of_a_docstring(installed):
    prose, rest = "p" * 60, "r" * 60
    example = ">>> for i in range(2):\n...     i\n0\n1\n"
    malformed = f"{long_text('kept whole')}\n\n>>>print(5)"
    docstrings = (
        f"{prose}\n\n{example}\n{rest}",
        f"only an example:\n\n{example * 10}",
        malformed,
    )
    installed({"stdlib/a.py": "".join(f"def f():\n    {text!r}\n" for text in docstrings)})
    first, second = documents_of("docstrings")
    assert first.split() == [prose, rest]
    assert second == malformed


def test_a_source_file_that_does_not_parse_is_passed_over(installed):
    installed(
        {
            "stdlib/a.py": module_of("good"),
            "stdlib/b.py": module_of("bad") + "\ndef broken(:",
            "stdlib/c.py": b"print 'Python 2'",
            "stdlib/d.py": b"\x00\x01",
            "stdlib/e.py": b'"""' + b"\xe9" * 200 + b'"""',
            "stdlib/f.py": b'# coding: latin-1\n"""' + b"\xe9" * 100 + b'"""',
            "stdlib/g.py": b"",
        }
    )
    assert documents_of("docstrings") == [long_text("good"), "é" * 100]


def test_a_surrogate_in_a_docstring_is_replaced(installed):
    installed({"stdlib/a.py": f'"""\\ud800{"x" * 100}"""'})
    assert documents_of("docstrings") == ["\ufffd" + "x" * 100]


# The Hub, in a fresh process: its address is read once, on import

READ = """
import json, sys
from modeling_gpt2scratch.text_sources import SourceError, open_source
try:
    source = open_source(sys.argv[1], subset=json.loads(sys.argv[2]))
    print(json.dumps([list(source), list(source)]))
except SourceError as error:
    sys.exit(str(error))
"""


def read_from_hub(environment, name, subset=None):
    """What a fresh process finds, or the message it ends with."""
    command = [sys.executable, "-c", READ, name, json.dumps(subset)]
    finished = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=120
    )
    if finished.returncode:
        return finished.stderr.splitlines()[-1]
    first, second = json.loads(finished.stdout)
    assert first == second
    return first


def prepare_from_hub(environment, name, output_dir):
    """The last line on stderr of prepare_data.py, which ends with exit code 1."""
    finished = subprocess.run(
        [
            *(sys.executable, REPOSITORY / "prepare_data.py", "--dataset", name),
            *("--tokenizer", "bpe:300", "--output_dir", output_dir),
        ],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
    lines = [line for line in finished.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert not output_dir.exists()
    return lines[0]


def test_a_data_set_of_the_hub_is_streamed(tmp_path):
    files = {"data/train-00000-of-00001.parquet": parquet_table([*DOCUMENTS, ""])}
    with fake_hub.serve("aesop/fables", files) as hub:
        found = read_from_hub(hub.environment(tmp_path), "aesop/fables")
    assert found == DOCUMENTS, hub.not_found


def test_a_configuration_of_a_data_set_of_the_hub_is_streamed(tmp_path):
    card = """---
configs:
- config_name: long
  data_files: long/*.jsonl
- config_name: short
  data_files: short/*.jsonl
---
"""
    files = {
        "README.md": card.encode(),
        "long/a.jsonl": jsonl(["not asked for"]),
        "short/a.jsonl": jsonl(DOCUMENTS[:2]),
        "short/b.jsonl": jsonl(DOCUMENTS[2:]),
    }
    with fake_hub.serve("aesop/fables", files) as hub:
        found = read_from_hub(hub.environment(tmp_path), "aesop/fables", subset="short")
    assert found == DOCUMENTS, hub.not_found


def test_a_data_set_of_the_hub_cannot_be_had_offline_and_this_is_said_in_one_line(tmp_path):
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    message = read_from_hub(environment, "aesop/fables")
    assert message.startswith(
        "aesop/fables: expected a local file, a glob or a data set of the Hub"
    )
    assert "found ConnectionError: " in message


def test_a_damaged_file_of_the_hub_is_said_in_one_line(tmp_path):
    files = {"train.jsonl.gz": gzip.compress(jsonl(DOCUMENTS))[:-20]}
    with fake_hub.serve("aesop/fables", files) as hub:
        message = read_from_hub(hub.environment(tmp_path), "aesop/fables")
    assert message.startswith("aesop/fables: ")
    assert "ended before the end-of-stream marker" in message


@pytest.mark.slow
def test_a_data_set_of_the_hub_without_the_column_ends_in_one_line(tmp_path):
    with fake_hub.serve("aesop/fables", {"train.jsonl": jsonl(DOCUMENTS, "story")}) as hub:
        line = prepare_from_hub(hub.environment(tmp_path), "aesop/fables", tmp_path / "out")
    assert line == (
        "prepare_data.py: error: aesop/fables: expected text in column 'text', "
        "found columns ['id', 'story']; see --text_column"
    )


@pytest.mark.slow
def test_a_data_set_that_the_hub_does_not_know_ends_in_one_line(tmp_path):
    with fake_hub.serve("aesop/fables", {"train.jsonl": jsonl(DOCUMENTS)}) as hub:
        line = prepare_from_hub(hub.environment(tmp_path), "aesop/fabels", tmp_path / "out")
    assert line.startswith("prepare_data.py: error: aesop/fabels: expected a local file, a glob or")
    assert "'aesop/fabels' doesn't exist on the Hub" in line
