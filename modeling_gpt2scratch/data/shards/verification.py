"""Holds a data directory against its manifest, and names everything that does not fit."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from modeling_gpt2scratch.data.tokens.ids import token_dtype
from modeling_gpt2scratch.data.tokens.names import TokenizerError
from modeling_gpt2scratch.data.tokens.tokenizer import fingerprint, load_tokenizer

from .format import HEADER_BYTES, ShardError, read_shard
from .manifest import MANIFEST_NAME, Manifest, ShardEntry
from .token_files import token_files

BYTES_PER_READ = 2**23
MAX_THREADS = 8  # a disk does not become faster beyond


@dataclass(frozen=True)
class _Found:
    """What was found in one shard."""

    problems: list[str]
    n_documents: int = 0  # ids that are <|endoftext|>


def problems_of(directory: Path, *, fast: bool = False) -> list[str]:
    """Everything that is wrong with a data directory, one line each; empty if nothing is.

    Memory does not depend on the size of the shards, which are read once, several at a time.

    Args:
        directory: what `prepare_data.py` or `convert` made.
        fast: leave the tokens unread: no checksums, no range of ids, no count of documents.

    Raises:
        ShardError: if there is no manifest, or one that cannot be read.
    """
    manifest = Manifest.load(directory)
    problems = [*_layout_problems(directory, manifest), *_tokenizer_problems(directory, manifest)]
    entries = [entry for split in manifest.splits.values() for entry in split.shards]
    with (
        ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool,
        tqdm(
            total=len(entries), unit=" shards", desc="verifying", disable=fast or None
        ) as progress,
    ):
        found = {}
        results = pool.map(lambda entry: _verify_shard(directory, entry, manifest, fast), entries)
        for entry, result in zip(entries, results, strict=True):
            found[entry.file] = result
            progress.update()
    problems += [problem for result in found.values() for problem in result.problems]
    for name, split in manifest.splits.items():
        results = [found[entry.file] for entry in split.shards]
        n_documents = sum(result.n_documents for result in results)
        is_read = not fast and not any(result.problems for result in results)
        if is_read and n_documents != split.n_documents:
            problems.append(
                f"{directory / MANIFEST_NAME}: expected {split.n_documents} documents in split "
                f"{name!r}, found {n_documents} end-of-text ids ({manifest.end_of_text_id}) in its "
                f"shards"
            )
    return problems


def _layout_problems(directory: Path, manifest: Manifest) -> list[str]:
    """What the manifest says against itself and against the names in the directory."""
    path = directory / MANIFEST_NAME
    problems = []
    content = json.loads(path.read_bytes())
    layout = {"dtype": token_dtype(manifest.vocab_size), "header_bytes": HEADER_BYTES}
    found_layout = {key: content.get(key) for key in layout}
    if found_layout != layout:
        problems.append(f"{path}: expected {layout}, found {found_layout}")
    if not 0 <= manifest.end_of_text_id < manifest.vocab_size:
        problems.append(
            f"{path}: expected an end-of-text id below {manifest.vocab_size}, "
            f"found {manifest.end_of_text_id}"
        )
    for name, split in manifest.splits.items():
        n_tokens = sum(entry.n_tokens for entry in split.shards)
        if n_tokens != split.n_tokens:
            problems.append(
                f"{path}: expected {split.n_tokens} tokens in split {name!r}, found {n_tokens} in "
                f"the list of its shards"
            )
    listed = [entry.file for split in manifest.splits.values() for entry in split.shards]
    twice = sorted({file for file in listed if listed.count(file) > 1})
    problems += [f"{path}: expected each shard once, found {file} again" for file in twice]
    problems += [
        f"{file}: expected only shards that {MANIFEST_NAME} lists, found one that it does not; "
        f"remove it or prepare the data again"
        for file in token_files(directory)
        if file.name not in listed
    ]
    problems += [
        f"{file}: expected a finished directory, found what a killed program left; remove it"
        for file in sorted(directory.glob(".*.partial"))
    ]
    problems += [
        f"{file}: expected merged parts, found one beside {MANIFEST_NAME}; merge or remove it"
        for file in sorted(directory.glob("manifest.part-*.json"))
    ]
    return problems


def _tokenizer_problems(directory: Path, manifest: Manifest) -> list[str]:
    """Whether the tokenizer beside the shards is the one they were made with."""
    if not (directory / "tokenizer.json").is_file():
        return [f"{directory}: expected the tokenizer beside the shards, found no tokenizer.json"]
    try:
        tokenizer = load_tokenizer(str(directory))
    except TokenizerError as error:
        return [str(error)]
    expected = (manifest.vocab_size, manifest.end_of_text_id, manifest.tokenizer.get("fingerprint"))
    found = (len(tokenizer), tokenizer.eos_token_id, fingerprint(tokenizer))
    if expected != found:
        return [
            f"{directory}: expected a tokenizer of (entries, end-of-text id, fingerprint) "
            f"{expected}, found {found}; the tokenizer beside the shards is not theirs"
        ]
    return []


def _verify_shard(directory: Path, entry: ShardEntry, manifest: Manifest, fast: bool) -> _Found:
    """Name, size and header of one shard; and unless `fast`, its checksum and its ids."""
    path = directory / entry.file
    if Path(entry.file).name != entry.file:
        return _Found([f"{path}: expected the name of a file in {directory}, found a path"])
    try:
        read_shard(path, n_tokens=entry.n_tokens, vocab_size=manifest.vocab_size)
        return _Found([]) if fast else _read_whole(path, entry, manifest)
    except ShardError as error:
        return _Found([str(error)])
    except (OSError, ValueError) as error:  # it is being replaced, or the disk fails
        return _Found([f"{path}: cannot be read: {error}"])


def _read_whole(path: Path, entry: ShardEntry, manifest: Manifest) -> _Found:
    """Reads a shard once, for its checksum, its largest id and its documents."""
    sha256 = hashlib.sha256()
    n_documents = position = 0
    out_of_range = None
    with open(path, "rb") as file:
        sha256.update(file.read(HEADER_BYTES))
        while piece := file.read(BYTES_PER_READ):
            sha256.update(piece)
            tokens = np.frombuffer(piece, token_dtype(manifest.vocab_size))
            n_documents += int(np.count_nonzero(tokens == manifest.end_of_text_id))
            if out_of_range is None and int(tokens.max()) >= manifest.vocab_size:
                first = int(np.argmax(tokens >= manifest.vocab_size))
                out_of_range = f"{tokens[first]} at token {position + first}"
            position += len(tokens)
    problems = []
    if sha256.hexdigest() != entry.sha256:
        problems.append(
            f"{path}: expected sha256 {entry.sha256}, found {sha256.hexdigest()}; the file was "
            f"damaged or replaced, copy it again or prepare the data again"
        )
    if out_of_range:
        problems.append(
            f"{path}: expected ids below {manifest.vocab_size}, found {out_of_range}; prepare the "
            f"data again"
        )
    return _Found(problems, n_documents)
