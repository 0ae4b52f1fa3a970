"""Checksums of compressed files: no flipped bit gives other text without an error."""

import random

import pytest
from support.table_files import COMPRESS, jsonl, written

from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.data.sources.decompression import zstd
from modeling_gpt2scratch.data.sources.local_files import read_documents

TEXTS = [f"{i} {i * i} {i**3}" for i in range(60)]
CHECKED_ZST = {zstd.CompressionParameter.checksum_flag: 1}


def compressed(suffix, content):
    """The content, with the checksum that its format can carry."""
    if suffix == ".zst":
        return zstd.compress(content, options=CHECKED_ZST)
    return COMPRESS[suffix](content)


def outcome(path):
    """The texts of a file, or the line that reading it ends in."""
    try:
        return [text for _, text in read_documents(path)]
    except SourceError as error:
        message = str(error)
        assert message.startswith(f"{path}: cannot be read: ") and "\n" not in message
        return message


@pytest.mark.parametrize("n_pieces", [1, 2])
@pytest.mark.parametrize("suffix", [".gz", ".zst", ".xz"])
def test_no_flipped_bit_gives_other_text(tmp_path, suffix, n_pieces):
    pieces = [TEXTS[i::n_pieces] for i in range(n_pieces)]
    whole = b"".join(compressed(suffix, jsonl(piece)) for piece in pieces)
    path = tmp_path / f"a.jsonl{suffix}"
    expected = outcome(written(path, whole))
    assert expected == [text for piece in pieces for text in piece]
    # All bits of the headers and ends, and some of those between.
    step = len(whole) // n_pieces
    ends = {i for start in (0, step) for i in range(start - 14, start + 26)}
    ends |= set(range(len(whole) - 20, len(whole)))
    chosen = [8 * i + bit for i in sorted(ends) if 0 <= i < len(whole) for bit in range(8)]
    chosen += random.Random(0).sample(range(8 * len(whole)), 60)
    found = []
    for bit in chosen:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        found.append(outcome(written(path, bytes(damaged))))
    assert all(texts == expected for texts in found if isinstance(texts, list))
    assert sum(isinstance(texts, str) for texts in found) > 0.8 * len(found)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".xz"])
def test_what_follows_compressed_data_and_is_none_is_refused(tmp_path, suffix):
    path = written(tmp_path / f"a.jsonl{suffix}", compressed(suffix, jsonl(TEXTS)) + b"garbage")
    assert outcome(path).startswith(f"{path}: cannot be read: ")


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_zeros_behind_compressed_data_are_padding(tmp_path, suffix):
    path = written(tmp_path / f"a.jsonl{suffix}", compressed(suffix, jsonl(TEXTS)) + bytes(512))
    assert outcome(path) == TEXTS


def test_a_frame_of_zstd_with_the_longest_window_is_read(tmp_path):
    options = CHECKED_ZST | {
        zstd.CompressionParameter.enable_long_distance_matching: 1,
        zstd.CompressionParameter.window_log: 31,
    }
    # A writer that does not know the length writes the window into the frame.
    compressor = zstd.ZstdCompressor(options=options)
    content = compressor.compress(jsonl(TEXTS)) + compressor.flush()
    with pytest.raises(zstd.ZstdError):
        zstd.decompress(content)
    assert outcome(written(tmp_path / "a.jsonl.zst", content)) == TEXTS


def test_a_damaged_file_names_the_row_before_the_damage_and_what_to_do(tmp_path):
    texts = [random.Random(i).randbytes(500).hex() for i in range(4000)]
    content = bytearray(COMPRESS[".gz"](jsonl(texts)))
    content[-8] ^= 1  # of the checksum, which stands at the end
    message = outcome(written(tmp_path / "a.jsonl.gz", bytes(content)))
    assert "CRC check failed" in message
    assert "(behind row " in message
    assert message.endswith("the file is cut, damaged or not what its name says: fetch it again")
