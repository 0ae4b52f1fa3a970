"""Where a command may write: which directory is new, which is ours, and which is left alone.

Every command that makes a directory asks here before its work starts. Links are resolved, so that
what is replaced is the directory itself and not a link to it. A directory is ours only if its
marker says so: a JSON file that names its format and version. A name alone is anybody's.
"""

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .atomic_files import PARTIAL_SUFFIX, new_directory
from .errors import located, one_line

LOCK_NAME = "run.lock"  # held by a run, in its directory
STATUS_NAME = "status.json"  # what a run says of itself
REPLACED_NAME = ".replaced"  # what a run replaces, in its directory, until it can begin
PREPARING_SUFFIX = ".preparing"  # of a hidden directory, the unfinished work of a preparation
MAX_MARKER_BYTES = 2**26  # a manifest of very many shards has half of it
ELSEWHERE = "choose another"
REPLACE = f"{ELSEWHERE} or add --overwrite"
# Where the libraries that we use keep what they downloaded.
CACHE_VARIABLES = (
    *("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "TIKTOKEN_CACHE_DIR", "XDG_CACHE_HOME"),
)
OWN_FORMATS = "gpt2scratch-"  # what the formats of all our markers begin with
# Names of all our markers, and what each stands for.
KINDS = {
    **{"train_config.json": "run", "manifest.json": "data directory"},
    **{"results.json": "comparison", ".gpt2scratch.json": "conversion"},
}
MAKEABLE = "expected a directory that can be made and written to"
Paths = Iterable[str | Path | None]  # None and names of nothing on this machine are passed over


class OutputError(FileExistsError):
    """A directory that a command must not or cannot write to."""


@dataclass(frozen=True)
class Marker:
    """The file by which a directory of one kind is known."""

    name: str
    format: str
    version: int = 1

    def content(self) -> dict:
        """What it says of itself."""
        return {"format": self.format, "version": self.version}

    def difference(self, directory: Path) -> str | None:
        """What was found in place of this marker; None if the directory is one of this kind."""
        path = directory / self.name
        if not path.is_file():
            return "other content"
        try:
            format, version = _format_and_version(path)
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return f"a {self.name} of another program"
        if format != self.format:
            return f"a {self.name} of another kind"
        if type(version) is not int or not 1 <= version <= self.version:
            return f"a {self.name} of version {version!r}, which this program does not know"
        return None


# In what was converted for other programs, whose files have names that others give as well.
CONVERTED_MODEL = Marker(".gpt2scratch.json", "gpt2scratch-converted-model")
CONVERTED_SHARDS = Marker(".gpt2scratch.json", "gpt2scratch-converted-shards")


def output_directory(
    path: str | Path,
    *,
    marker: Marker | None = None,
    overwrite: bool = False,
    inputs: Paths = (),
    kept: Paths = (),
    flag: str = "--output_dir",
    is_ours: bool = False,
    is_renamed: bool = True,
    remedy: str = REPLACE,
) -> Path:
    """The place of a directory that is to be made, without links on the way to it.

    Args:
        path: as the user gave it.
        marker: of directories of the same kind, which may be replaced. None asks for a new one.
        overwrite: whether the user allowed to replace one.
        inputs: files and directories that are read. None may be in the output, or the output in
            one of them.
        kept: files and directories that must not be in the output: recipes, tokenizers, caches.
        flag: the argument that `path` was given to, for messages.
        is_ours: whether it is known already that the directory is of this kind.
        is_renamed: whether the directory is made beside its place and gets its name when it is
            complete.
        remedy: what to do if one is there that the user has not allowed to replace.

    Raises:
        OutputError: if it must not be written to, or cannot.
    """
    place = resolved(path, flag=flag)
    caches = [os.environ[name] for name in CACHE_VARIABLES if os.environ.get(name)]
    require_apart(place, inputs, kept=[*kept, *caches])
    here = resolved(".", flag=flag)
    if place == here or place in here.parents:
        raise OutputError(
            f"expected {flag} to name a directory apart from the current one, found "
            f"{str(path)!r}; name a new one"
        )
    if is_renamed and place.is_mount():
        raise OutputError(
            f"expected a directory that can be replaced, found a mount point: {place}; name a "
            f"directory below it"
        )
    if not is_ours:
        require_free(place, marker=marker, overwrite=overwrite, flag=flag, remedy=remedy)
    for directory in (place, place.parent) if is_renamed else (place,):
        _require_writable(directory, MAKEABLE)
    return as_given(path, place)


def writable_directory(path: str | Path, *, flag: str, is_made: bool = True) -> Path:
    """A directory to which files are added, without links on the way to it.

    Args:
        path: as the user gave it.
        flag: the argument that `path` was given to, for messages.
        is_made: whether it is made if there is none.

    Raises:
        OutputError: if it cannot be written to.
    """
    expected = "expected a directory that can be written to"
    place = resolved(path, flag=flag, expected=expected)
    _require_writable(place, expected, remedy=f"{ELSEWHERE} {flag}")
    if is_made:
        with _in_words(path, flag):
            place.mkdir(parents=True, exist_ok=True)
    return as_given(path, place)


def as_given(path: str | Path, place: Path) -> Path:
    """The path itself if no link is on the way to its place, else the place."""
    return Path(path) if place == Path(os.path.abspath(path)) else place


def resolved(path: str | Path, *, flag: str = "--output_dir", expected: str | None = None) -> Path:
    """The absolute path of a directory, or of one that can be made, without links.

    Args:
        path: as the user gave it.
        flag: the argument that `path` was given to, for messages.
        expected: the beginning of the message if a file is there.

    Raises:
        OutputError: if something else is there or on the way to it.
    """
    if os.path.expanduser(path) != str(path):
        raise OutputError(
            f"expected {flag} to name a directory, found {str(path)!r}, whose ~ the shell did not "
            f"expand; write {os.path.expanduser(path)}"
        )
    with _in_words(path, flag):
        place = Path(path).resolve()
        for part in (given := Path(os.path.abspath(path)), *given.parents):
            if part.is_symlink() and not part.exists():
                raise OutputError(
                    f"expected {flag} to name a directory, found a broken link: {part} -> "
                    f"{os.readlink(part)}; remove it or {ELSEWHERE}"
                )
        existing = nearest_existing(place)
        if existing.is_dir():
            return place
    new = f"expected {flag} {path} to be new or a directory" if existing == place else MAKEABLE
    remedy = f"{ELSEWHERE} {flag}" if expected else ELSEWHERE
    raise OutputError(f"{expected or new}, found a file: {existing}; {remedy}")


def require_free(
    place: Path,
    *,
    marker: Marker | None,
    overwrite: bool,
    flag: str = "--output_dir",
    remedy: str = REPLACE,
) -> None:
    """Refuses a directory that holds anything, unless it is ours and may be replaced.

    Raises:
        OutputError: if it is in use.
    """
    if not os.path.lexists(place):
        return
    with _in_words(place, flag):
        if place.is_dir() and all(map(_counts_for_nothing, place.iterdir())):
            return
    if marker is None:
        found = f"found {str(place)!r}"
        raise OutputError(f"expected {flag} to name a new directory, {found}; {ELSEWHERE}")
    if difference := marker.difference(place):
        raise OutputError(
            f"expected {place} to be new or to hold {marker.name}, found {difference}; {ELSEWHERE}"
        )
    if not overwrite:
        found = f"found {marker.name} in {place}"
        raise OutputError(f"expected a new directory, {found}; {remedy}")
    require_alone(place, flag=flag)


def require_apart(place: Path, inputs: Paths, *, kept: Paths = ()) -> None:
    """Refuses an output directory that holds what is read, or lies in it.

    Args:
        place: of the directory, without links.

    Raises:
        OutputError: at the first that is not apart.
    """
    expected = "expected an output directory apart from what is read"
    inputs = [path for path in inputs if path is not None and os.path.exists(path)]
    kept = [path for path in kept if path is not None and os.path.exists(path)]
    for path in [*inputs, *kept]:
        if _is_within(Path(path).resolve(), place):
            raise OutputError(f"{expected}, found {path} in {place}; {ELSEWHERE}")
    for path in inputs:
        if os.path.isdir(path) and _is_within(place, Path(path).resolve()):
            raise OutputError(f"{expected}, found {place} in {path}; {ELSEWHERE}")


def require_alone(place: Path, *, flag: str = "--output_dir") -> None:
    """Refuses to replace a directory that holds another one of ours, finished or under way.

    Raises:
        OutputError: naming it.
    """
    for path, folders, _ in os.walk(place):
        if Path(path) == place:
            folders[:] = [name for name in folders if name != REPLACED_NAME]
        elif kind := _kind_of(Path(path)):
            raise OutputError(
                f"expected no other {kind} in {place}, found {path}; {ELSEWHERE} {flag}"
            )


@contextlib.contextmanager
def claimed(place: Path) -> Iterator[None]:
    """Keeps other commands from making the same directory or file, as long as the block lasts.

    Raises:
        OutputError: if one is at work.
    """
    from filelock import FileLock, Timeout  # only who writes waits for it

    place = place.absolute()
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_name(f".{place.name}.lock"), blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise OutputError(
            f"expected no other command that makes {place}, found one under way; wait for it, or "
            f"{ELSEWHERE}"
        ) from None
    try:
        yield
    except OSError as error:  # of a full disk, for one, which names no file
        raise located(error, place) from error.__cause__
    finally:
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


@contextlib.contextmanager
def making(
    place: Path,
    *,
    marker: Marker | None = None,
    overwrite: bool = False,
    flag: str = "--output_dir",
) -> Iterator[Path]:
    """A temporary directory to fill, which becomes `place` when the block ends without an error.

    What stood there is replaced if it still may be.

    Args:
        place: from `output_directory`, which takes the same arguments.

    Raises:
        OutputError: if another command is at work there, or the place was taken meanwhile.
    """
    check = partial(require_free, place, marker=marker, overwrite=overwrite, flag=flag)
    with claimed(place), new_directory(place.absolute(), check=check) as directory:
        yield directory


def is_in_use(directory: Path) -> bool:
    """Whether a run on this machine is at work in a directory."""
    try:
        # A shared lock, for several may look at the same time.
        with open(directory / LOCK_NAME, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # nobody has locked it yet, or there is no telling
        return False
    return False


def nearest_existing(place: Path) -> Path:
    """What is there of an absolute path: itself, or what it would be made in."""
    return next(path for path in (place, *place.parents) if os.path.lexists(path))


def _format_and_version(marker: Path) -> tuple[object, object]:
    """What a marker says; whatever its reader raises if it is none."""
    if marker.stat().st_size > MAX_MARKER_BYTES:
        raise ValueError
    content = json.loads(marker.read_bytes())
    return content["format"], content["version"]


def _kind_of(directory: Path) -> str | None:
    """What one of our commands has made or is making here, None if none of them has."""
    for name, kind in KINDS.items():
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
            if str(_format_and_version(directory / name)[0]).startswith(OWN_FORMATS):
                return kind
    if directory.name.endswith(PREPARING_SUFFIX):
        return "preparation"
    return "run" if is_in_use(directory) else None


def _counts_for_nothing(path: Path) -> bool:
    """Whether a killed process left this before it was complete, or a run that never began.

    Another hidden directory may well be the unfinished work of days.
    """
    if path.name == LOCK_NAME:
        return True
    if path.name == STATUS_NAME and path.with_name(LOCK_NAME).exists():
        return True
    is_partial = path.name.startswith(".") and path.name.endswith(PARTIAL_SUFFIX)
    is_ours = path.name == PARTIAL_SUFFIX or path.name.startswith(".checkpoint-")
    return is_partial and (is_ours or not path.is_dir())


def _is_within(path: Path, directory: Path) -> bool:
    """Whether a path without links leads into a directory, or to it, by whatever names."""
    ways = (path, *path.parents)
    if directory in ways:
        return True
    return directory.is_dir() and any(way.exists() and way.samefile(directory) for way in ways)


def _require_writable(place: Path, expected: str, *, remedy: str = ELSEWHERE) -> None:
    """Refuses a directory in which no file can be made, or which cannot itself be made.

    Raises:
        OutputError: naming the directory that stands in the way.
    """
    existing = nearest_existing(place)
    found = "a directory without permission to write"
    try:
        # A share may be mounted so that nothing but an attempt tells.
        if os.access(existing, os.W_OK | os.X_OK):
            tempfile.TemporaryFile(dir=existing).close()
            return
    except OSError as error:
        found = error.strerror
    raise OutputError(f"{expected}, found {found}: {existing}; {remedy}")


@contextlib.contextmanager
def _in_words(path: str | Path, flag: str) -> Iterator[None]:
    """Turns what the operating system says about a path into an OutputError."""
    try:
        yield
    except OutputError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # circles of links, and odd letters
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        raise OutputError(
            f"expected {flag} to name a directory, found {str(path)!r}: {reason}; {ELSEWHERE}"
        ) from None
