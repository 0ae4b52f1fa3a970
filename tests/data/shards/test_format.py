"""Token shards: what goes in comes out, and damage is named."""

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.token_directories import write_shard

from modeling_gpt2scratch.data.shards.directory import open_shard
from modeling_gpt2scratch.data.shards.format import ShardError, check_token_ids
from modeling_gpt2scratch.data.shards.manifest import ShardEntry, Split
from modeling_gpt2scratch.data.shards.writer import SplitWriter

MAX_ID = 2**16 - 1


# Few examples, because every shard is flushed to the disk.
few_examples = settings(max_examples=40, deadline=None)


def write_split(directory, documents, *, shard_tokens, vocab_size, split="train"):
    """Writes documents, each of as many bytes as it has tokens, and returns the split's entry."""
    writer = SplitWriter(directory, split, shard_tokens=shard_tokens, vocab_size=vocab_size)
    for document in documents:
        writer.add(np.array(document, dtype=np.uint32), n_bytes=len(document))
    return writer.close()


def read(path, n_tokens, vocab_size):
    """The tokens of a shard of which a manifest says this."""
    return open_shard(path, ShardEntry(path.name, n_tokens, ""), vocab_size=vocab_size)


def refusal(function, *arguments, **keywords):
    """The one-line message of the ShardError that the call ends in."""
    with pytest.raises(ShardError) as caught:
        function(*arguments, **keywords)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@few_examples
@given(
    documents=st.lists(st.lists(st.integers(0, MAX_ID), max_size=17), max_size=9),
    shard_tokens=st.integers(1, 23),
)
def test_shards_read_back_to_back_are_the_documents_written_back_to_back(
    tmp_path_factory, documents, shard_tokens
):
    directory = tmp_path_factory.mktemp("shards")
    split = write_split(directory, documents, shard_tokens=shard_tokens, vocab_size=MAX_ID + 1)
    shards = [
        open_shard(directory / entry.file, entry, vocab_size=MAX_ID + 1) for entry in split.shards
    ]
    stream = [token for document in documents for token in document]
    assert [token for shard in shards for token in shard.tolist()] == stream


@few_examples
@given(
    documents=st.lists(st.lists(st.integers(0, 9), max_size=17), max_size=9),
    shard_tokens=st.integers(1, 23),
)
def test_the_entry_of_a_split_counts_what_is_in_its_files(
    tmp_path_factory, documents, shard_tokens
):
    directory = tmp_path_factory.mktemp("shards")
    split = write_split(directory, documents, shard_tokens=shard_tokens, vocab_size=10)
    n_tokens = sum(map(len, documents))
    n_full, n_last = divmod(n_tokens, shard_tokens)
    sizes = [shard_tokens] * n_full + [n_last] * (n_last > 0)
    assert [entry.n_tokens for entry in split.shards] == sizes
    assert (split.n_tokens, split.n_documents, split.n_bytes) == (
        n_tokens,
        len(documents),
        n_tokens,
    )
    # Exactly these files, and nothing temporary beside them.
    assert sorted(file.name for file in directory.iterdir()) == [
        f"train_{index:06d}.bin" for index in range(len(sizes))
    ]
    for index, entry in enumerate(split.shards):
        content = (directory / entry.file).read_bytes()
        assert entry.file == f"train_{index:06d}.bin"
        assert len(content) == 1024 + 2 * entry.n_tokens
        assert entry.sha256 == hashlib.sha256(content).hexdigest()


def test_a_document_runs_from_one_shard_into_the_next(tmp_path):
    documents = [[9, 1, 2], [9, 3], [9], [9, 4, 5, 6, 7, 8, 1, 2, 3]]
    split = write_split(tmp_path, documents, shard_tokens=4, vocab_size=10, split="val")
    bodies = [(tmp_path / entry.file).read_bytes()[1024:] for entry in split.shards]
    assert [np.frombuffer(body, "<u2").tolist() for body in bodies] == [
        [9, 1, 2, 9],
        [3, 9, 9, 4],
        [5, 6, 7, 8],
        [1, 2, 3],
    ]
    assert [entry.file for entry in split.shards] == [f"val_00000{i}.bin" for i in range(4)]


def test_a_split_without_documents_has_no_shards(tmp_path):
    split = write_split(tmp_path, [], shard_tokens=4, vocab_size=10)
    assert split == Split(n_tokens=0, n_documents=0, n_bytes=0, shards=())
    assert list(tmp_path.iterdir()) == []


def test_a_shard_begins_with_the_header_of_llm_c_and_goes_on_in_little_endian(tmp_path):
    write_split(tmp_path, [[258, 0, 50256]], shard_tokens=9, vocab_size=50257)
    content = (tmp_path / "train_000000.bin").read_bytes()
    # Magic, version, number of tokens; the fourth of the 256 words is ours.
    assert struct.unpack("<256i", content[:1024]) == (20240520, 1, 3, 50257) + (0,) * 252
    assert content[1024:] == b"\x02\x01" + b"\x00\x00" + b"\x50\xc4"


def test_a_shard_is_read_as_a_plain_array_that_cannot_be_written(tmp_path):
    path = tmp_path / "train_000000.bin"
    write_shard(path, [1, 2, 3], vocab_size=10)
    tokens = read(path, 3, 10)
    assert type(tokens) is np.ndarray
    assert tokens.dtype == np.uint16
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 7


def with_header_word(index, value):
    """A change of one word of the header."""

    def change(content):
        return content[: 4 * index] + struct.pack("<i", value) + content[4 * index + 4 :]

    return change


IDS = "3 ids <u2 of gpt2scratch after 1024 bytes"


@pytest.mark.parametrize(
    ("change", "expected", "found"),
    [
        (lambda content: content[:-2], "1030 bytes for 3 tokens", "1028"),
        (lambda content: content[:-1], "1030 bytes for 3 tokens", "1029"),
        (lambda content: content + b"\0\0", "1030 bytes for 3 tokens", "1032"),
        (lambda content: content[:1024], "1030 bytes for 3 tokens", "1024"),
        (lambda content: content[:100], "a header of 1024 bytes", "100"),
        (lambda content: b"", "tokens", "an empty file"),
        (with_header_word(0, 7), "a header with magic 20240520 or 20240801", "7"),
        (with_header_word(0, 20240801), "version 7 with magic 20240801", "1"),
        (with_header_word(1, 2), "version 1 with magic 20240520", "2"),
        (with_header_word(2, 4), "1032 bytes for 4 tokens", "1030"),
        (with_header_word(3, 11), f"{IDS} below 10", f"{IDS} below 11"),
        (
            lambda content: with_header_word(2, 2)(content[:-2]),
            f"{IDS} below 10",
            "2 ids <u2 of gpt2scratch after 1024 bytes below 10",
        ),
    ],
    ids=[
        "a token short",
        "half a token short",
        "a token too long",
        "header only",
        "half a header",
        "empty",
        "magic",
        "magic of the larger type",
        "version",
        "number of tokens",
        "vocabulary",
        "another shard",
    ],
)
def test_a_damaged_shard_is_refused_by_name(tmp_path, change, expected, found):
    path = tmp_path / "train_000000.bin"
    write_shard(path, [1, 2, 3], vocab_size=10)
    path.write_bytes(change(path.read_bytes()))
    message = refusal(read, path, 3, 10)
    assert message.startswith(f"{path}: ")
    assert expected in message
    assert f"found {found};" in message


def test_a_shard_that_is_not_there_is_refused_by_name(tmp_path):
    path = tmp_path / "train_000000.bin"
    message = refusal(read, path, 3, 10)
    assert message == f"{path}: expected a token file, found No such file or directory"


def test_the_first_id_beyond_the_vocabulary_is_found_in_a_shard(tmp_path):
    path = tmp_path / "train_000000.bin"
    tokens = np.array([3, 9, 10, 4, 11], dtype=np.uint16)
    check_token_ids(path, tokens[:2], vocab_size=10)
    check_token_ids(path, tokens[:0], vocab_size=10)
    message = refusal(check_token_ids, path, tokens, vocab_size=10)
    assert message.startswith(f"{path}: expected ids below 10, found 10 at token 2")
    assert "found 10 at token 2" in refusal(check_token_ids, path, tokens[:3], vocab_size=10)


def test_a_vocabulary_that_two_bytes_cannot_hold_takes_four(tmp_path):
    split = write_split(tmp_path, [[0, 65535, 65536, 99_999]], shard_tokens=3, vocab_size=100_000)
    first, last = (tmp_path / entry.file for entry in split.shards)
    assert np.frombuffer(first.read_bytes()[:16], "<i4").tolist() == [20240801, 7, 3, 100_000]
    assert np.frombuffer(last.read_bytes()[1024:], "<u4").tolist() == [99_999]
    tokens = read(first, 3, 100_000)
    assert (tokens.dtype, tokens.tolist()) == (np.dtype("<u4"), [0, 65535, 65536])
    # Nothing larger than its type is ever cut to fit.
    assert "expected 3 ids <u2 of gpt2scratch after" in refusal(read, first, 3, 50_257)


def test_a_shard_of_a_program_that_writes_no_vocabulary_size_is_read(tmp_path):
    path = tmp_path / "fineweb_train_000001.bin"
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, 2
    path.write_bytes(header.tobytes() + np.array([50256, 7], "<u2").tobytes())
    assert read(path, 2, 50_257).tolist() == [50256, 7]


def test_a_vocabulary_of_65536_fits(tmp_path):
    split = write_split(tmp_path, [[0, MAX_ID]], shard_tokens=4, vocab_size=MAX_ID + 1)
    tokens = read(tmp_path / split.shards[0].file, 2, MAX_ID + 1)
    assert tokens.tolist() == [0, 65535]
