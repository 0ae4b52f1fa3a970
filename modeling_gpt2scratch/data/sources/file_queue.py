"""Files that are downloaded in the background while the ones before them are read."""

import queue
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol


class File(Protocol):
    """A file of a source: of the Hub, or on this machine already.

    What `fetch` returns is deleted after reading if the object has `is_download = True`.
    """

    name: str  # in messages and records
    n_bytes: int  # as stored

    def fetch(self, directory: Path) -> Path:
        """Its local path; a download goes to `directory`."""


class FileQueue(Iterator[Path]):
    """The local paths of files, once, in order, each there when its turn comes.

    While the file at position i is read, those up to i + `ahead` are on the disk or on their way.

        files = FileQueue(list_files("owner/name"), directory)
        for path in files:
            read(path)
            files.release(path)

    The background thread starts with the first file that is asked for, ends after the last one,
    with `close()` or with the queue itself, and never keeps the interpreter from ending.

    Args:
        files: what to fetch.
        ahead: downloads that may be on the disk before their turn.
    """

    def __init__(self, files: Sequence[File], directory: Path, *, ahead: int = 2):
        self._files = list(files)
        self._n_given = 0
        self._downloads: set[Path] = set()
        self._done: queue.SimpleQueue[Path | BaseException] = queue.SimpleQueue()
        self._may_start = threading.Semaphore(ahead)
        self._closed = threading.Event()
        arguments = (self._files, directory, self._done, self._may_start, self._closed)
        self._thread = threading.Thread(target=_fetch_all, args=arguments, daemon=True)
        # The thread does not hold the queue, so a queue that nobody holds is closed.
        self._close = weakref.finalize(self, _close, self._closed, self._may_start)

    def __next__(self) -> Path:
        """The next path, after waiting for its download.

        Raises:
            SourceError, OSError: if that file cannot be had; the queue is closed then.
        """
        if self._n_given == len(self._files) or self._closed.is_set():
            raise StopIteration
        if self._n_given == 0:
            self._thread.start()
        self._may_start.release()
        path = self._done.get()
        if isinstance(path, BaseException):
            self.close()
            raise path
        if getattr(self._files[self._n_given], "is_download", False):
            self._downloads.add(path)
        self._n_given += 1
        return path

    def release(self, path: Path) -> None:
        """Deletes a file that has been read; one that was not downloaded stays."""
        if path in self._downloads:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Starts no more downloads and gives no more files."""
        self._close()


def _fetch_all(
    files: list[File],
    directory: Path,
    done: queue.SimpleQueue,
    may_start: threading.Semaphore,
    closed: threading.Event,
) -> None:
    """The background thread: fetches one file after another and hands over path or error."""
    for file in files:
        may_start.acquire()
        if closed.is_set():
            return
        try:
            done.put(file.fetch(directory))
        except BaseException as error:  # whatever it is, the reader is waiting for it
            done.put(error)
            return


def _close(closed: threading.Event, may_start: threading.Semaphore) -> None:
    closed.set()
    may_start.release()
