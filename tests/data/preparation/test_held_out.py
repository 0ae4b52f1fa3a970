"""Any text gives both splits: documents where there are enough, else the tail."""

from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.paths import SHARED_DATA
from support.prepared_data import contents, documents_of, manifest_of, names_in
from support.tiny_corpus import fables, write_jsonl

from modeling_gpt2scratch.data.preparation import prepare as preparation
from modeling_gpt2scratch.data.preparation.held_out import (
    TAIL_CHARACTERS,
    WINDOW_CHARACTERS,
    tail_of,
)
from modeling_gpt2scratch.data.preparation.prepare import prepare
from modeling_gpt2scratch.data.preparation.progress import WorkingDirectory

END_OF_TEXT = "<|endoftext|>"


def text_of(n_characters, seed=0):
    """A text of a single document."""
    generator = np.random.default_rng(seed)
    letters = generator.choice(list("abcdefghij é狐\n"), size=n_characters - 2)
    return "x" + "".join(letters) + "x"


# Where the tail begins


@given(
    lengths=st.lists(st.integers(0, 300), max_size=30),
    fraction=st.floats(0.01, 0.99),
    least=st.sampled_from([0, 50, 10_000]),
)
def test_the_tail_is_the_last_fraction_by_a_quarter(lengths, fraction, least):
    n_all = sum(lengths)
    n_asked = int(n_all * fraction)
    held_out = tail_of(array("q", lengths), fraction, least=least)
    if n_asked == 0 or n_all - n_asked < WINDOW_CHARACTERS:
        assert held_out is None
        return
    n_asked = max(n_asked, min(least, n_all // 10))
    n_before = sum(lengths[: held_out.n_documents]) + held_out.n_characters
    assert (held_out.tail_characters, held_out.all_characters) == (n_all - n_before, n_all)
    assert 0 < n_before < n_all
    # Inside of a document it begins just where it should, and no border is near.
    if held_out.n_characters:
        assert held_out.n_characters < lengths[held_out.n_documents]
        assert held_out.tail_characters == n_asked
        borders = [0, *np.cumsum(lengths).tolist()]
        inner = [border for border in borders if 0 < border < n_all]
        assert all(4 * abs(border - n_before) > n_asked for border in inner)
    else:
        assert 4 * abs(held_out.tail_characters - n_asked) <= n_asked


@pytest.mark.parametrize(
    ("lengths", "fraction", "expected"),
    [
        ([1000], 0.1, (0, 900)),  # in a long one
        ([500, 400, 100], 0.1, (2, 0)),  # between two
        ([500, 400, 120], 0.1, (2, 0)),  # 120 in place of 102
        ([500, 400, 80], 0.1, (2, 0)),  # 80 in place of 98
        ([500, 400, 130], 0.1, (2, 27)),  # 130 are more than a quarter beyond 103
        ([500, 0, 400, 0, 100, 0], 0.1, (4, 0)),  # those that are left out count as documents
        ([900, 0, 0], 0.1, (0, 810)),
        ([300, 300], 0.5, (1, 0)),
        ([1000, 1000], 0.9, (0, 200)),  # never all of it
    ],
)
def test_the_tail_begins_with_a_document_where_one_begins_nearby(lengths, fraction, expected):
    held_out = tail_of(array("q", lengths), fraction)
    found = held_out and (held_out.n_documents, held_out.n_characters)
    assert found == expected


# One text


def test_a_single_file_gives_the_end_of_its_text(configure, tmp_path, capsys):
    text = text_of(200_000)
    source = tmp_path / "input.txt"
    source.write_text(text, encoding="utf-8")
    manifest = prepare(configure(dataset=str(source), val_fraction=0.01))
    assert documents_of(tmp_path / "out", "train") == [text[:-2000]]
    assert documents_of(tmp_path / "out", "val") == [text[-2000:]]
    expected = {"split": "tail", "tail_characters": 2000, "all_characters": 200_000}
    assert manifest.held_out == manifest_of(tmp_path / "out")["held_out"] == expected
    line = "held out for validation: the last 2,000 of 200,000 characters; there are too few "
    assert capsys.readouterr().err.splitlines() == [line + "documents to choose from (1)"]


def test_a_tail_that_nobody_asked_for_holds_a_window(configure, tmp_path):
    text = text_of(50_000)
    source = tmp_path / "input.txt"
    source.write_text(text, encoding="utf-8")
    prepare(configure(dataset=str(source), val_fraction=0.01))
    assert documents_of(tmp_path / "out", "val") == [text[-TAIL_CHARACTERS:]]
    asked = configure(
        dataset=str(source), val_fraction=0.01, split="tail", output_dir=str(tmp_path / "asked")
    )
    prepare(asked)
    assert documents_of(tmp_path / "asked", "val") == [text[-500:]]


def test_tiny_shakespeare_is_split_where_nanogpt_splits_it(configure, tmp_path):
    path = SHARED_DATA / "tinyshakespeare.txt"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    text = path.read_text(encoding="utf-8")
    prepare(configure(dataset=str(path), val_fraction=0.1, tokenizer="bytes", split="tail"))
    n_train = int(0.9 * len(text))
    assert documents_of(tmp_path / "out", "train") == [text[:n_train]]
    assert documents_of(tmp_path / "out", "val") == [text[n_train:].rstrip("\n")]


@pytest.mark.parametrize("seed", range(4))
def test_two_files_give_both_splits_whatever_the_seed(configure, tmp_path, seed):
    texts = [text_of(3000, seed=10), text_of(3100, seed=11)]
    (tmp_path / "in").mkdir()
    for name, text in zip(("a.txt", "b.txt"), texts, strict=True):
        (tmp_path / "in" / name).write_text(text, encoding="utf-8")
    prepare(configure(dataset=str(tmp_path / "in"), val_fraction=0.5, seed=seed))
    assert documents_of(tmp_path / "out", "train") == texts[:1]
    assert documents_of(tmp_path / "out", "val") == texts[1:]


def test_sixty_three_books_give_both_splits_at_the_default_fraction(configure, tmp_path):
    books = [text_of(4000 + 50 * index, seed=index) for index in range(63)]
    source = write_jsonl(tmp_path / "books.jsonl", books)
    manifest = prepare(configure(dataset=str(source), val_fraction=0.01))
    assert manifest.held_out["split"] == "tail"
    train, val = documents_of(tmp_path / "out", "train"), documents_of(tmp_path / "out", "val")
    n_all = sum(map(len, books))
    assert sum(map(len, val)) == pytest.approx(n_all * 0.01, rel=0.25)
    # The end of the last book, whose beginning is still trained on.
    assert val == [books[-1][-len(val[0]) :]]
    assert sorted(train) == sorted([*books[:-1], books[-1][: -len(val[0])]])


# Many documents


def test_many_documents_are_chosen_by_their_text(configure, tmp_path, capsys):
    manifest = prepare(configure())
    assert manifest.held_out == {"split": "documents"}
    assert capsys.readouterr().err == ""


def test_the_tail_of_many_documents_is_the_last_ones_in_the_order_of_the_files(configure, tmp_path):
    prepare(configure(split="tail", num_workers=1))
    documents = [text for index in range(6) for text in fables(500, seed=index)]
    train, val = documents_of(tmp_path / "out", "train"), documents_of(tmp_path / "out", "val")
    n_val = len(val)
    assert sorted(val) == sorted(documents[-n_val:])
    assert sorted(train) == sorted(documents[:-n_val])
    assert train != documents[:-n_val]  # shuffled all the same
    n_all = sum(map(len, documents))
    assert sum(map(len, val)) == pytest.approx(n_all * 0.1, rel=0.25)


def test_the_tail_is_one_of_what_is_not_left_out(configure, tmp_path):
    distinct = fables(300)
    # Without its duplicates and the short ones, the second half of the file is nothing.
    source = write_jsonl(tmp_path / "a.jsonl", [*distinct, "short", *distinct, *["short"] * 50])
    arguments = {"dataset": str(source), "split": "tail", "deduplicate": True, "min_characters": 8}
    manifest = prepare(configure(**arguments))
    train, val = documents_of(tmp_path / "out", "train"), documents_of(tmp_path / "out", "val")
    assert sorted(train + val) == sorted(distinct)
    assert sorted(val) == sorted(distinct[-len(val) :])
    assert manifest.left_out == {"too_short": 51, "duplicates": 300}
    assert names_in(tmp_path) == ["a.jsonl", "out"]


@pytest.mark.parametrize("n_saves", [None, 2, 3])
def test_a_copy_of_the_document_that_is_cut_is_left_out_of_the_tail(
    configure, tmp_path, monkeypatch, n_saves
):
    text = text_of(9_000)
    for name in "ab":
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.txt").write_text(text, encoding="utf-8")
    arguments = {"dataset": str(tmp_path / "in"), "deduplicate": True, "shuffle_buffer_tokens": 100}
    if n_saves:  # the second copy is read by another process than the first
        save, calls = WorkingDirectory.save, []

        def interrupted(self, progress):
            save(self, progress)
            calls.append(progress)
            if len(calls) == n_saves:
                raise Interruption

        with monkeypatch.context() as patch, pytest.raises(Interruption):
            patch.setattr(WorkingDirectory, "save", interrupted)
            prepare(configure(**arguments))
    manifest = prepare(configure(**arguments))
    assert manifest.left_out == {"too_short": 0, "duplicates": 1}
    texts = [documents_of(tmp_path / "out", split) for split in ("train", "val")]
    assert "".join(sum(texts, [])) == text
    assert sum(map(len, texts[1])) == manifest.held_out["tail_characters"]


# Workers and interruptions


@pytest.fixture
def long_text(tmp_path):
    """Two files of documents, the last of which is long and will be cut."""
    (tmp_path / "in").mkdir()
    write_jsonl(tmp_path / "in" / "a.jsonl", fables(800))
    (tmp_path / "in" / "b.txt").write_text(text_of(60_000), encoding="utf-8")
    return tmp_path / "in"


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_the_tail_does_not_depend_on_the_number_of_workers(
    configure, tmp_path, long_text, num_workers
):
    arguments = {"dataset": str(long_text), "split": "tail", "shuffle_buffer_tokens": 2000}
    prepare(configure(output_dir=str(tmp_path / "one"), **arguments))
    prepare(configure(num_workers=num_workers, **arguments))
    assert contents(tmp_path / "out") == contents(tmp_path / "one")
    assert manifest_of(tmp_path / "out")["splits"]["val"]["n_documents"] == 1


class Interruption(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("max_tokens", [None, 20_000])
@pytest.mark.parametrize("is_saved", [False, True])
def test_a_tail_that_is_interrupted_at_any_block_ends_in_the_same_files(
    configure, tmp_path, long_text, monkeypatch, is_saved, max_tokens
):
    arguments = {"dataset": str(long_text), "split": "tail", "shuffle_buffer_tokens": 2000}
    if max_tokens is not None:  # which goes with documents alone
        arguments |= {"split": "documents", "max_tokens": max_tokens, "min_characters": 60}
        arguments["dataset"] = str(long_text / "a.jsonl")
    prepare(configure(output_dir=str(tmp_path / "whole"), **arguments))
    original, n_saves, n_interruptions = WorkingDirectory.save, 0, 0
    seen = [(None, False)]

    def save(self, progress):
        nonlocal n_saves
        n_saves += 1
        is_interrupted = n_saves % 3 == 0  # two of three get through
        if is_saved:  # once each time that there is something new
            is_interrupted = (progress.position, progress.is_finished) not in seen
            seen.append((progress.position, progress.is_finished))
        if is_saved or not is_interrupted:
            original(self, progress)
        if is_interrupted:
            raise Interruption

    monkeypatch.setattr(WorkingDirectory, "save", save)
    while True:
        try:
            prepare(configure(**arguments))
            break
        except Interruption:
            n_interruptions += 1
    assert n_interruptions > 4
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert names_in(tmp_path) == ["in", "out", "whole"]


# What cannot work


@pytest.fixture
def no_work(monkeypatch):
    """Fails if anything is tokenized, or a tokenizer is trained for it."""
    for name in ("write_shards", "train_tokenizer"):
        monkeypatch.setattr(preparation, name, lambda *arguments: pytest.fail("too late"))


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:300"])
@pytest.mark.parametrize(
    ("content", "flags", "expected"),
    [
        ("x" * 60, (), "expected more text than a window of 64 characters"),
        ("x" * 60, ("--split", "tail"), "expected more text than a window of 64 characters"),
        (
            "x" * 999,
            ("--val_fraction", "0.001"),
            "expected more text than a window of 64 characters and a tail of --val_fraction 0.001, "
            "found 999 characters; give more",
        ),
        (
            "x" * 999,
            ("--split", "documents"),
            "expected documents in both splits, found 0 of 1 in 'val'; raise --val_fraction, "
            "change --seed, add --split tail or give more documents; --val_fraction 0 holds none",
        ),
        (
            "x" * 999,
            ("--max_tokens", "500"),
            "expected documents in both splits, found 0 of 1 in 'val'; raise --val_fraction, "
            "change --seed, leave out --max_tokens or give more documents; --val_fraction 0 holds",
        ),
        (" \n", ("--split", "tail"), "expected documents, found none"),
        (" \n", (), "expected documents, found none"),
        ("", (), "expected documents, found none"),
    ],
)
def test_what_cannot_work_is_refused_before_the_work(
    tmp_path, run_script, no_work, tokenizer, content, flags, expected
):
    source = tmp_path / "a.txt"
    source.write_text(content)
    code, (error,) = run_script(tmp_path / "out", source, "--tokenizer", tokenizer, *flags)
    assert code == 1
    assert error.startswith(f"prepare_data.py: error: {source}: {expected}")
    assert names_in(tmp_path) == ["a.txt"]


def test_a_tail_of_a_part_of_the_text_is_refused(tmp_path, run_script):
    source = write_jsonl(tmp_path / "a.jsonl", fables(9))
    flags = ("--split", "tail", "--max_tokens", "10")
    code, (error,) = run_script(tmp_path / "out", source, *flags)
    assert code == 2
    assert error.startswith("prepare_data.py: error: --split, --max_tokens: expected no ")


def test_a_fraction_of_zero_holds_nothing_out_of_any_text(configure, tmp_path):
    (tmp_path / "a.txt").write_text("x")
    manifest = prepare(configure(dataset=str(tmp_path / "a.txt"), val_fraction=0, split="tail"))
    assert (list(manifest.splits), manifest.held_out) == (["train"], {})
