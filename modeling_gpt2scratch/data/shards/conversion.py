"""Token files of other programs become a data directory of ours, and ours become llm.c's.

Tokens stream from file to file, so memory does not depend on their number, and the directory
appears complete or not at all.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from modeling_gpt2scratch.common.atomic_files import new_directory, require_free
from modeling_gpt2scratch.data.tokens.tokenizer import (
    load_tokenizer,
    manifest_entries,
    save_tokenizer,
)

from .format import HEADER_BYTES, ShardError, read_shard, shard_header
from .manifest import MANIFEST_NAME, Manifest, ShardEntry
from .token_files import TOKENS_PER_READ, TokenFile, read_token_file, token_files
from .writer import SplitWriter


def to_ours(
    sources: Sequence[Path],
    output_dir: Path,
    *,
    tokenizer_name: str,
    val: Sequence[Path] = (),
    format: str | None = None,
    shard_tokens: int,
    overwrite: bool = False,
) -> Manifest:
    """Makes a data directory of other programs' token files, read in the order given.

    A file belongs to the split that its name says. The documents of a split are as many as its
    end-of-text ids, wherever its program puts them.

    Args:
        sources: files, or directories of `.bin` and `.npy` files.
        output_dir: directory to make.
        tokenizer_name: of the tokenizer that wrote the files, which they do not say.
        val: files of the validation split, whatever their names; the others may then have any.
        format: as of `read_token_file`.
        shard_tokens: tokens per shard.
        overwrite: replace an older data directory.

    Raises:
        ShardError: if a file is damaged, of an unknown split or of another tokenizer.
        TokenizerError: if the tokenizer cannot be had.
        FileExistsError: if `output_dir` is in use.
    """
    require_free(output_dir, marker=MANIFEST_NAME, overwrite=overwrite)
    _require_apart(output_dir, [*sources, *val])
    tokenizer = load_tokenizer(tokenizer_name)
    splits = {
        split: [read_token_file(path, format=format) for path in paths]
        for split, paths in _files_by_split(sources, val).items()
    }
    token_bytes = byte_lengths(tokenizer, tokenizer_name)
    n_tokens = sum(len(file.tokens) for files in splits.values() for file in files)
    with new_directory(output_dir.absolute()) as directory, _progress(n_tokens) as progress:
        written = {}
        for split, files in splits.items():
            writer = SplitWriter(
                directory, split, shard_tokens=shard_tokens, vocab_size=len(tokenizer)
            )
            for file in files:
                _copy_tokens(file, writer, tokenizer, token_bytes, tokenizer_name, progress)
            written[split] = writer.close()
        save_tokenizer(tokenizer, directory)
        manifest = Manifest(
            **manifest_entries(tokenizer_name, tokenizer),
            splits=written,
            arguments=_arguments(splits, shard_tokens),
        )
        manifest.save(directory)
    return manifest


def to_llmc(
    source: Path, output_dir: Path, *, name: str | None = None, overwrite: bool = False
) -> dict[str, list[Path]]:
    """Writes a data directory of ours as llm.c and modded-nanogpt write theirs; returns the files.

    `NAME_val_000000.bin` and on, then `NAME_train_000001.bin` and on, as their scripts number them;
    in the headers all words beyond the third are zero. Every source is held against its checksum.

    Args:
        source: the data directory.
        output_dir: directory to make.
        name: what the files' names begin with, otherwise the name of `output_dir`.
        overwrite: replace an older directory of the same name.

    Raises:
        ShardError: if the source is damaged.
        FileExistsError: if `output_dir` is in use.
    """
    manifest = Manifest.load(source)
    name = name or output_dir.absolute().name
    entries = {
        split: manifest.splits[split].shards
        for split in ("val", "train")
        if split in manifest.splits
    }
    first = {"val": 0, "train": max(1, len(entries.get("val", ())))}
    names = {
        split: [f"{name}_{split}_{first[split] + i:06d}.bin" for i in range(len(shards))]
        for split, shards in entries.items()
    }
    require_free(output_dir, marker=names["train"][0], overwrite=overwrite)
    _require_apart(output_dir, [source])
    n_tokens = sum(entry.n_tokens for shards in entries.values() for entry in shards)
    with new_directory(output_dir.absolute()) as directory, _progress(n_tokens) as progress:
        for split, shards in entries.items():
            for entry, file in zip(shards, names[split], strict=True):
                _copy_shard(source / entry.file, entry, directory / file, manifest.vocab_size)
                progress.update(entry.n_tokens)
    return {split: [output_dir / file for file in files] for split, files in names.items()}


def byte_lengths(tokenizer: PreTrainedTokenizerBase, name: str) -> np.ndarray:
    """UTF-8 bytes that each id of a byte-level vocabulary stands for, int64 of shape (entries,).

    In such a vocabulary a character stands for a byte. Special tokens are no text and count 0.

    Raises:
        ShardError: if the tokenizer is not byte-level, so that a token alone has no length.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    decoder = state["decoder"] or {}
    steps = [step["type"] for step in decoder.get("decoders", [decoder]) if step]
    if "ByteLevel" not in steps:
        raise ShardError(
            f"{name}: expected a byte-level tokenizer like GPT-2's, whose tokens have a number of "
            f"bytes each, found {steps or 'none'}; prepare the text with prepare_data.py instead"
        )
    lengths = np.zeros(len(tokenizer), dtype=np.int64)
    for token, index in state["model"]["vocab"].items():
        lengths[index] = len(token)
    for token in state["added_tokens"]:
        lengths[token["id"]] = 0 if token["special"] else len(token["content"].encode())
    return lengths


def _progress(n_tokens: int) -> tqdm:
    """A bar for so many tokens, where somebody watches."""
    return tqdm(total=n_tokens, unit=" tokens", unit_scale=True, desc="converting", disable=None)


def _copy_tokens(
    file: TokenFile,
    writer: SplitWriter,
    tokenizer: PreTrainedTokenizerBase,
    token_bytes: np.ndarray,
    tokenizer_name: str,
    progress: tqdm,
) -> None:
    """Appends a foreign file to a split."""
    if file.vocab_size not in (None, len(tokenizer)):
        raise ShardError(
            f"{file.path}: expected a vocabulary of {len(tokenizer)} entries as in the tokenizer "
            f"{tokenizer_name}, found {file.vocab_size}; name its own with --tokenizer"
        )
    for tokens in file.chunks():
        file.check_ids(tokens, len(tokenizer), tokenizer=tokenizer_name)
        writer.add(
            tokens,
            n_bytes=int(token_bytes[tokens].sum()),
            n_documents=int(np.count_nonzero(tokens == tokenizer.eos_token_id)),
        )
        progress.update(len(tokens))


def _copy_shard(path: Path, entry: ShardEntry, copy: Path, vocab_size: int) -> None:
    """Copies the tokens of one shard under a header of llm.c."""
    tokens = read_shard(path, n_tokens=entry.n_tokens, vocab_size=vocab_size)
    header = shard_header(entry.n_tokens, vocab_size)
    header[3] = 0
    sha256 = hashlib.sha256()
    with open(path, "rb") as source, open(copy, "wb") as target:
        sha256.update(source.read(HEADER_BYTES))
        target.write(header.data)
        while piece := source.read(TOKENS_PER_READ * tokens.itemsize):
            sha256.update(piece)
            target.write(piece)
    if sha256.hexdigest() != entry.sha256:
        raise ShardError(
            f"{path}: expected sha256 {entry.sha256}, found {sha256.hexdigest()}; the file was "
            f"damaged or replaced, prepare the data again"
        )


def _files_by_split(sources: Sequence[Path], val: Sequence[Path]) -> dict[str, list[Path]]:
    """The files of each split that has any, by the rules of `to_ours`."""
    splits = {"train": [], "val": list(val)}
    chosen = {path.absolute() for path in val}
    for path in (file for source in sources for file in _files_of(source)):
        if path.absolute() in chosen:
            continue
        name = path.name.lower()
        says = [split for split in splits if split in name]
        if len(says) != 1 and not (val and not says):
            raise ShardError(
                f"{path}: expected train or val in the name of the file, found "
                f"{' and '.join(says) or 'neither'}; name the files of the validation split after "
                f"--val, or rename it"
            )
        splits[says[0] if says else "train"].append(path)
    if not splits["train"]:
        raise ShardError(
            f"{', '.join(map(str, sources))}: expected training files among them, found none; "
            f"a name with train in it makes one"
        )
    return {split: paths for split, paths in splits.items() if paths}


def _files_of(source: Path) -> list[Path]:
    """A file itself, or the token files of a foreign directory."""
    if not source.is_dir():
        return [source]
    if (source / MANIFEST_NAME).exists():
        raise ShardError(
            f"{source}: expected another program's files, found {MANIFEST_NAME}; it is a data "
            f"directory of ours already"
        )
    files = token_files(source)
    if not files:
        raise ShardError(f"{source}: expected .bin or .npy files, found none; name another")
    return files


def _require_apart(output_dir: Path, sources: Sequence[Path]) -> None:
    """Refuses to replace what is being read."""
    output = output_dir.resolve()
    for source in sources:
        if output == source.resolve() or output in source.resolve().parents:
            raise FileExistsError(
                f"expected an output directory apart from the sources, found {source} in it; "
                f"choose another"
            )


def _arguments(splits: dict[str, list[TokenFile]], shard_tokens: int) -> dict:
    """How the directory was made, for its manifest; names of files, for paths are private."""
    files = [
        {"file": file.path.name, "split": split, "format": file.format}
        | {"n_tokens": len(file.tokens)}
        for split, members in splits.items()
        for file in members
    ]
    # With blanks, so that nobody takes it for the name of a data set on the Hub.
    dataset = f"converted from {files[0]['file']}" + " and others" * (len(files) > 1)
    return {"dataset": dataset, "converted": files, "shard_tokens": shard_tokens}
