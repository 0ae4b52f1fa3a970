"""Documents of local files: every format and compression, from any row on, joined, and found."""

import gzip
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.table_files import COMPRESS, DOCUMENTS, csv_table, jsonl, parquet_table, written

from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.data.sources import text_rows
from modeling_gpt2scratch.data.sources.filters import parse_condition
from modeling_gpt2scratch.data.sources.local_files import (
    LocalFile,
    find_files,
    is_readable,
    read_documents,
)


def documents_of(path, **options):
    """All documents; every number that came with one leads to just the documents behind it."""
    pairs = list(read_documents(path, **options))
    assert [n_rows for n_rows, _ in pairs] == sorted({n_rows for n_rows, _ in pairs})
    for index in {0, len(pairs) // 2, len(pairs) - 1} & set(range(len(pairs))):
        n_rows = pairs[index][0]
        assert list(read_documents(path, skip_rows=n_rows, **options)) == pairs[index + 1 :]
    return [document for _, document in pairs]


# Formats and compressions


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


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", b""), ("a.csv", b""), ("a.txt", b"")])
def test_an_empty_file_has_no_documents(tmp_path, name, content):
    assert documents_of(written(tmp_path / name, content)) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"text": "a\\ud800b \\udc00 \\ud83c\\udf47"}\n'),
        ("a.jsonl.gz", COMPRESS[".gz"](b'{"text": "a\\ud800b \\udc00 \\ud83c\\udf47"}\n')),
    ],
)
def test_lone_surrogates_are_replaced_and_pairs_are_kept(tmp_path, name, content):
    assert documents_of(written(tmp_path / name, content)) == ["a\ufffdb \ufffd \U0001f347"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_the_mark_that_windows_puts_before_utf8_is_no_text(tmp_path, name):
    content = {"a.txt": b"one", "a.jsonl": jsonl(["one"]), "a.csv": b"text,id\r\none,1\r\n"}
    path = written(tmp_path / name, b"\xef\xbb\xbf" + content[name])
    assert documents_of(path) == ["one"]
    assert documents_of(written(path, b"\xef\xbb\xbf")) == []


def test_windows_line_ends_and_nul_characters_are_read(tmp_path):
    rows = jsonl(["one\0", "two"]).replace(b"\n", b"\r\n")
    assert documents_of(written(tmp_path / "a.jsonl", rows)) == ["one\0", "two"]
    assert documents_of(written(tmp_path / "a.csv", b"id,text\n1,one\0\n")) == ["one\0"]
    assert documents_of(written(tmp_path / "a.txt", b"one\0\r\ntwo")) == ["one\0\ntwo"]


@settings(max_examples=50, deadline=None)
@given(
    texts=st.lists(st.text("a<|endoftx>é\n", max_size=20), min_size=1, max_size=5),
    chunk_bytes=st.integers(1, 40),
)
def test_marks_are_found_wherever_a_chunk_of_the_file_ends(tmp_path_factory, texts, chunk_bytes):
    content = text_rows.END_OF_TEXT.join(texts)
    path = tmp_path_factory.mktemp("marks") / "a.txt"
    path.write_bytes(content.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_rows, "CHUNK_BYTES", chunk_bytes)
        found = documents_of(path)
    assert found == [p.strip() for p in content.split(text_rows.END_OF_TEXT) if p.strip()]


@pytest.mark.parametrize("arrow_type", [pa.dictionary(pa.int32(), pa.string())])
def test_a_parquet_column_may_be_a_dictionary_of_texts(tmp_path, arrow_type):
    array = pa.array(["one", "two", "one"]).cast(arrow_type)
    path = written(tmp_path / "a.parquet", parquet_table(array))
    assert documents_of(path) == ["one", "two", "one"]


def test_a_parquet_column_beside_the_text_may_be_named_like_a_part_of_it(tmp_path):
    table = pa.table({"text.source": ["a book"], "text": ["one"], "text.length": [3]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert documents_of(tmp_path / "a.parquet") == ["one"]


def test_parquet_rows_are_read_from_any_row_on(tmp_path):
    documents = [f"document {i}" for i in range(25)]
    pq.write_table(pa.table({"text": documents}), tmp_path / "a.parquet", row_group_size=10)
    for n_rows in range(27):
        pairs = list(read_documents(tmp_path / "a.parquet", skip_rows=n_rows))
        assert pairs == list(enumerate(documents, start=1))[n_rows:]


def test_row_groups_that_are_skipped_are_not_even_read(tmp_path):
    path = tmp_path / "a.parquet"
    documents = [f"document {i}" for i in range(2000)]
    pq.write_table(pa.table({"text": documents}), path, row_group_size=1000)
    first = pq.ParquetFile(path).metadata.row_group(0).column(0)
    content = bytearray(path.read_bytes())
    end = first.dictionary_page_offset + first.total_compressed_size
    content[first.dictionary_page_offset : end] = b"\xff" * first.total_compressed_size
    written(path, bytes(content))
    assert len(list(read_documents(path, skip_rows=1000))) == 1000
    with pytest.raises(SourceError):
        list(read_documents(path))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.parquet"])
def test_one_document_may_have_many_megabytes(tmp_path, name):
    long = "ein sehr langes Märchen\n" * 800_000
    rows = [long, "short"]
    content = {
        "a.txt": lambda: text_rows.END_OF_TEXT.join(rows).encode(),
        "a.jsonl": lambda: jsonl(rows),
        "a.csv": lambda: csv_table(rows),
        "a.parquet": lambda: parquet_table(rows),
    }
    path = written(tmp_path / name, content[name]())
    assert documents_of(path) == ([long.strip(), "short"] if name == "a.txt" else rows)


# Rows that count


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_only_rows_that_satisfy_all_conditions_are_read(tmp_path, name):
    columns = {
        "text": ["one", None, "three", "four", "five"],
        "language": ["en", "en", "de", "en", "en"],
        "score": [0.9, 0.9, 0.95, 0.5, 0.8],
    }
    table = pa.table(columns)
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name, row_group_size=2)
    elif name == "a.jsonl":
        table.to_pandas().to_json(tmp_path / name, orient="records", lines=True)
    else:
        table.to_pandas().to_csv(tmp_path / name, index=False)
    conditions = ["text != null", "score >= 0.8", "language == en"]
    where = [parse_condition(text) for text in conditions]
    assert list(read_documents(tmp_path / name, where=where)) == [(1, "one"), (5, "five")]
    assert documents_of(tmp_path / name, where=where[::-1]) == ["one", "five"]


def test_rows_of_a_text_file_have_no_columns_to_set_conditions_on(tmp_path):
    path = written(tmp_path / "a.txt", b"one")
    where = [parse_condition("language == en")]
    with pytest.raises(SourceError, match="expected column 'language' for --where 'language == en"):
        list(read_documents(path, where=where))


# Rows that are parts of documents


ROWS = ["", " = Ants = \n", "", "They store.\n", " = = Food = = \n", " = Bees = \n", "They fly.\n"]
ARTICLES = [" = Ants = \nThey store.\n = = Food = = \n", " = Bees = \nThey fly.\n"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", parquet_table(ROWS)),
        ("a.jsonl", jsonl(ROWS)),
        ("a.csv", csv_table(ROWS)),
        ("a.txt", "".join(ROWS).encode()),
    ],
)
def test_rows_are_joined_to_documents_where_one_begins(tmp_path, name, content):
    path = written(tmp_path / name, content)
    pairs = list(read_documents(path, document_start=r" = [^=]"))
    assert [text for _, text in pairs] == ARTICLES
    assert documents_of(path, document_start=r" = [^=]") == ARTICLES
    if name != "a.txt":
        # The second article begins behind five rows, and the file ends behind seven.
        assert [n_rows for n_rows, _ in pairs] == [5, 7]


def test_rows_before_the_first_that_begins_a_document_are_one_too(tmp_path):
    path = written(tmp_path / "a.jsonl", jsonl(["a", "b", "# c", "d"]))
    assert documents_of(path, document_start="#") == ["ab", "# cd"]
    assert documents_of(path, document_start="never") == ["ab# cd"]


def test_an_expression_that_begins_no_document_is_refused_at_once(tmp_path):
    path = written(tmp_path / "a.jsonl", jsonl(["a"]))
    with pytest.raises(SourceError, match=r"expected a regular expression .*, found '\('"):
        read_documents(path, document_start="(")


# Files that are found


def found(pattern):
    """The paths that a pattern stands for."""
    return [file.path for file in find_files(str(pattern))]


def all_of(pattern):
    """The documents of all files that are found."""
    files = find_files(str(pattern))
    return [text for file in files for _, text in read_documents(file.fetch(None))]


def test_a_glob_reads_its_files_in_the_order_of_their_names(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/1.jsonl", "a.jsonl", "c.jsonl", "a10.jsonl", "a2.jsonl"):
        written(tmp_path / name, jsonl([name]))
    written(tmp_path / "a.csv", b"not asked for")
    assert all_of(tmp_path / "*.jsonl") == ["a.jsonl", "a10.jsonl", "a2.jsonl", "c.jsonl"]
    everywhere = ["a.jsonl", "a10.jsonl", "a2.jsonl", "b/1.jsonl", "c.jsonl"]
    assert all_of(tmp_path / "**" / "*.jsonl") == everywhere


def test_a_glob_may_mix_formats(tmp_path):
    written(tmp_path / "1.jsonl", jsonl(["one"]))
    written(tmp_path / "2.txt.gz", gzip.compress(b"two"))
    written(tmp_path / "3.parquet", parquet_table(["three"]))
    assert all_of(tmp_path / "*") == ["one", "two", "three"]


def test_a_file_whose_name_looks_like_a_glob_is_read(tmp_path):
    assert all_of(written(tmp_path / "part[1].txt", b"one")) == ["one"]


def test_links_to_directories_are_followed_once(tmp_path):
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    for folder in (corpus, elsewhere):
        folder.mkdir()
        (folder / "text.txt").write_text("text")
    (corpus / "books").symlink_to(elsewhere)
    (corpus / "more").symlink_to(elsewhere)
    (elsewhere / "circle").symlink_to(corpus)
    assert [file.path for file in find_files(str(corpus))] == [
        *(corpus / "books" / "text.txt", corpus / "text.txt")
    ]


def test_a_directory_stands_for_all_readable_files_below_it(tmp_path, capsys):
    for name in ("b.jsonl", "a/z.txt", "a.parquet", "a/B.csv.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        written(tmp_path / name, b"")
    for name in (".hidden.txt", "README.md", ".cache/c.txt", "b.json.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        written(tmp_path / name, b"not asked for")
    names = ["a.parquet", "a/B.csv.gz", "a/z.txt", "b.jsonl"]
    written(tmp_path / "a" / "c.md", b"not asked for")
    assert found(tmp_path) == [tmp_path / name for name in names]
    others = "left out, as there is no reader for them: .md (2), .json.gz (1)"
    assert capsys.readouterr().err == f"warning: {tmp_path}: {others}\n"


def test_a_local_file_says_its_name_and_size_and_lies_where_it_is(tmp_path):
    path = written(tmp_path / "a.txt", b"four")
    [file] = find_files(str(path))
    assert file == LocalFile(path)
    assert (file.name, file.n_bytes, file.fetch(tmp_path / "elsewhere")) == (str(path), 4, path)


@pytest.mark.parametrize(
    "pattern", ["aesop/fables", "fables", "hf://datasets/a/b/*.parquet", "https://a.b/c.jsonl", ""]
)
def test_what_looks_like_no_path_is_none(tmp_path, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    assert find_files(pattern) is None


def refusal(pattern):
    """The one-line message that looking for files ends in."""
    with pytest.raises(SourceError) as caught:
        find_files(str(pattern))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt.gz", "*.csv", "b/**/*.parquet", "b"])
def test_a_file_or_glob_that_finds_nothing_is_refused_by_name(tmp_path, name):
    path = tmp_path / name
    assert refusal(path) == f"{path}: expected a file or glob, found nothing there"


@pytest.mark.parametrize("name", ["a.pdf", "a.json", "a.txt.bz2", "a"])
def test_a_file_of_an_unknown_kind_is_refused_with_the_known_ones(tmp_path, name):
    path = written(tmp_path / name, b"text")
    message = refusal(path)
    assert message.startswith(f"{path}: expected a file ending in .txt, .jsonl, .csv, .parquet (")
    assert message.endswith("data sets with `to_parquet`, unpack archives")


def test_a_directory_without_readable_files_is_refused_by_name(tmp_path):
    written(tmp_path / "README.md", b"text")
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path}: expected a file ending in .txt, .jsonl, ")
    assert message.endswith(
        " below it, found .md (1); rename JSON lines to .jsonl, save data sets with `to_parquet`, "
        "unpack archives"
    )
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty").endswith(" below it, found none")


def test_a_directory_that_may_not_be_read_is_refused_by_name(tmp_path, monkeypatch):
    def scandir(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    assert refusal(tmp_path) == (
        f"{tmp_path}: cannot be read: [Errno 13] Permission denied: '{tmp_path}'"
    )


@pytest.mark.parametrize("name", ["a.txt", "a/b.jsonl.gz", "a.b.csv.xz", "a.parquet"])
def test_names_of_readable_files_are_known_by_their_ending(name):
    assert is_readable(name)
    assert not is_readable(f"{name}.bak")


@pytest.mark.parametrize("name", ["a.parquet.gz", "a.json", "a.gz", "txt", ".txt"])
def test_names_of_other_files_are_known_by_their_ending(name):
    assert not is_readable(name)
