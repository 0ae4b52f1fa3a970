"""A writer that is killed and goes on leaves the files of one that was not."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_gpt2scratch.data.shards.directory import open_shard
from modeling_gpt2scratch.data.shards.format import ShardError
from modeling_gpt2scratch.data.shards.manifest import ShardEntry
from modeling_gpt2scratch.data.shards.writer import SplitWriter

documents_strategy = st.lists(st.lists(st.integers(0, 99), max_size=17), min_size=1, max_size=9)


def open_writer(directory, shard_tokens, state=None):
    return SplitWriter(directory, "train", shard_tokens=shard_tokens, vocab_size=100, state=state)


def add(writer, document):
    writer.add(np.array(document, dtype=np.uint32), n_bytes=len(document))


@pytest.mark.parametrize("ids", [[1, -1, 2], [100], [2**16 + 5], [2**32 + 5]])
def test_ids_are_checked_before_they_are_narrowed(tmp_path, ids):
    writer = open_writer(tmp_path, 2)
    wrong = next(id_ for id_ in ids if not 0 <= id_ < 100)
    with pytest.raises(ShardError, match=f"train: expected ids below 100, found {wrong}"):
        writer.add(np.array(ids, dtype=np.int64), n_bytes=1)
    assert list(tmp_path.iterdir()) == []
    split = writer.close()
    assert (split.n_documents, split.n_tokens) == (0, 0)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@settings(max_examples=40, deadline=None)
@given(
    documents=documents_strategy,
    lost=documents_strategy,
    shard_tokens=st.integers(1, 23),
    n_kept=st.integers(0, 9),
    is_published=st.booleans(),
)
def test_a_writer_continued_from_a_state_writes_the_same_files(
    tmp_path_factory, documents, lost, shard_tokens, n_kept, is_published
):
    whole, killed = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("killed")
    writer = open_writer(whole, shard_tokens)
    for document in documents:
        add(writer, document)
    expected = writer.close()

    writer = open_writer(killed, shard_tokens)
    for document in documents[:n_kept]:
        add(writer, document)
    state = json.loads(json.dumps(writer.state()))
    if is_published:  # the kill comes before or after the shards have their names
        writer.publish()
    finished = {p.name: p.stat().st_mtime_ns for p in killed.glob("train_*.bin")}
    for document in lost:  # reached the disk, but no state that was kept
        add(writer, document)
    del writer

    writer = open_writer(killed, shard_tokens, state)
    for document in documents[n_kept:]:
        add(writer, document)
    assert writer.close() == expected
    assert contents(killed) == contents(whole)
    # Shards that were finished have not been written again.
    assert (
        finished.items()
        <= {p.name: p.stat().st_mtime_ns for p in killed.glob("train_*.bin")}.items()
    )


def test_a_shard_that_is_being_written_cannot_be_read(tmp_path):
    writer = open_writer(tmp_path, shard_tokens=10)
    add(writer, [1, 2, 3])
    writer.state()
    (partial,) = tmp_path.iterdir()
    assert partial.name == ".train_000000.bin.partial"
    with pytest.raises(ShardError, match="with magic 20240520 or 20240801, found 0; copy"):
        open_shard(partial, ShardEntry(partial.name, 3, ""), vocab_size=100)


@pytest.mark.parametrize("n_bytes", [None, 1025])
def test_a_state_whose_files_are_gone_or_cut_short_is_refused(tmp_path, n_bytes):
    writer = open_writer(tmp_path, shard_tokens=10)
    add(writer, [1, 2, 3])
    state = writer.state()
    (partial,) = tmp_path.iterdir()
    if n_bytes is None:
        partial.unlink()
    else:
        partial.write_bytes(partial.read_bytes()[:n_bytes])
    with pytest.raises(ShardError, match=r"train_000000\.bin.*expected "):
        open_writer(tmp_path, 10, state)


def test_a_state_whose_finished_shard_was_damaged_is_refused(tmp_path):
    writer = open_writer(tmp_path, shard_tokens=2)
    add(writer, [1, 2, 3])
    state = writer.state()
    writer.publish()
    (tmp_path / "train_000000.bin").write_bytes(b"")
    with pytest.raises(ShardError, match=r"train_000000\.bin: expected tokens, found an empty"):
        open_writer(tmp_path, 2, state)
