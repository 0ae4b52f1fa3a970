"""Token files of other programs become a data directory of ours, and ours become llm.c's.

Tokens stream from file to file, so memory does not depend on their number, and the directory
appears complete or not at all.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from modeling_gpt2scratch.common.atomic_files import write_json
from modeling_gpt2scratch.common.console import progress_bar
from modeling_gpt2scratch.common.output_directory import CONVERTED_SHARDS, making, output_directory
from modeling_gpt2scratch.data.tokens.ids import token_dtype
from modeling_gpt2scratch.data.tokens.tokenizer import manifest_entries, save_tokenizer

from .directory import load_manifest, open_shard, read_pieces, shard_layout
from .foreign import ForeignTokenizer, dataset_name, files_by_split, files_of
from .format import MAX_SHARD_TOKENS, ShardError, first_stranger, shard_header
from .manifest import DATA_MARKER, MANIFEST_NAME, Manifest, ShardEntry
from .token_files import TokenFile
from .writer import SplitWriter

BAR = {"desc": "converting", "unit": " tokens", "unit_scale": True}


def to_ours(
    sources: Sequence[Path],
    output_dir: Path,
    *,
    tokenizer_name: str | None = None,
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
        tokenizer_name: of the tokenizer that wrote the files, None if their headers say.
        val: files of the validation split, whatever their names; the others may then have any.
        shard_tokens: tokens per shard.
        overwrite: replace an older data directory.

    Raises:
        ShardError: if a file is damaged, of an unknown split or of another tokenizer.
        TokenizerError: if the tokenizer cannot be had.
        OutputError: if `output_dir` must not or cannot be written to.
    """
    rule = {"marker": DATA_MARKER, "overwrite": overwrite}
    place = output_directory(
        output_dir, **rule, inputs=[*sources, *val], kept=[tokenizer_name], flag="OUTPUT_DIR"
    )
    paths = [file for source in sources for file in _files_of(source)]
    splits = files_by_split(paths, val, format)
    tokenizer = ForeignTokenizer(tokenizer_name, splits)
    n_tokens = sum(len(file.tokens) for members in splits.values() for file in members)
    with making(place, **rule) as directory, progress_bar(total=n_tokens, **BAR) as progress:
        written = {}
        for split, members in splits.items():
            writer = SplitWriter(
                directory, split, shard_tokens=shard_tokens, vocab_size=tokenizer.vocab_size
            )
            for file in members:
                _copy_tokens(file, writer, tokenizer, progress)
            written[split] = writer.close()
        save_tokenizer(tokenizer.tokenizer, directory)
        manifest = Manifest(
            **manifest_entries(tokenizer.name, tokenizer.tokenizer),
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
        output_dir: directory to make.
        name: what the files' names begin with, otherwise the name of `output_dir`.
        overwrite: replace an older directory that this function made.

    Raises:
        ShardError: if the source is damaged, or has a file of more tokens than a header can say.
        OutputError: if `output_dir` must not or cannot be written to.
    """
    rule = {"marker": CONVERTED_SHARDS, "overwrite": overwrite}
    place = output_directory(output_dir, **rule, inputs=[source], flag="OUTPUT_DIR")
    manifest = load_manifest(source)
    for entry in manifest.shards:
        open_shard(source / entry.file, entry, vocab_size=manifest.vocab_size)
    name = name or output_dir.absolute().name
    if name != Path(name).name:
        raise ShardError(f"expected --name to begin the names of files, found {name!r}")
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
    for entry in (entry for shards in entries.values() for entry in shards):
        if entry.n_tokens > MAX_SHARD_TOKENS:
            raise ShardError(
                f"{source / entry.file}: expected at most {MAX_SHARD_TOKENS:,} tokens in a file of "
                f"llm.c, found {entry.n_tokens:,}; convert it --to ours first"
            )
    n_tokens = sum(entry.n_tokens for shards in entries.values() for entry in shards)
    with making(place, **rule) as directory, progress_bar(total=n_tokens, **BAR) as progress:
        for split, shards in entries.items():
            for entry, file in zip(shards, names[split], strict=True):
                _copy_shard(source / entry.file, entry, directory / file, manifest.vocab_size)
                progress.update(entry.n_tokens)
        write_json(directory / CONVERTED_SHARDS.name, CONVERTED_SHARDS.content())
    return {split: [output_dir / file for file in files] for split, files in names.items()}


def _copy_tokens(
    file: TokenFile, writer: SplitWriter, tokenizer: ForeignTokenizer, progress: tqdm
) -> None:
    """Appends a foreign file to a split."""
    for tokens in file.chunks():
        n_documents, n_bytes = tokenizer.count(file, tokens)
        writer.add(tokens, n_bytes=n_bytes, n_documents=n_documents)
        progress.update(len(tokens))


def _copy_shard(path: Path, entry: ShardEntry, copy: Path, vocab_size: int) -> None:
    """Copies the tokens of one shard under a header of llm.c."""
    header = shard_header(entry.n_tokens, vocab_size)
    header[3] = 0
    sha256 = hashlib.sha256()
    with open(copy, "wb") as target:
        target.write(header.data)
        for tokens in read_pieces(path, shard_layout(entry, vocab_size), sha256):
            if first_stranger(tokens, vocab_size) is not None:
                raise ShardError(
                    f"{path}: expected ids below {vocab_size}, found others; run gpt2scratch "
                    f"shards verify"
                )
            target.write(tokens.astype(token_dtype(vocab_size), copy=False).data)
    if sha256.hexdigest() != entry.sha256:
        raise ShardError(
            f"{path}: expected sha256 {entry.sha256}, found {sha256.hexdigest()}; the file was "
            f"damaged or replaced, prepare the data again"
        )


def _files_of(source: Path) -> list[Path]:
    """A file itself, or the token files of a foreign directory."""
    if not source.is_dir():
        return [source]
    if (source / MANIFEST_NAME).exists():
        raise ShardError(
            f"{source}: expected another program's files, found {MANIFEST_NAME}; it is a data "
            f"directory already: train on it, or name its files to copy them"
        )
    return files_of(source)


def _arguments(splits: dict[str, list[TokenFile]], shard_tokens: int) -> dict:
    """How the directory was made, for its manifest; names of files, for paths are private."""
    files = [
        {"file": file.path.name, "split": split, "format": file.format}
        | {"n_tokens": len(file.tokens)}
        for split, members in splits.items()
        for file in members
    ]
    dataset = dataset_name("converted from", files[0]["file"], len(files))
    return {"dataset": dataset, "converted": files, "shard_tokens": shard_tokens}
