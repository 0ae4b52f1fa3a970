"""A directory of downloaded shards with a limit on its size, shared by the processes of a machine.

A file is called by the sha256 of its content, so that the same shard is kept once, wherever it came
from, and a shard that changed at its source is another file. It gets its name when its content has
been checked and is on the disk. What was not used for the longest time goes first; locks of the
operating system, which end with their process, see to it that each file is downloaded by one
process.
"""

import contextlib
import errno
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from modeling_gpt2scratch.common.atomic_files import PARTIAL_SUFFIX, fsync
from modeling_gpt2scratch.common.console import tell
from modeling_gpt2scratch.common.errors import file_problem

SUFFIX = ".bin"


class CacheClosedError(Exception):
    """The cache was closed while somebody waited for it."""


class ShardCache:
    """Shards below `directory`.

    Args:
        directory: made if there is none.
        limit_bytes: of all shards in it together, those that are being downloaded included.
    """

    def __init__(self, directory: Path, *, limit_bytes: int):
        self.directory = directory
        self.limit_bytes = limit_bytes
        self.closed = threading.Event()
        self._shards = directory / "shards"
        self._locks = directory / "locks"
        self._kept: dict[str, frozenset[str]] = {}
        self._make_folders()

    def keep(self, owner: str, names: Iterable[str]) -> None:
        """Spares these files, and no longer those that this owner named before."""
        self._kept[owner] = frozenset(names)

    def get(
        self,
        name: str,
        n_bytes: int,
        *,
        download: Callable[[Path], None],
        check: Callable[[Path], None] | None = None,
    ) -> Path:
        """The file of this name, downloaded by the one process that comes first.

        Args:
            name: sha256 of the content.
            n_bytes: size of the file.
            download: writes the content to a path and checks it.
            check: looks at a file that is there already, and raises ValueError to have it again.

        Raises:
            CacheClosedError: if the cache was closed meanwhile.
            Exception: of `download`, unless the disk is full and something can be deleted.
        """
        path = self._shards / f"{name}{SUFFIX}"
        with self.lock(name):
            if path.is_file() and path.stat().st_size == n_bytes:
                try:
                    with contextlib.suppress(PermissionError):  # of another user's
                        os.utime(path)  # used just now
                    if check:
                        check(path)
                    return path
                except (ValueError, FileNotFoundError):  # another process may make room meanwhile
                    path.unlink(missing_ok=True)
            for left in self._shards.glob(f"{name}.*{PARTIAL_SUFFIX}"):
                left.unlink()  # of a killed process, because the lock is ours
            partial = path.with_name(f"{name}.{n_bytes}{PARTIAL_SUFFIX}")
            self._reserve(partial, n_bytes)
            try:
                while not self._download(partial, path, download):
                    pass
            finally:
                partial.unlink(missing_ok=True)
        return path

    def bytes_so_far(self, name: str) -> int:
        """How much has come of a file that is being downloaded, by whatever process."""
        n_bytes = 0
        for partial in self._shards.glob(f"{name}.*{PARTIAL_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                n_bytes += partial.stat().st_size
        return n_bytes

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Holds a lock that all processes of the machine share."""
        self._make_folders()  # somebody may have deleted the cache
        lock = FileLock(self._locks / f"{name}.lock", timeout=1)
        while not self.closed.is_set():
            try:
                lock.acquire()
                break
            except Timeout:
                continue
            except PermissionError as error:
                problem = f"{file_problem(error)}; choose another --data_cache"
                raise OSError(problem) from error
        else:
            raise CacheClosedError
        try:
            yield
        finally:
            lock.release()

    def _make_folders(self) -> None:
        for folder in (self._shards, self._locks):
            folder.mkdir(parents=True, exist_ok=True)

    def _download(self, partial: Path, path: Path, download: Callable[[Path], None]) -> bool:
        """Downloads a file and gives it its name; False if the caller should try again at once."""
        folder = os.open(self._shards, os.O_RDONLY)
        try:
            download(partial)
            fsync(partial)  # or after a power failure the name may be there without the content
            os.replace(partial, path)
            return True
        except Exception as error:
            if os.fstat(folder).st_nlink == 0:  # deleted meanwhile, if not made again by others
                self._make_folders()
            elif not (_is_of_full_disk(error) and self._delete_oldest()):
                raise
            return False
        finally:
            os.close(folder)

    def _reserve(self, partial: Path, n_bytes: int) -> None:
        """Makes room for a download and takes it, by an empty file that bears its size."""
        has_told = False
        while not self.closed.is_set():
            with self.lock("room"):
                if self._make_room(n_bytes):
                    partial.touch()
                    return
            if not has_told:
                tell(
                    f"{self.directory}: the cache is full (--data_cache_gb "
                    f"{self.limit_bytes / 1e9:g}), and all its shards are in use or being "
                    f"downloaded; waiting for {n_bytes:,} bytes",
                    file=sys.stderr,
                )
            has_told = True
            self.closed.wait(0.2)  # what another process downloads may go when it has come
        raise CacheClosedError

    def _make_room(self, n_bytes: int) -> bool:
        """Deletes what was not used for the longest time until `n_bytes` fit; whether they do."""
        for path in self._shards.glob(f"*{PARTIAL_SUFFIX}"):
            if not self._delete_if_abandoned(path):
                n_bytes += int(path.name.split(".")[1])
        files = self._oldest_first()
        used = sum(size for size, _ in files)
        for size, path in files:
            if used + n_bytes <= self.limit_bytes:
                break
            if self._delete(path):
                used -= size
        return used + n_bytes <= self.limit_bytes

    def _delete_oldest(self) -> bool:
        """Deletes what was not used for the longest time; whether there was anything."""
        with self.lock("room"):
            return any(self._delete(path) for _, path in self._oldest_first())

    def _oldest_first(self) -> list[tuple[int, Path]]:
        """Sizes and paths of all shards, the one that was not used for the longest time first."""
        files = []
        for path in self._shards.glob(f"*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        return [(size, path) for _, size, path in sorted(files)]

    def _delete(self, path: Path) -> bool:
        """Deletes a shard unless it is spared; whether that was possible."""
        spared = frozenset().union(*list(self._kept.values()))
        # In a cache that several people share, a file may be another's.
        return path.stem not in spared and _unlink(path)

    def _delete_if_abandoned(self, partial: Path) -> bool:
        """Deletes what a killed process left of a download; whether it was that, and is gone."""
        lock = FileLock(self._locks / f"{partial.name.split('.')[0]}.lock")
        try:
            with lock.acquire(blocking=False):
                return _unlink(partial)
        except Timeout:
            return False


def _is_of_full_disk(error: Exception) -> bool:
    """Whether a download failed because the disk, or the user's share of it, is full."""
    return any(
        isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        for cause in (error, error.__cause__)
    )


def _unlink(path: Path) -> bool:
    """Deletes a file; whether that was possible."""
    try:
        path.unlink(missing_ok=True)
        return True
    except PermissionError:
        return False
