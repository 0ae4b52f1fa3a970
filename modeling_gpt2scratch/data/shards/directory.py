"""A data directory: the files that its manifest lists, opened with a look at size and header.

What the manifest alone cannot tell is refused here: files that are missing, cut or of another
format, and files of tokens that it does not list.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modeling_gpt2scratch.data.tokens.ids import token_dtype

from .format import HEADER_BYTES, ShardError
from .manifest import MANIFEST_NAME, FileLayout, Manifest, ShardEntry
from .manifest_checks import AGAIN
from .token_files import read_token_file, token_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTES_PER_READ = 2**23
MAX_THREADS = 8  # a disk does not become faster beyond


def load_manifest(directory: Path) -> Manifest:
    """The manifest of a directory that holds no other files of tokens than it lists.

    Raises:
        ShardError: if it does, as perhaps an entry was lost, or if the manifest cannot be true.
    """
    manifest = Manifest.load(directory)
    for file in unlisted_files(directory, manifest):
        raise ShardError(unlisted(file))
    return manifest


def open_shard(path: Path, entry: ShardEntry, *, vocab_size: int) -> np.ndarray:
    """The tokens of a shard, memory-mapped where they lie, of shape (n_tokens,).

    Args:
        entry: what the manifest says of it.
        vocab_size: what its ids stay below; they are not read, see `check_token_ids`.

    Raises:
        ShardError: if the file is missing, truncated, of another format or not what the manifest
            says.
    """
    if path.exists() and not path.is_file():
        raise ShardError(f"{path}: expected a file of tokens, found something else; remove it")
    layout = shard_layout(entry, vocab_size)
    file = read_token_file(path, format=layout.format)
    if entry.layout is None and file.format == "llm.c":  # our format without a vocabulary size
        file = dataclasses.replace(file, format=layout.format)
    tokens = file.tokens
    expected, found = (layout, entry.n_tokens), (file.layout, len(tokens))
    if expected != found or file.vocab_size not in (None, vocab_size):
        again = "prepare the data" if entry.layout is None else "adopt the directory"
        raise ShardError(
            f"{path}: expected {_described(*expected)} below {vocab_size}, found "
            f"{_described(*found)} below {file.vocab_size or 'any'}; copy it again, or {again} "
            f"again"
        )
    return tokens


def read_pieces(path: Path, layout: FileLayout, digest: hashlib._Hash) -> Iterator[np.ndarray]:
    """The tokens of a file from the disk, a few million at a time; all its bytes go to a digest."""
    with open(path, "rb") as file:
        digest.update(file.read(layout.header_bytes))
        while piece := file.read(BYTES_PER_READ):
            digest.update(piece)
            yield np.frombuffer(piece, layout.dtype)


def shard_layout(entry: ShardEntry, vocab_size: int) -> FileLayout:
    """Where the tokens of a shard stand in its file."""
    return entry.layout or FileLayout("gpt2scratch", token_dtype(vocab_size), HEADER_BYTES)


def shard_bytes(entry: ShardEntry, vocab_size: int) -> int:
    """Size of a shard's file."""
    layout = shard_layout(entry, vocab_size)
    return layout.header_bytes + entry.n_tokens * np.dtype(layout.dtype).itemsize


def unlisted_files(directory: Path, manifest: Manifest) -> list[Path]:
    """Files of tokens in the directory that the manifest does not list."""
    listed = {entry.file for entry in manifest.shards}
    return [file for file in token_files(directory) if file.name not in listed]


def unlisted(file: Path) -> str:
    """What is wrong with such a file, and what to do."""
    return (
        f"{file}: expected only shards that {MANIFEST_NAME} lists, found one that it does not; "
        f"remove it or prepare the data again"
    )


def load_own_tokenizer(
    directory: Path, manifest: Manifest, *, name: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer that made the shards: beside them, or of other programs' files by its name.

    Args:
        name: of the data in messages, the directory's if None.

    Raises:
        ShardError: if it is not there, or another one.
        TokenizerError: if its files cannot be read.
    """
    from modeling_gpt2scratch.data.tokens.tokenizer import load_tokenizer, vocabulary_of

    name = name or str(directory)
    is_beside = (directory / "tokenizer.json").is_file()
    if not is_beside and not manifest.is_adopted:
        raise ShardError(
            f"{name}: expected the tokenizer beside the shards, found no tokenizer.json"
        )
    place = str(directory.resolve()) if is_beside else manifest.tokenizer["name"]
    tokenizer = load_tokenizer(place)
    expected, found = manifest.vocabulary, vocabulary_of(tokenizer)
    if (expected[0], expected[2]) != (found[0], found[2]):
        raise ShardError(
            f"{name}: expected a tokenizer of (entries, end-of-text id, fingerprint) {expected}, "
            f"found {found}; the tokenizer {'beside the shards' if is_beside else place} is not "
            f"theirs"
        )
    if expected != found:
        raise ShardError(
            f"{name}: expected a tokenizer whose eos token is the manifest's {expected[1]}, found "
            f"{found[1]}; {AGAIN}"
        )
    return tokenizer


def _described(layout: FileLayout, n_tokens: int) -> str:
    return f"{n_tokens} ids {layout.dtype} of {layout.format} after {layout.header_bytes} bytes"
