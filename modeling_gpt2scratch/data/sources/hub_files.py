"""Data sets of the Hub, file by file: which files a subset has, and their verified download.

    files = list_files("HuggingFaceFW/fineweb-edu", subset="sample-10BT")
    path = files[0].fetch(Path("downloads"))

Only names travel until `fetch`; what it returns has the size and the checksum that the Hub lists.
"""

import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

from huggingface_hub import HfApi, RepoFile, constants, hf_hub_download
from huggingface_hub.errors import RevisionNotFoundError
from tqdm import tqdm

from modeling_gpt2scratch.common.checksums import file_sha256
from modeling_gpt2scratch.common.console import warn
from modeling_gpt2scratch.common.errors import SourceError, one_line
from modeling_gpt2scratch.common.hub_requests import (
    DEFAULT_RETRIES,
    LOGIN_HINT,
    DamagedFileError,
    blob_id,
    temporary_cause,
    unreadable,
    with_retries,
)
from modeling_gpt2scratch.common.retries import Retries

Answer = TypeVar("Answer")

PARQUET_REVISION = "refs/convert/parquet"  # where the Hub keeps what it converted itself
READABLE = re.compile(r".*\.(parquet|(jsonl|csv|txt)(\.(gz|zst|xz))?)")
SPLIT = "train"  # the one that is read
PATHS_PER_REQUEST = 100
# The first that is asked of the Hub: who has no network, or misspelt a name, should not wait long.
LISTING_RETRIES = Retries(give_up_after_seconds=30)
MAX_NAMES_IN_MESSAGE = 10
# A level-1 heading of WikiText, ` = Title = `, and not ` = = Section = = `.
WIKITEXT_TITLE = r"^ = [^=].* = \n?$"


@dataclass(frozen=True)
class Preset:
    """A data set of the Hub and how to read it, under a short name in `PRESETS`."""

    repository: str
    subset: str | None = None
    text_column: str = "text"
    # Where rows are lines: a regular expression for the row that begins a new document.
    document_start: str | None = None


PRESETS = {
    "fineweb-edu-10B": Preset("HuggingFaceFW/fineweb-edu", "sample-10BT"),
    "fineweb-10B": Preset("HuggingFaceFW/fineweb", "sample-10BT"),
    "fineweb-edu-100B": Preset("HuggingFaceFW/fineweb-edu", "sample-100BT"),
    "tinystories": Preset("roneneldan/TinyStories"),
    "openwebtext": Preset("Skylion007/openwebtext"),
    "wikitext-103": Preset(
        "Salesforce/wikitext", "wikitext-103-raw-v1", document_start=WIKITEXT_TITLE
    ),
}


@dataclass(frozen=True)
class HubFile:
    """One file of a data set, at one commit."""

    is_download: ClassVar[bool] = True  # may be deleted after reading

    name: str  # path in the repository
    n_bytes: int
    repository: str
    revision: str  # commit hash
    sha256: str | None = None  # of files in large file storage, which have no other checksum
    blob_id: str | None = None  # git's sha1 of the other files

    def fetch(self, directory: Path, *, retries: Retries = DEFAULT_RETRIES) -> Path:
        """Downloads the file into a folder of `directory` and returns its path.

        An intact file from an earlier call is kept, so a killed program loses one download. Calls
        for different files may run at the same time.

        Raises:
            SourceError: if the Hub refuses, cannot be reached for long, or sends damaged content
                again and again. No file is left under the name then.
            OSError: if the file cannot be written.
        """
        folder = directory / self.repository.replace("/", "--")
        path = folder / self.name
        if path.is_file() and self._fault(path) is None:
            return path
        path.unlink(missing_ok=True)
        tried = []
        with_retries(partial(self._download, folder, tried), str(self), retries)
        return path

    def __str__(self) -> str:
        return f"{self.repository}/{self.name}"

    def _download(self, folder: Path, tried: list[bool]) -> None:
        """One attempt; a copy in the user's cache is good enough for the first."""
        force_download = bool(tried)
        tried.append(True)
        try:
            path = Path(
                hf_hub_download(
                    self.repository,
                    self.name,
                    repo_type="dataset",
                    revision=self.revision,
                    local_dir=folder,
                    force_download=force_download,
                    endpoint=constants.ENDPOINT,
                    tqdm_class=_SilentBar,
                )
            )
        except RuntimeError as error:  # of Xet, the Hub's storage
            raise ConnectionError(one_line(error)) from error
        fault = self._fault(path)
        if fault is not None:
            path.unlink()
            raise DamagedFileError(fault)

    def _fault(self, path: Path) -> str | None:
        """What is wrong with a downloaded file."""
        n_bytes = path.stat().st_size
        if n_bytes != self.n_bytes:
            return f"expected {self.n_bytes} bytes, found {n_bytes}"
        found = file_sha256(path) if self.sha256 else blob_id(path)
        expected = self.sha256 or self.blob_id
        return None if found == expected else f"expected checksum {expected}, found {found}"


def list_files(
    repository: str,
    *,
    subset: str | None = None,
    retries: Retries = LISTING_RETRIES,
) -> list[HubFile]:
    """The files of the split `train` of a data set, in the order of the `datasets` library.

    Where the repository itself has a loading script, or files of other formats, the Hub's own
    conversion to parquet is taken, if it is complete (of a script's data also an incomplete one,
    with a warning). Nothing is downloaded but the data set card.

    Args:
        repository: "OWNER/NAME" of a data set.
        subset: configuration, such as "sample-10BT".

    Returns:
        The files; none if the data set has to be streamed (see `hub_stream`).

    Raises:
        SourceError: if the data set, subset or split does not exist or is not accessible.
    """
    return _ask(partial(_list_once, repository, subset), repository, retries)


def commit_of(repository: str) -> str:
    """The commit that a data set's main branch is at.

    Raises:
        SourceError: if it does not exist or is not accessible.
    """
    request = partial(HfApi().dataset_info, repository, expand=["sha"])
    return _ask(request, repository, LISTING_RETRIES).sha


def remove_partial_downloads(directory: Path) -> None:
    """Deletes what killed downloads left; call it while nothing is downloaded to `directory`."""
    for partial_file in directory.glob("*/.cache/huggingface/download/**/*.incomplete"):
        partial_file.unlink(missing_ok=True)


def _ask(request: Callable[[], Answer], repository: str, retries: Retries) -> Answer:
    """The answer to a request; whatever goes wrong in the end is a SourceError."""
    try:
        return with_retries(request, repository, retries)
    except SourceError:
        raise
    except Exception as error:  # of the network, the file system, or any file format
        raise unreadable(repository, error) from error


def _list_once(repository: str, subset: str | None) -> list[HubFile]:
    """`list_files` without a second try."""
    # Only this takes the library, which needs a second to import.
    import datasets

    sha = HfApi().dataset_info(repository, expand=["sha"]).sha
    # Never a local directory of that name, nor what an earlier download left in a cache.
    source = f"hf://datasets/{repository}"
    try:
        with tempfile.TemporaryDirectory() as empty:
            builder = datasets.load_dataset_builder(source, subset, revision=sha, cache_dir=empty)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise SourceError(
            f"{repository}: {one_line(error)} Check the name, or {LOGIN_HINT}"
        ) from None
    except ValueError as error:
        if temporary_cause(error) is None:
            known = datasets.get_dataset_config_names(source, revision=sha)
            if subset is not None or len(known) > 1:
                _check_name("subset", subset, known, repository)
            raise SourceError(f"{repository}: {one_line(error)}") from error
        raise
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        return _of_script(repository, subset)
    by_split = builder.config.data_files or {}
    _check_name("split", SPLIT, list(by_split), repository)
    prefix = f"{source}@{sha}/"
    addresses = list(dict.fromkeys(by_split[SPLIT]))  # two patterns may find the same file
    if all(a.startswith(prefix) and READABLE.fullmatch(a) for a in addresses):
        return _described(repository, [a.removeprefix(prefix) for a in addresses], sha)
    try:
        files, is_partial = _converted(repository, subset)
    except (RevisionNotFoundError, SourceError):
        return []
    return [] if is_partial else files


def _of_script(repository: str, subset: str | None) -> list[HubFile]:
    """The converted files of a data set that is a script, which nothing else can read."""
    try:
        files, is_partial = _converted(repository, subset)
    except RevisionNotFoundError:
        raise SourceError(
            f"{repository}: expected data files, found a loading script, which is no longer run, "
            f"and no conversion to parquet by the Hub; choose another data set"
        ) from None
    if is_partial:
        warn(
            f"{repository}: the Hub converted only the first part of this data set to "
            f"parquet, and only that is read"
        )
    return files


def _converted(repository: str, subset: str | None) -> tuple[list[HubFile], bool]:
    """Files that the Hub converted, SUBSET/SPLIT/0000.parquet, and whether rows are missing.

    Raises:
        RevisionNotFoundError: if it converted nothing.
    """
    sha = HfApi().dataset_info(repository, revision=PARQUET_REVISION, expand=["sha"]).sha
    tree = HfApi().list_repo_tree(repository, repo_type="dataset", revision=sha, recursive=True)
    found: dict[str, dict[str, list[HubFile]]] = {}
    for entry in tree:
        parts = entry.path.split("/")
        if isinstance(entry, RepoFile) and len(parts) == 3 and entry.path.endswith(".parquet"):
            files = found.setdefault(parts[0], {}).setdefault(parts[1], [])
            files.append(_hub_file(repository, entry, sha))
    if subset is None and (len(found) == 1 or "default" in found):
        subset = "default" if "default" in found else next(iter(found))
    _check_name("subset", subset, list(found), repository)
    is_partial = SPLIT not in found[subset] and f"partial-{SPLIT}" in found[subset]
    by_split = {name.removeprefix("partial-"): files for name, files in found[subset].items()}
    _check_name("split", SPLIT, list(by_split), repository)
    return sorted(by_split[SPLIT], key=lambda file: file.name), is_partial


def _described(repository: str, names: list[str], sha: str) -> list[HubFile]:
    """The named files with their sizes and checksums, in the same order."""
    described: dict[str, HubFile] = {}
    for start in range(0, len(names), PATHS_PER_REQUEST):
        paths = names[start : start + PATHS_PER_REQUEST]
        for entry in HfApi().get_paths_info(repository, paths, revision=sha, repo_type="dataset"):
            described[entry.path] = _hub_file(repository, entry, sha)
    return [described[name] for name in names]


def _hub_file(repository: str, entry: RepoFile, sha: str) -> HubFile:
    return HubFile(
        name=entry.path,
        n_bytes=entry.size,
        repository=repository,
        revision=sha,
        sha256=entry.lfs.sha256 if entry.lfs else None,
        blob_id=entry.blob_id,
    )


class _SilentBar(tqdm):
    """A progress bar that shows nothing: downloads run beside another bar."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options | {"disable": True})


def _check_name(kind: str, name: str | None, known: Iterable[str], repository: str) -> None:
    """Refuses an unknown subset or split and names the known ones, the nearest first."""
    known = list(known)
    if name in known:
        return
    listed = sorted(
        known, key=lambda other: SequenceMatcher(None, name or "", other).ratio(), reverse=True
    )
    more = len(listed) - MAX_NAMES_IN_MESSAGE
    names = ", ".join(listed[:MAX_NAMES_IN_MESSAGE]) + (f" and {more} more" if more > 0 else "")
    expected = f"a {kind} of {names}" if names else f"no {kind}, as the data set has none"
    raise SourceError(f"{repository}: expected {expected}; found {name or 'none given'}")
