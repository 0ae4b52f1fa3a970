"""Other programs' token files become a data directory where they lie.

Every token is read once; a manifest beside the files is all that is written.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tqdm import tqdm

from modeling_gpt2scratch.common.console import progress_bar, warn
from modeling_gpt2scratch.common.output_directory import writable_directory
from modeling_gpt2scratch.common.threads import n_cores
from modeling_gpt2scratch.data.tokens.tokenizer import absolute_name, manifest_entries

from .directory import MAX_THREADS, read_pieces
from .foreign import ForeignTokenizer, dataset_name, files_by_split, files_of
from .format import ShardError
from .manifest import MANIFEST_NAME, PART_PATTERN, Manifest, ShardEntry, Split
from .token_files import TokenFile


def adopt(
    directory: Path,
    *,
    tokenizer_name: str | None = None,
    val: Sequence[Path] = (),
    format: str | None = None,
) -> Manifest:
    """Checks the token files of a directory and writes the manifest that lets them be trained on.

    A file belongs to the validation split if its name says val. The documents of a split are as
    many as its end-of-text ids.

    Args:
        tokenizer_name: of the tokenizer that wrote them, None if their headers say.
        val: files of the validation split, whatever their names.

    Raises:
        ShardError: if a file is damaged, of an unknown split or of another tokenizer.
        TokenizerError: if the tokenizer cannot be had.
        OSError: if the manifest cannot be written.
    """
    paths = _files_in(directory)
    writable_directory(directory, flag="DIR", is_made=False)
    chosen = _chosen(directory, paths, val)
    splits = files_by_split(paths, chosen, format, may_be_silent=True)
    tokenizer = ForeignTokenizer(tokenizer_name, splits)
    found = {
        split: _examine(members, tokenizer, f"reading {split}") for split, members in splits.items()
    }
    _say_what_is_double([entry for split in found.values() for entry in split.shards])
    name = absolute_name(tokenizer.name)  # whoever trains may stand elsewhere
    manifest = Manifest(
        **manifest_entries(name, tokenizer.tokenizer),
        splits=found,
        arguments={"dataset": dataset_name("adopted", paths[0].name, len(paths))},
    )
    manifest.save(directory)
    return manifest


def _files_in(directory: Path) -> list[Path]:
    """The token files of a directory that is no data directory yet."""
    if not directory.is_dir():
        raise ShardError(f"{directory}: expected a directory of token files, found none")
    if (directory / MANIFEST_NAME).exists():
        raise ShardError(
            f"{directory}: expected token files without a manifest, found {MANIFEST_NAME}; train "
            f"on it as it is, or remove that file to adopt the others anew"
        )
    if list(directory.glob(PART_PATTERN)):
        raise ShardError(
            f"{directory}: expected another program's files, found {PART_PATTERN}; "
            f"`gpt2scratch shards merge` completes this data set"
        )
    return files_of(directory)


def _chosen(directory: Path, paths: Sequence[Path], val: Sequence[Path]) -> list[Path]:
    """The files that the user holds out, which may be named without their directory."""
    here = {path.resolve(): path for path in paths}
    chosen = []
    for path in val:
        found = here.get(path.resolve()) or here.get((directory / path).resolve())
        if found is None:
            raise ShardError(
                f"{path}: expected --val to name token files in {directory}, found another; "
                f"choose among {', '.join(file.name for file in paths[:3])}"
            )
        chosen.append(found)
    return chosen


def _say_what_is_double(entries: Sequence[ShardEntry]) -> None:
    """Warns of two files of the same content, whose text will be read twice."""
    file_of: dict[str, str] = {}
    for entry in entries:
        if (other := file_of.setdefault(entry.sha256, entry.file)) != entry.file:
            warn(f"{entry.file}: expected tokens of its own, found those of {other}; both are used")


def _examine(files: Sequence[TokenFile], tokenizer: ForeignTokenizer, description: str) -> Split:
    """The entry of a split, several files at a time."""
    n_tokens = sum(len(file.tokens) for file in files)
    with (
        progress_bar(total=n_tokens, unit=" tokens", unit_scale=True, desc=description) as progress,
        ThreadPoolExecutor(min(MAX_THREADS, n_cores())) as pool,
    ):
        found = list(
            pool.map(partial(_examine_file, tokenizer=tokenizer, progress=progress), files)
        )
    return Split(
        n_tokens=n_tokens,
        n_documents=sum(n_documents for _, n_documents, _ in found),
        n_bytes=sum(n_bytes for _, _, n_bytes in found),
        shards=tuple(entry for entry, _, _ in found),
    )


def _examine_file(
    file: TokenFile, tokenizer: ForeignTokenizer, progress: tqdm
) -> tuple[ShardEntry, int, int]:
    """The entry of a file, its documents and the bytes of its text."""
    sha256 = hashlib.sha256()
    n_documents = n_bytes = 0
    for tokens in read_pieces(file.path, file.layout, sha256):
        counted = tokenizer.count(file, tokens)
        n_documents += counted[0]
        n_bytes += counted[1]
        progress.update(len(tokens))
    entry = ShardEntry(file.path.name, len(file.tokens), sha256.hexdigest(), file.layout)
    return entry, n_documents, n_bytes
