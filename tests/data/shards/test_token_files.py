"""Other programs' token files, written here byte for byte from their published layouts."""

import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.token_directories import write_shard

from modeling_gpt2scratch.data.shards import token_files as module
from modeling_gpt2scratch.data.shards.format import ShardError
from modeling_gpt2scratch.data.shards.token_files import read_token_file, token_files

IDS = [50256, 15496, 11, 995, 0]


def headed(magic, version, n_tokens, ids, letter, *more):
    """A header of 256 int32, `more` from its fourth word on, and the ids after it."""
    words = [magic, version, n_tokens, *more]
    header = struct.pack("<256i", *words, *[0] * (256 - len(words)))
    return header + struct.pack(f"<{len(ids)}{letter}", *ids)


def npy(ids, descr="<u2", letter="H", shape=None):
    """numpy's format: magic, version, length of the header, the header padded to 64 bytes."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape or (len(ids),)}, }}"
    header = header.ljust(64 * 2 - 10 - 1) + "\n"
    head = b"\x93NUMPY" + b"\1\0" + struct.pack("<H", len(header)) + header.encode()
    return head + struct.pack(f"{descr[0].replace('|', '<')}{len(ids)}{letter}", *ids)


LLMC = headed(20240520, 1, 5, IDS, "H")
LLAMA = headed(20240801, 7, 3, [128_000, 9906, 1917], "I")
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
NANOGPT = struct.pack("<5H", *IDS)


def write(directory, name, content):
    path = directory / name
    path.write_bytes(content)
    return path


def refusal(path, **options):
    """The one-line message that reading this file ends in, without the path in front."""
    with pytest.raises(ShardError) as caught:
        read_token_file(path, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"{path}: expected ")
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("name", "content", "format", "dtype", "ids"),
    [
        ("fineweb_train_000001.bin", LLMC, "llm.c", "<u2", IDS),
        ("TinyStories_val.bin", LLAMA, "llm.c", "<u4", [128_000, 9906, 1917]),
        ("edufineweb_train_000001.npy", npy(IDS), "npy", "<u2", IDS),
        ("ids.npy", npy([70_000, 0], "<u4", "I"), "npy", "<u4", [70_000, 0]),
        ("ids.npy", npy([70_000, -1], "<i8", "q"), "npy", "<i8", [70_000, -1]),
        ("ids.npy", npy([258, 0], ">u2", "H"), "npy", ">u2", [258, 0]),
        ("ids.npy", npy([200, 0], "|u1", "B"), "npy", "u1", [200, 0]),
        ("train.bin", NANOGPT, "nanogpt", "<u2", IDS),
        ("val.bin", NANOGPT[:2], "nanogpt", "<u2", IDS[:1]),
        # What the name says counts less than a header.
        ("train.bin", LLMC, "llm.c", "<u2", IDS),
        ("train_000000.bin", headed(20240520, 1, 5, IDS, "H", 50257), "gpt2scratch", "<u2", IDS),
        ("x", headed(20240801, 7, 1, [99_999], "I", 100_000), "gpt2scratch", "<u4", [99_999]),
    ],
)
def test_a_format_is_recognized_and_its_ids_are_those_written(
    tmp_path, name, content, format, dtype, ids
):
    file = read_token_file(write(tmp_path, name, content))
    assert (file.format, file.tokens.dtype) == (format, np.dtype(dtype))
    assert file.tokens.tolist() == ids
    assert type(file.tokens) is np.ndarray
    assert not file.tokens.flags.writeable


@settings(max_examples=30, deadline=None)
@given(
    ids=st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=50),
    per_read=st.integers(1, 60),
)
def test_every_format_gives_the_same_ids_in_pieces_of_any_size(tmp_path_factory, ids, per_read):
    directory = tmp_path_factory.mktemp("formats")
    write(directory, "llmc.bin", headed(20240520, 1, len(ids), ids, "H"))
    write(directory, "array.npy", npy(ids))
    write(directory, "train.bin", struct.pack(f"<{len(ids)}H", *ids))
    write_shard(directory / "ours.bin", ids, vocab_size=2**16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TOKENS_PER_READ", per_read)
        for path in token_files(directory):
            pieces = list(read_token_file(path).chunks())
            assert max(map(len, pieces)) <= per_read
            assert [token for piece in pieces for token in piece.tolist()] == ids


def test_our_files_and_what_numpy_saves_are_read(tmp_path):
    write_shard(tmp_path / "train_000000.bin", IDS, vocab_size=50257)
    np.save(tmp_path / "ids.npy", np.array(IDS, dtype=np.uint16))
    ours, saved = (read_token_file(path) for path in sorted(tmp_path.iterdir(), reverse=True))
    assert (ours.format, ours.vocab_size, ours.tokens.tolist()) == ("gpt2scratch", 50257, IDS)
    assert (saved.format, saved.vocab_size, saved.tokens.tolist()) == ("npy", None, IDS)


@pytest.mark.parametrize("dtype", ["<i4", "<u4", "<i8"])
def test_wide_ids_in_a_file_without_a_header_are_refused(tmp_path, dtype):
    path = write(tmp_path, "train.bin", np.arange(1, 400).astype(dtype).tobytes())
    assert "expected ids of two bytes, found 0 in the place of every second one" in refusal(path)


def test_a_file_without_a_header_needs_nanogpts_name_or_the_users_word(tmp_path):
    path = write(tmp_path, "shakespeare.bin", NANOGPT)
    message = refusal(path)
    assert "found 1015596112;" in message  # 15496 * 65536 + 50256
    assert message.endswith("say so with --format nanogpt")
    assert read_token_file(path, format="nanogpt").tokens.tolist() == IDS


def test_a_header_is_not_read_as_ids_whatever_the_user_says(tmp_path):
    write_shard(tmp_path / "ours.bin", IDS, vocab_size=50257)
    np.save(tmp_path / "ids.npy", np.array(IDS, dtype=np.uint16))
    for path in (tmp_path / "ours.bin", tmp_path / "ids.npy"):
        with pytest.raises(ShardError, match="expected ids without a header.*; leave out --format"):
            read_token_file(path, format="nanogpt")


AGAIN = "; copy it again, or write it again with the program that made it"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.bin", b"", "expected tokens, found an empty file; copy or download it again"),
        ("train.bin", b"", "expected tokens, found an empty file; copy or download it again"),
        ("a.npy", b"", "expected tokens, found an empty file; copy or download it again"),
        ("a.bin", LLMC[:-2], f"expected 1034 bytes for 5 tokens, found 1032{AGAIN}"),
        ("a.bin", LLMC[:-1], f"expected 1034 bytes for 5 tokens, found 1033{AGAIN}"),
        ("a.bin", LLMC + b"\0\0", f"expected 1034 bytes for 5 tokens, found 1036{AGAIN}"),
        ("a.bin", LLAMA[:-2], f"expected 1036 bytes for 3 tokens, found 1034{AGAIN}"),
        ("a.bin", LLMC[:500], f"expected a header of 1024 bytes, found 500{AGAIN}"),
        # By its first bytes it is one of llm.c, whatever its name.
        ("train.bin", LLMC[:500], f"expected a header of 1024 bytes, found 500{AGAIN}"),
        ("a.bin", headed(20240520, 1, 0, [], "H"), f"expected tokens, found 0{AGAIN}"),
        ("a.bin", headed(20240520, 1, -5, IDS, "H"), f"expected tokens, found -5{AGAIN}"),
        ("a.bin", headed(20240520, 2, 5, IDS, "H"), "expected version 1 with magic 20240520, fou"),
        ("a.bin", headed(20240801, 1, 5, IDS, "I"), "expected version 7 with magic 20240801, fou"),
        ("a.bin", headed(20240522, 1, 5, IDS, "H"), "expected a stream of tokens, found llm.c's m"),
        ("a.bin", headed(20240520, 1, 5, IDS, "H", 70_000), "expected a vocabulary size that fits"),
        ("a.bin", headed(20240520, 1, 5, IDS, "H", -1), "expected a vocabulary size that fits"),
        (
            "a.bin",
            headed(7, 1, 5, IDS, "H"),
            "expected a .npy file or a header with magic 20240520",
        ),
        (
            "a.bin",
            b"\7",
            "expected a .npy file or a header with magic 20240520 or 20240801, found 7",
        ),
        (
            "train.bin",
            NANOGPT[:-1],
            "expected two bytes per token, found an odd number of bytes, 9",
        ),
        (
            "a.npy",
            NANOGPT,
            "expected a .npy file, found other content (pickled data is never read)",
        ),
        ("train.bin", LFS, "expected tokens, found a Git-LFS pointer; run `git lfs pull` there"),
        ("a.npy", LFS, "expected tokens, found a Git-LFS pointer; run `git lfs pull` there"),
        ("val.bin", b"<!DOCTYPE html>", "expected tokens, found a web page; download the file its"),
        ("a.npy", pickle.dumps(IDS), "expected a .npy file, found other content (pickled data is "),
        ("a.npy", npy(IDS)[:-1], "expected a whole .npy file of integers, found mmap length is "),
        ("a.npy", npy(IDS)[:-10], "expected a whole .npy file of integers, found "),
        ("a.npy", npy(IDS)[:60], "expected a whole .npy file of integers, found "),
        ("a.npy", npy(IDS)[:7], "expected a whole .npy file of integers, found "),
        ("a.npy", npy(IDS) + b"\0", f"expected 138 bytes, found 139 bytes{AGAIN}"),
        ("a.npy", npy(IDS, shape=(-5,)), "expected a whole .npy file of integers, found "),
        ("a.npy", npy(IDS, "<x9"), "expected a whole .npy file of integers, found "),
        (
            "a.npy",
            npy(IDS[:4], shape=(2, 2)),
            "expected one dimension of integers, found uint16 of",
        ),
        (
            "a.npy",
            npy([1.5], "<f4", "f"),
            "expected one dimension of integers, found float32 of sha",
        ),
        (
            "a.npy",
            npy([True], "|b1", "?"),
            "expected one dimension of integers, found bool of shape",
        ),
    ],
)
def test_a_file_that_is_no_stream_of_tokens_is_refused_by_name(tmp_path, name, content, expected):
    assert refusal(write(tmp_path, name, content)).startswith(expected)


def test_an_empty_array_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([], dtype=np.uint16))
    assert refusal(tmp_path / "a.npy") == f"expected tokens, found none{AGAIN}"


class Bomb:
    """Marks a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickled_objects_are_refused_and_not_run(tmp_path):
    fired = tmp_path / "fired"
    np.save(tmp_path / "a.npy", np.array([Bomb(fired)], dtype=object), allow_pickle=True)
    assert refusal(tmp_path / "a.npy").startswith("expected a whole .npy file of integers, found ")
    (tmp_path / "train.npy").write_bytes(pickle.dumps(Bomb(fired)))
    assert "pickled data is never read" in refusal(tmp_path / "train.npy")
    assert not fired.exists()


def test_a_file_that_is_not_there_or_no_file_is_refused_by_name(tmp_path):
    message = refusal(tmp_path / "none.bin")
    assert message == "expected a token file, found No such file or directory"
    assert refusal(tmp_path) == "expected a token file, found Is a directory"


@pytest.mark.parametrize(
    ("ids", "descr", "letter", "found"),
    [
        ([0, 9, 10, 11], "<u2", "H", "found 10;"),
        ([0, 2**40], "<i8", "q", f"found {2**40};"),
        ([0, -1, 10], "<i4", "i", "found -1;"),
        ([0, 2**64 - 1], "<u8", "Q", f"found {2**64 - 1};"),
    ],
)
def test_ids_of_another_tokenizer_are_refused(tmp_path, ids, descr, letter, found):
    file = read_token_file(write(tmp_path, "a.npy", npy(ids, descr, letter)))
    file.check_ids(file.tokens[:1], 10, tokenizer="tiny")
    with pytest.raises(ShardError) as caught:
        file.check_ids(file.tokens, 10, tokenizer="tiny")
    assert str(caught.value).startswith(
        f"{file.path}: expected ids from 0 to 9 as in the tokenizer tiny, {found} name the"
    )


def test_a_directorys_token_files_come_by_name_without_unfinished_ones(tmp_path):
    for name in ("b.npy", "a.bin", ".c.bin", ".a.bin.partial", "notes.txt", "manifest.json"):
        (tmp_path / name).touch()
    assert [path.name for path in token_files(tmp_path)] == ["a.bin", "b.npy"]
