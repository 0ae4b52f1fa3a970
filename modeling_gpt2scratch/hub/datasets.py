"""A data directory as a data set of the Hub.

Shards go first, a few to a commit, the manifest and a data set card last. An interrupted push
has no manifest, so nobody mistakes it for a complete data set; the next one continues, and skips
files whose checksum matches. Of an earlier data set, the shards in its manifest
are deleted and a tokenizer's files; what else is in the repository stays. So do shards of a push
that was cut off, if the next one has none of their names.
"""

import tempfile
from collections.abc import Container
from functools import partial
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download

from modeling_gpt2scratch.common.atomic_files import write_file
from modeling_gpt2scratch.common.errors import SourceError, named
from modeling_gpt2scratch.common.hub_requests import (
    DEFAULT_RETRIES,
    PUSH_HINTS,
    answered,
    blob_id,
    file_ids,
    make_repository,
    require_login,
    with_retries,
)
from modeling_gpt2scratch.common.retries import Retries
from modeling_gpt2scratch.data.shards.directory import load_own_tokenizer
from modeling_gpt2scratch.data.shards.format import ShardError
from modeling_gpt2scratch.data.shards.manifest import MANIFEST_NAME, Manifest, ShardEntry
from modeling_gpt2scratch.data.shards.verification import problems_of
from modeling_gpt2scratch.data.tokens.tokenizer import save_tokenizer
from modeling_gpt2scratch.reports.data_card import data_card, public_manifest

CARD_NAME = "README.md"
PUBLISHED_FILES = (  # some of them
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja"),
)
AT_START = Retries(give_up_after_seconds=30.0)
SHARDS_PER_COMMIT = 10  # some 2 GB; the Hub limits the number of commits in an hour


def push_data(
    directory: Path,
    repository: str,
    *,
    private: bool = False,
    license: str | None = None,
    retries: Retries = DEFAULT_RETRIES,
) -> str:
    """Uploads a data directory as a data set and returns the address of the repository.

    Args:
        repository: OWNER/NAME, made if it is not there.
        private: make it private; an existing public one is refused then.
        license: of the text, by the Hub's name for it; None states none.
        retries: how long to go on while the Hub fails.

    Raises:
        SourceError: if there is no login, or the Hub refuses or cannot be reached.
        ShardError: if the directory is not a complete data set.
    """
    require_login()
    manifest = read_verified(directory)
    call = partial(with_retries, what=repository, retries=retries, hints=PUSH_HINTS)
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_small_files(directory, Path(folder), manifest, repository, license)
            url = call(partial(make_repository, repository, repo_type="dataset", private=private))
            shards = manifest.shards
            for start in range(0, len(shards), SHARDS_PER_COMMIT):
                group = shards[start : start + SHARDS_PER_COMMIT]
                call(partial(_push_shards, repository, directory, group, shards, Path(folder)))
                print(f"{repository}: {start + len(group):,} of {len(shards):,} shards are there")
            call(partial(_finish, repository, Path(folder), shards))
    except (SourceError, ShardError):
        raise
    except (ValueError, RuntimeError) as error:  # of the uploader, or of its storage
        raise SourceError(
            f"{repository}: {answered(error)}; run the same command again to go on"
        ) from error
    return url


def require_place(repository: str, *, private: bool) -> None:
    """Makes the repository before hours of work whose result is to go there.

    Raises:
        SourceError: if there is no login, or the Hub refuses or cannot be reached.
    """
    require_login()
    call = partial(with_retries, what=repository, retries=AT_START, hints=PUSH_HINTS)
    try:
        call(partial(make_repository, repository, repo_type="dataset", private=private))
    except SourceError:
        raise
    except (ValueError, RuntimeError) as error:  # a token that is none, or a proxy's own page
        raise SourceError(f"{repository}: expected the Hub, found {named(error)}") from error


def read_verified(directory: Path) -> Manifest:
    """The manifest of a directory in which nothing contradicts it; all shards are read for it.

    Raises:
        ShardError: if a shard, the manifest or the tokenizer is missing or wrong.
    """
    problems = problems_of(directory)
    if problems:
        raise ShardError(problems[0])
    return Manifest.load(directory)


def write_small_files(
    directory: Path, folder: Path, manifest: Manifest, repository: str, license: str | None
) -> None:
    """Writes everything but the shards into an empty folder: manifest, card and tokenizer."""
    published = public_manifest(manifest)
    published.save(folder)
    data_card(published, repository=repository, license=license).save(folder / CARD_NAME)
    if not (directory / "tokenizer.json").is_file():  # other programs' files, adopted
        save_tokenizer(load_own_tokenizer(directory, manifest), folder)
    blobs = directory.resolve().parent.parent / "blobs"  # of a data set in the Hub's cache
    for path in [directory / name for name in PUBLISHED_FILES]:
        if path.is_symlink() and path.resolve().parent != blobs:
            raise ShardError(
                f"{path}: expected a file to publish, found a link; copy what it names"
            )
        if path.is_file():
            write_file(folder / path.name, path.read_bytes())


def _push_shards(
    repository: str,
    directory: Path,
    group: list[ShardEntry],
    shards: list[ShardEntry],
    folder: Path,
) -> None:
    """One commit of those of a group that are not there; with it an earlier data set goes."""
    there = file_ids(repository, repo_type="dataset")
    missing = [entry for entry in group if there.get(entry.file) != entry.sha256]
    if not missing:
        return
    operations = [CommitOperationAdd(entry.file, directory / entry.file) for entry in missing]
    if MANIFEST_NAME in there and there[MANIFEST_NAME] != blob_id(folder / MANIFEST_NAME):
        operations.append(CommitOperationDelete(MANIFEST_NAME))
        operations += _deletions(repository, there, shards, folder)
    _commit(repository, operations, f"Add {missing[0].file} to {missing[-1].file}")


def _finish(repository: str, folder: Path, shards: list[ShardEntry]) -> None:
    """The last commit: manifest, card and tokenizer; those of an earlier data set go."""
    there = file_ids(repository, repo_type="dataset")
    wanted = {entry.file: entry.sha256 for entry in shards}
    wrong = [name for name, sha256 in wanted.items() if there.get(name) != sha256]
    if wrong:
        raise SourceError(
            f"{repository}: expected {len(wanted)} shards, found {len(wanted) - len(wrong)}; "
            f"was {wrong[0]} changed by somebody else? Run the same command again"
        )
    additions = [CommitOperationAdd(path.name, path) for path in sorted(folder.iterdir())]
    deletions = _deletions(repository, there, shards, folder)
    _commit(repository, [*additions, *deletions], "Add the manifest: the data is complete")


def _deletions(
    repository: str, there: Container[str], shards: list[ShardEntry], folder: Path
) -> list[CommitOperationDelete]:
    """Of the files that the data set had which is there now, by its manifest; others are not ours.

    Args:
        repository: with or without a data set.
        shards: which stay, as do the files in `folder`.
    """
    if MANIFEST_NAME not in there:
        return []
    try:
        file = hf_hub_download(repository, MANIFEST_NAME, repo_type="dataset")
        before = Manifest.load(Path(file).parent)
    except ShardError:  # somebody else's file of that name
        return []
    kept = {*(entry.file for entry in shards), *(path.name for path in folder.iterdir())}
    names = [*(entry.file for entry in before.shards), *PUBLISHED_FILES]
    return [CommitOperationDelete(name) for name in names if name in there and name not in kept]


def _commit(repository: str, operations: list, message: str) -> None:
    api = HfApi()
    api.create_commit(repository, operations, commit_message=message, repo_type="dataset")
