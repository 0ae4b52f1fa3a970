"""What `--dataset` names: local files, data sets of the Hub, the docstrings on this machine.

A source is a list of files and the way to read them; `document_stream.py` reads.
"""

import dataclasses
import difflib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from huggingface_hub.utils import HFValidationError, validate_repo_id

from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.data.shards.manifest import MANIFEST_NAME
from modeling_gpt2scratch.data.shards.manifest_checks import is_printable

from .docstrings import DOCSTRINGS, DocstringFile
from .file_queue import File
from .filters import Condition
from .hub_files import PRESETS, HubFile, Preset, commit_of, list_files
from .hub_stream import HubStream
from .local_files import NO_BRACES, LocalFile, find_files
from .mixture import parse_mixture
from .readers import COMPRESSIONS
from .url_files import URL_PRESETS, UrlFile

NAMED_CORPORA = (DOCSTRINGS, *URL_PRESETS)  # neither local nor of the Hub
NAMED = (DocstringFile, UrlFile)  # their files
# The address of a data set's page, or of its files, and its name.
OF_HUB = re.compile(
    r"(?:hf://|https?://(?:huggingface\.co|hf\.co)/)datasets/([\w.-]+/[\w.-]+?)"
    r"(?:[@?#]|/(?:tree|viewer|blob|resolve)/|/?$)"
)
DEFAULT_COLUMN = "text"
FILES_AT_ONCE = 4  # read in turn, so that neighbouring documents come from different files


@dataclass(frozen=True)
class Source:
    """One part of the text: files, and how to read them."""

    name: str  # for a data set of the Hub, its repository
    files: Sequence[File]
    weight: float | None = None  # share of the characters; None takes everything
    text_column: str = DEFAULT_COLUMN
    document_start: str | None = None  # rows are joined; one that matches begins a document
    where: tuple[Condition, ...] = ()
    subset: str | None = None  # of a data set on the Hub
    revision: str | None = None  # of that data set, a commit


def open_sources(
    dataset: str,
    *,
    subset: str | None = None,
    text_column: str = DEFAULT_COLUMN,
    where: Sequence[Condition] = (),
    revisions: Mapping[str, str | None] = MappingProxyType({}),
) -> list[Source]:
    """The sources that `--dataset` names, with their files listed but not yet read.

    Args:
        dataset: one or several, "a:0.7,b:0.3", of: "docstrings"; a preset such as
            "fineweb-edu-10B"; a local file, folder or glob; a data set of the Hub, "user/name" or
            "user/name/subset".
        subset: configuration of Hub data sets that name none.
        text_column: the field that holds the document; presets and text files know theirs.
        where: conditions that a row has to meet.
        revisions: of streamed data sets of the Hub, the commit at which one that was begun goes on.

    Raises:
        SourceError: if there is no such file or data set, a name means two or cannot be printed,
            or `subset` means none.
        ValueError: if the weights do not sum to 1.
    """
    sources = [
        dataclasses.replace(
            _open_source(name, subset, text_column, revisions), weight=weight, where=tuple(where)
        )
        for name, weight in parse_mixture(dataset, flag="--dataset")
    ]
    for source in sources:
        if not is_printable(source.name):  # which would stand in the manifest
            raise SourceError(
                f"expected --dataset with names of printable characters, found {source.name!r}; "
                f"rename the file"
            )
    if subset is not None and subset not in [source.subset for source in sources]:
        raise SourceError(
            f"expected --subset for a data set of the Hub that names none, found {subset} for "
            f"{dataset}; leave it out"
        )
    if text_column != DEFAULT_COLUMN and text_column not in [s.text_column for s in sources]:
        raise SourceError(
            f"expected --text_column for files or a data set of the Hub, found {text_column} for "
            f"{dataset}, which has a text of its own; leave it out"
        )
    places = [os.path.realpath(path) for path in local_paths(sources)]
    files = (file for source in sources for file in source.files)
    places += [str(file) for file in files if isinstance(file, HubFile)]
    if twice := [place for place, count in Counter(places).items() if count > 1]:
        raise SourceError(
            f"expected --dataset to name each file once, found {twice[0]} in two of its parts"
        )
    return sources


def describe_files(sources: Sequence[Source]) -> list[list]:
    """What identifies the input, as JSON values: an unfinished preparation goes on with no other.

    Returns:
        Name, size and version of each file: the checksum of a file of the Hub, the time of the last
        change of a local one.
    """
    return [
        [file.name, file.n_bytes, _version(file)] for source in sources for file in source.files
    ]


def local_paths(sources: Sequence[Source]) -> list[Path]:
    """The files that the user has put where they are."""
    files = (file for source in sources for file in source.files)
    return [file.path for file in files if isinstance(file, LocalFile)]


def describe_sources(sources: Sequence[Source]) -> list[dict]:
    """What the manifest says about the input."""
    return [
        {
            "name": source.name,
            "subset": source.subset,
            "revision": source.revision,
            "weight": source.weight,
            "files": len(source.files),
            "bytes": sum(file.n_bytes for file in source.files) or None,  # as stored, if known
            # What decides the content of a corpus that is neither local nor of the Hub.
            "version": next((f.revision for f in source.files if isinstance(f, NAMED)), None),
        }
        for source in sources
    ]


def estimated_bytes(
    sources: Sequence[Source],
    *,
    max_tokens: int | None = None,
    keeps_downloads: bool = False,
    are_bytes: bool = False,
) -> int:
    """Roughly how much disk the shards and downloads of a preparation need."""
    files = [file for source in sources for file in source.files]
    shards = sum(file.n_bytes * _growth(file.name) for file in files) * (4 if are_bytes else 1)
    if max_tokens is not None:
        shards = min(shards, 4 * max_tokens)
    downloads = sorted((f.n_bytes for f in files if isinstance(f, HubFile)), reverse=True)
    return int(shards) + sum(downloads[: None if keeps_downloads else 2 * FILES_AT_ONCE])


def _open_source(
    name: str, subset: str | None, text_column: str, revisions: Mapping[str, str | None]
) -> Source:
    is_path = os.path.exists(name) and not Path(name, MANIFEST_NAME).exists()  # no shards of it
    if name in (*NAMED_CORPORA, *PRESETS) and is_path:
        raise SourceError(
            f"expected --dataset to mean one thing, found {name}, which is a corpus of that name "
            f"and a path here; write ./{name} for the path, or start in another directory"
        )
    if name == DOCSTRINGS:
        return Source(name, [DocstringFile()])
    if name in URL_PRESETS:
        return Source(name, [URL_PRESETS[name]])
    if name in PRESETS:
        return _hub_source(PRESETS[name], revisions)
    files = find_files(name)
    if files is not None:
        return Source(name, files, text_column=text_column)
    _refuse_no_name(name)
    user, _, rest = name.partition("/")
    repository, _, own_subset = rest.partition("/")
    if own_subset:
        name, subset = f"{user}/{repository}", own_subset
    try:
        return _hub_source(Preset(name, subset, text_column), revisions)
    except SourceError as error:
        close = difflib.get_close_matches(name, [*NAMED_CORPORA, *PRESETS], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise SourceError(
            f"{error}; there is no file or folder of that name, either{hint}"
        ) from error


def _refuse_no_name(name: str) -> None:
    """Refuses what no data set of the Hub can be called, an address and a revision among it.

    Raises:
        SourceError: saying what to write.
    """
    if "://" in name:
        of_hub = OF_HUB.match(name)
        hint = f"write {of_hub[1]}" if of_hub else "download the file and name it"
        raise SourceError(
            f"expected --dataset with files or the name of a data set of the Hub, found the "
            f"address {name}; {hint}"
        )
    named, at, revision = name.partition("@")
    if at:
        repository = "/".join(named.split("/")[:2])
        raise SourceError(
            f"expected --dataset with a data set of the Hub in its newest version, found revision "
            f"{revision!r}; write {named}, or download the revision with `hf download "
            f"{repository} --repo-type dataset --revision {revision} --local-dir DIR` and name "
            f"DIR; there is no file or folder of that name, either"
        )
    try:
        validate_repo_id("/".join(name.split("/")[:2]))
    except HFValidationError:
        hint = "weights are written NAME:0.7,NAME:0.3" if re.search("[:=%]", name) else NO_BRACES
        hint = f"; {hint}" if re.search("[:=%{}]", name) else ""
        raise SourceError(
            f"{name}: expected a file, a folder, a glob or a data set of the Hub, found none of "
            f"this name{hint}"
        ) from None


def _hub_source(data: Preset, revisions: Mapping[str, str | None]) -> Source:
    repository, subset, text_column = data.repository, data.subset, data.text_column
    files = list_files(repository, subset=subset)
    if not files:
        # Each pass over the text, and each resumption, must find the same rows.
        stream = HubStream(repository, subset, text_column)
        is_known = stream.name in revisions
        at = revisions[stream.name] if is_known else commit_of(repository)
        files = [dataclasses.replace(stream, revision=at)]
    return Source(
        name=repository,
        files=files,
        subset=subset,
        text_column=text_column,
        document_start=data.document_start,
        revision=files[0].revision,
    )


def _version(file: File) -> str | int | None:
    if isinstance(file, LocalFile):
        return file.path.stat().st_mtime_ns
    if isinstance(file, HubFile):  # a new commit may well have left the file as it was
        return file.sha256 or file.blob_id
    return file.revision


def _growth(name: str) -> float:
    """Bytes of uint16 tokens for a byte of a file.

    English text makes a token of some 4.4 bytes. The three corpora that this was measured on
    shrink to a third under zstd, and web pages to little less in parquet.
    """
    if name.endswith(COMPRESSIONS):
        return 1.5
    return 1.0 if name.endswith(".parquet") else 0.5
