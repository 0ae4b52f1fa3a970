"""The order of documents: a function of the arguments, from any position on."""

import dataclasses
import itertools
import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.table_files import jsonl, written

from modeling_gpt2scratch.data.sources.dataset_argument import open_sources
from modeling_gpt2scratch.data.sources.document_stream import DocumentStream


def stream_of(sources, directory, **keywords):
    """The batches of some sources."""
    options = {"seed": None, "downloads": directory / "downloads"} | keywords
    return DocumentStream(sources, **options)


def documents_in(batches):
    """The documents of the batches, one after another."""
    return [document for batch in batches for document in batch.documents]


@settings(max_examples=40, deadline=None)
@given(
    files=st.lists(st.lists(st.booleans(), max_size=8), min_size=1, max_size=5),
    document_start=st.sampled_from([None, "[02468]"]),
    seed=st.none() | st.integers(0, 5),
    batch_characters=st.integers(1, 30),
    stop=st.integers(0, 100),
)
def test_bad_rows_are_counted_once_wherever_a_reading_goes_on(
    tmp_path_factory, files, document_start, seed, batch_characters, stop
):
    directory = tmp_path_factory.mktemp("bad")
    for i, rows in enumerate(files):
        lines = [jsonl([f"{j}{i}"]) if is_good else b"{}\n" for j, is_good in enumerate(rows)]
        written(directory / f"{i}.jsonl", b"".join(lines))
    sources = [
        dataclasses.replace(source, document_start=document_start)
        for source in open_sources(str(directory))
    ]
    options = {"seed": seed, "batch_characters": batch_characters, "on_bad_row": "skip"}
    whole = list(stream_of(sources, directory, **options))
    kept = [f"{j}{i}" for i, rows in enumerate(files) for j, good in enumerate(rows) if good]
    assert len("".join(documents_in(whole))) == len("".join(kept))
    counts = [0, *(batch.position["n_bad_rows"] for batch in whole)]
    assert counts == sorted(counts)
    assert counts[-1] == sum(len(rows) for rows in files) - len(kept)
    # An empty batch stands only at the end, for rows behind the last document.
    assert all(batch.documents for batch in whole[:-1])

    stop = min(stop, len(whole) - 1)
    if stop >= 0:
        position = json.loads(json.dumps(whole[stop].position))
        rest = list(stream_of(sources, directory, position=position, **options))
        assert rest == whole[stop + 1 :]


def test_every_document_of_a_batch_knows_its_file_and_row(tmp_path):
    path = written(tmp_path / "a.jsonl", jsonl(["one", "", "three"]) + b"\n" + jsonl(["five"]))
    [batch] = stream_of(open_sources(str(path)), tmp_path)
    assert (batch.name, batch.documents, batch.rows) == (
        str(path),
        ["one", "three", "five"],
        [1, 3, 5],
    )


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=7),
    weight=st.sampled_from([None, 0.5, 0.8]),
    seed=st.none() | st.integers(0, 5),
    batch_characters=st.integers(1, 30),
    limit=st.none() | st.integers(0, 40),
    stop=st.integers(0, 100),
)
def test_reading_goes_on_behind_any_batch(
    tmp_path_factory, sizes, weight, seed, batch_characters, limit, stop
):
    assume(weight is None or sum(sizes))  # a source of nothing has no share
    directory = tmp_path_factory.mktemp("sources")
    for folder in ("a", "b"):
        (directory / folder).mkdir()
        for i, size in enumerate(sizes):
            texts = [f"{folder}{i}{j}" for j in range(size)]
            written(directory / folder / f"{i}.jsonl", jsonl(texts))
    dataset = f"{directory}/a,{directory}/b"
    if weight is not None:
        dataset = f"{directory}/a:{weight},{directory}/b:{1 - weight}"
    sources = open_sources(dataset)
    options = {"seed": seed, "batch_characters": batch_characters, "limit_documents": limit}
    whole = list(stream_of(sources, directory, **options))
    documents = documents_in(whole)
    assert len(set(documents)) == len(documents)
    if weight is None:
        assert len(documents) == min(2 * sum(sizes), 1000 if limit is None else limit)

    stop = min(stop, len(whole) - 1)
    if stop >= 0:
        position = json.loads(json.dumps(whole[stop].position))
        rest = list(stream_of(sources, directory, position=position, **options))
        assert rest == whole[stop + 1 :]


@pytest.mark.parametrize("sizes", [(500, 500), (10, 500), (500, 10)])
@pytest.mark.parametrize("seed", [None, 0])
def test_shares_hold_at_any_moment_and_wherever_a_reading_goes_on(tmp_path, seed, sizes):
    for name, size in zip("ab", sizes, strict=True):
        written(tmp_path / f"{name}.jsonl", jsonl([name * size] * (800_000 // size)))
    sources = open_sources(f"{tmp_path}/a.jsonl:0.3,{tmp_path}/b.jsonl:0.7")
    batches = list(stream_of(sources, tmp_path, seed=seed))
    of_a, total = 0, 0
    for document in documents_in(batches):
        of_a += len(document) * (document[0] == "a")
        total += len(document)
        assert abs(of_a - 0.3 * total) <= 0.01 * total + max(sizes)
    assert total > 1_100_000 and len(batches) < 1000  # b was read to its end
    position = json.loads(json.dumps(batches[200].position))
    assert list(stream_of(sources, tmp_path, seed=seed, position=position)) == batches[201:]
    # The limit cuts the same documents off.
    limited = stream_of(sources, tmp_path, seed=seed, limit_documents=1000)
    assert documents_in(limited) == list(itertools.islice(documents_in(batches), 1000))


def test_a_source_that_one_batch_could_hold_gives_its_share_alone(tmp_path):
    written(tmp_path / "small.jsonl", jsonl(["a" * 97] * 1000))
    written(tmp_path / "large.jsonl", jsonl(["b" * 97] * 10_000))
    sources = open_sources(f"{tmp_path}/small.jsonl:0.3,{tmp_path}/large.jsonl:0.7")
    documents = documents_in(stream_of(sources, tmp_path, seed=None))
    assert sum(text[0] == "a" for text in documents) == 1000
    assert len(documents) == pytest.approx(1000 / 0.3, rel=0.02)


def test_files_of_a_few_are_read_in_turn_when_there_is_a_seed(tmp_path):
    for i in range(5):
        written(tmp_path / f"{i}.jsonl", jsonl([f"{i}{j}" for j in range(6)]))
    sources = open_sources(str(tmp_path))
    batches = list(stream_of(sources, tmp_path, seed=0, batch_characters=4))
    files = [batch.documents[0][0] for batch in batches]
    # Four files at a time, two documents from each; the fifth file has to wait for its turn.
    assert len(set(files[:4])) == 4
    assert files[:4] == files[4:8]
    assert sorted(files) == sorted("01234" * 3)
    other = [b.documents[0][0] for b in stream_of(sources, tmp_path, seed=1, batch_characters=4)]
    assert other != files


def test_documents_that_are_left_out_do_not_count_for_the_weights(tmp_path):
    texts = [letter * n for letter in "abcdefgh" for n in (3, 3, 3, 30)]
    written(tmp_path / "short.jsonl", jsonl(texts))
    written(tmp_path / "long.jsonl", jsonl(["x" * 30] * 40))
    sources = open_sources(f"{tmp_path}/short.jsonl:0.5,{tmp_path}/long.jsonl:0.5")
    options = {"seed": None, "batch_characters": 1, "min_characters": 10, "limit_documents": 24}
    documents = documents_in(list(stream_of(sources, tmp_path, **options)))
    kept = [text for text in documents if len(text) >= 10]
    assert abs(sum(text.startswith("x") for text in kept) - len(kept) / 2) <= 1
