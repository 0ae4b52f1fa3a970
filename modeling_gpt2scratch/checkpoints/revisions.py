"""A checkpoint as a branch of a repository on the Hub, proved by the checksums that it names."""

from functools import partial
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from modeling_gpt2scratch.common.checksums import CHECKSUMS_NAME, damage, read_checksums
from modeling_gpt2scratch.common.console import warn
from modeling_gpt2scratch.common.errors import SourceError, named
from modeling_gpt2scratch.common.hub_requests import (
    PUSH_HINTS,
    blob_id,
    file_ids,
    make_repository,
    reason_of,
    require_login,
    temporary_cause,
    with_retries,
)
from modeling_gpt2scratch.common.retries import Retries
from modeling_gpt2scratch.distributed.processes import LaunchError

from .checkpoint import WEIGHTS_NAME
from .outbox import REVISION_PREFIX

AT_START = Retries(give_up_after_seconds=10.0)  # a Hub that is down keeps no run from its start
ATTRIBUTES_NAME = ".gitattributes"  # the Hub's own file, in every branch
GIT_CHARACTERS = 40  # of git's sha1; a sha256 has 64


def prepare_repository(repository: str, *, private: bool, is_own: bool) -> None:
    """Makes the repository of a run, before the run begins.

    If the Hub cannot be reached, that is said, and the run may begin all the same.

    Args:
        repository: OWNER/NAME.
        private: make it private.
        is_own: whether the branches there are those of this run.

    Raises:
        LaunchError: without a login, if the Hub refuses, or if another run's branches are there.
    """
    call = partial(with_retries, what=repository, retries=AT_START, hints=PUSH_HINTS)
    try:
        require_login()
        call(partial(make_repository, repository, repo_type="model", private=private))
        branches = call(partial(_branches, repository))
    except SourceError as error:
        if (cause := temporary_cause(error)) is None:
            raise LaunchError(str(error)) from error
        warn(f"{repository}: {reason_of(cause)}; checkpoints are kept until the Hub answers")
        return
    except (ValueError, RuntimeError) as error:  # a token that is none, or a proxy's own page
        raise LaunchError(f"{repository}: expected the Hub, found {named(error)}") from error
    found = [name for name in branches if name.startswith(REVISION_PREFIX)]
    if found and not is_own:
        raise LaunchError(
            f"{repository}: expected no branches of another run, found {found[0]}; name another "
            f"repository, or delete these branches"
        )


def push_revision(folder: Path, repository: str, branch: str) -> str | None:
    """Makes a branch hold the files of a folder and nothing else, in one commit.

    Args:
        folder: with `checksums.json`, which names all the other files.
        repository: that is there.
        branch: made if it is not there, without the files of any other one.

    Returns:
        The commit; None if the branch has these weights already, and was left alone.

    Raises:
        SourceError: if a file is damaged, here or on the Hub.
        HTTPError: if the Hub refuses or cannot be reached.
    """
    if problem := next(damage(folder, listed=[WEIGHTS_NAME]), None):
        raise SourceError(problem)
    sha256 = {name: entry["sha256"] for name, entry in read_checksums(folder).items()}
    files = [folder / name for name in sorted([CHECKSUMS_NAME, *sha256])]
    api = HfApi()
    if branch not in _branches(repository):
        # Not from the newest commit of the main branch, which may hold the weights of the end.
        first = api.list_repo_commits(repository)[-1].commit_id
        api.create_branch(repository, branch=branch, revision=first, exist_ok=True)
    there = file_ids(repository, repo_type="model", revision=branch)
    if there.get(WEIGHTS_NAME) == sha256[WEIGHTS_NAME]:
        return None
    names = {path.name for path in files}
    outdated = there.keys() - names - {ATTRIBUTES_NAME}
    commit = api.create_commit(
        repository,
        [CommitOperationAdd(path.name, path) for path in files]
        + [CommitOperationDelete(name) for name in sorted(outdated)],
        commit_message=f"Checkpoint {branch} of GPT2Scratch",
        revision=branch,
        num_threads=1,  # Python would wait at its end for the uploads of a pool
    )
    there = file_ids(repository, repo_type="model", revision=branch)
    for path in files:
        found = there.get(path.name, "no such file")
        is_git = len(found) == GIT_CHARACTERS  # a small file, outside of large file storage
        if found != (blob_id(path) if is_git else sha256.get(path.name)):
            raise SourceError(
                f"{repository}@{branch}: expected {path.name} with the checksum that it has here, "
                f"found {found}; was it changed by somebody else?"
            )
    return commit.oid


def _branches(repository: str) -> list[str]:
    refs = HfApi().list_repo_refs(repository)
    return [branch.name for branch in refs.branches]
