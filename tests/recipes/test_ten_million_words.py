"""The text of the recipe for ten million words: never too many words."""

import json
import random
import sys

import pytest

from modeling_gpt2scratch.data.sources.decompression import zstd
from recipes import ten_million_words

BOOK = """CHAPTER I

It was late, and nobody
spoke a word.

"Who is there?" she asked at last.

The end"""
PAGE = "Home | About | Contact us today\nThis is the text of page {n}.\nRead more here and there"
SENTENCES = ["It was late, and nobody spoke a word.", '"Who is there?" she asked at last.']


@pytest.fixture
def corpus(tmp_path):
    """A directory of the files that the script reads; one book is too old, one has no year."""
    directory = tmp_path / "corpus"
    directory.mkdir()

    def write(name, rows):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{name}.jsonl.zst").write_bytes(zstd.compress(lines.encode()))

    for name in ("c4_sample", "fineweb_sample", "openstax"):
        write(name, [{"text": PAGE.format(n=f"{name} {n}")} for n in range(30)])
    old = BOOK.replace("spoke", "spake")
    books = [
        {"text": BOOK, "year": "1901"},
        {"text": old, "year": "1600"},
        {"text": old, "year": None},
    ]
    write("classic_books_1", books)
    return directory


def choose(corpus, path, monkeypatch):
    """What the script writes."""
    arguments = ["--corpus", str(corpus), "--output_file", str(path)]
    monkeypatch.setattr(sys, "argv", ["ten_million_words.py", *arguments])
    ten_million_words.main()
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_paragraphs_that_end_as_sentences_are_taken_and_books_that_are_not_too_old(
    corpus, tmp_path, monkeypatch
):
    texts = choose(corpus, tmp_path / "new" / "text.jsonl", monkeypatch)
    assert texts[-2:] == SENTENCES and not any("spake" in text for text in texts)
    pages = [
        f"{name} {n}" for name in ("c4_sample", "fineweb_sample", "openstax") for n in range(30)
    ]
    assert sorted(texts[:-2]) == sorted(f"This is the text of page {page}." for page in pages)


def test_every_second_paragraph_is_cut_into_its_sentences():
    whole = "It rained. Nobody came."
    cut = '"Is Dr. J. Smith in?" she asked. "No." He left at 5 p.m. on foot. (So they say.) Why?'
    assert list(ten_million_words.documents([whole, cut, whole])) == [
        whole,
        '"Is Dr. J. Smith in?" she asked.',
        '"No."',
        "He left at 5 p.m. on foot.",
        "(So they say.)",
        "Why?",
        whole,
    ]


@pytest.mark.parametrize("n_words", [7, 40, 100, 10_000])
def test_there_are_never_more_words_than_allowed(n_words, corpus, tmp_path, monkeypatch):
    shares = {"c4_sample": 50, "classic_books_*": n_words}
    monkeypatch.setattr(ten_million_words, "SHARES", shares)
    monkeypatch.setattr(ten_million_words, "MAX_WORDS", n_words)
    texts = choose(corpus, tmp_path / "text.jsonl", monkeypatch)
    n_pages = sum(len(text.split()) for text in texts if "page" in text)
    assert sum(len(text.split()) for text in texts) <= n_words and n_pages <= 50


def test_the_order_of_the_rows_makes_no_difference(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(ten_million_words.SHARES, "c4_sample", 60)
    texts = choose(corpus, tmp_path / "text.jsonl", monkeypatch)
    path = corpus / "c4_sample.jsonl.zst"
    lines = zstd.decompress(path.read_bytes()).decode().splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    path.write_bytes(zstd.compress("".join(lines).encode()))
    assert choose(corpus, tmp_path / "again.jsonl", monkeypatch) == texts


def test_a_missing_source_is_named(corpus, tmp_path, monkeypatch):
    (corpus / "openstax.jsonl.zst").unlink()
    with pytest.raises(SystemExit, match="expected openstax.jsonl.zst in .*, found none"):
        choose(corpus, tmp_path / "text.jsonl", monkeypatch)
    assert not (tmp_path / "text.jsonl").exists()
