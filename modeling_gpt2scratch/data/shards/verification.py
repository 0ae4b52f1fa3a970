"""Checks a data directory against its manifest, and names everything that does not fit."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modeling_gpt2scratch.common.console import progress_bar
from modeling_gpt2scratch.common.threads import n_cores
from modeling_gpt2scratch.data.tokens.names import TokenizerError

from .directory import (
    MAX_THREADS,
    load_own_tokenizer,
    open_shard,
    read_pieces,
    shard_layout,
    unlisted,
    unlisted_files,
)
from .format import ShardError, first_stranger
from .manifest import MANIFEST_NAME, PART_PATTERN, Manifest, ShardEntry
from .manifest_checks import ManifestError


@dataclass(frozen=True)
class ShardReport:
    """What was found in one shard."""

    problems: list[str]
    n_documents: int = 0  # ids that are <|endoftext|>


def problems_of(directory: Path, *, fast: bool = False) -> list[str]:
    """Everything that is wrong with a data directory, one line each; empty if nothing is.

    Memory does not depend on the size of the shards, which are read once, several at a time.

    Args:
        directory: what `prepare_data.py`, `convert` or `adopt` made.
        fast: leave the tokens unread: no checksums, no range of ids, no count of documents.

    Raises:
        ShardError: if there is no manifest, or one that cannot be read.
    """
    try:
        manifest = Manifest.load(directory)
    except ManifestError as error:  # by which nothing can be held
        return [str(error)]
    problems = [*_layout_problems(directory, manifest), *_tokenizer_problems(directory, manifest)]
    entries = manifest.shards
    with (
        ThreadPoolExecutor(min(MAX_THREADS, n_cores())) as pool,
        progress_bar(
            total=len(entries), unit=" shards", desc="verifying", is_shown=not fast
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


def read_whole(path: Path, entry: ShardEntry, manifest: Manifest) -> ShardReport:
    """Reads a shard once, for its checksum, its largest id and its documents."""
    sha256 = hashlib.sha256()
    n_documents = position = 0
    out_of_range = None
    for tokens in read_pieces(path, shard_layout(entry, manifest.vocab_size), sha256):
        n_documents += int(np.count_nonzero(tokens == manifest.end_of_text_id))
        first = first_stranger(tokens, manifest.vocab_size)
        if out_of_range is None and first is not None:
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
    return ShardReport(problems, n_documents)


def _layout_problems(directory: Path, manifest: Manifest) -> list[str]:
    """What else is in the directory."""
    problems = [unlisted(file) for file in unlisted_files(directory, manifest)]
    problems += [
        f"{file}: expected a finished directory, found what a killed program left; remove it"
        for file in sorted(directory.glob(".*.partial"))
    ]
    problems += [
        f"{file}: expected merged parts, found one beside {MANIFEST_NAME}; merge or remove it"
        for file in sorted(directory.glob(PART_PATTERN))
    ]
    return problems


def _tokenizer_problems(directory: Path, manifest: Manifest) -> list[str]:
    """Whether the tokenizer is the one that the shards were made with."""
    try:
        load_own_tokenizer(directory, manifest)
    except (ShardError, TokenizerError) as error:
        return [str(error)]
    return []


def _verify_shard(
    directory: Path, entry: ShardEntry, manifest: Manifest, fast: bool
) -> ShardReport:
    """Name, size and header of one shard; and unless `fast`, its checksum and its ids."""
    path = directory / entry.file
    try:
        open_shard(path, entry, vocab_size=manifest.vocab_size)
        return ShardReport([]) if fast else read_whole(path, entry, manifest)
    except ShardError as error:
        return ShardReport([str(error)])
    except (OSError, ValueError) as error:  # it is being replaced, or the disk fails
        return ShardReport([f"{path}: cannot be read: {error}"])
