"""Files behind an address that fsspec knows: fetched whole, checked, asked for again on failure.

What a second try cannot mend is not tried again: a file that is not there, a missing right, a full
disk, a library that is not installed.
"""

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import fsspec
from fsspec.callbacks import Callback
from tenacity import sleep_using_event, stop_after_attempt, stop_after_delay, stop_when_event_set

from modeling_gpt2scratch.common.addresses import store_credentials, with_credentials
from modeling_gpt2scratch.common.errors import one_line
from modeling_gpt2scratch.common.retries import Retries, download_problem, judge_download, retrying
from modeling_gpt2scratch.data.shards.format import ShardError

MIN_ATTEMPTS = 3  # however long one takes
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1, 60
HTTP = ("http://", "https://")
SILENCE_SECONDS = 60  # after which a connection is given up


class MissingFileError(ShardError):
    """A file that is not behind its address."""


class TooLargeError(ShardError):
    """More bytes than a file can have."""


class OtherContentError(ShardError):
    """A whole file, but not the one that the manifest names."""


class RemoteFiles:
    """The files of one remote directory.

    Args:
        address: such as `hf://datasets/user/name@revision/folder`. Its user, password and query
            are used, and never part of a message.
        retry_seconds: after which no new attempt is made; pauses grow from 1 to 60 seconds.
        closed: ends pauses and attempts when set.

    Raises:
        ShardError: if no installed library knows the address.
    """

    def __init__(
        self, address: str, *, retry_seconds: float = 600, closed: threading.Event | None = None
    ):
        self.address = store_credentials(address).rstrip("/")
        address, self._query = with_credentials(self.address)
        self._retry_seconds = retry_seconds
        self._closed = closed or threading.Event()
        try:
            self._fs, self._root = fsspec.url_to_fs(address, **self._options(address))
        except (ImportError, ValueError) as error:
            raise ShardError(
                f"{self.address}: expected an address that fsspec can open, found: "
                f"{one_line(error)}"
            ) from None

    def download(
        self, name: str, path: Path, *, check: Callable[[Path], None], max_bytes: int
    ) -> None:
        """Writes a file of the directory to `path`, once `check` has nothing against it.

        Args:
            name: below the address.
            path: overwritten by each attempt, so not the name under which others look for it.
            check: raises ValueError if the content is not what it should be.
            max_bytes: a source that sends more is left.

        Raises:
            MissingFileError: if it is not there.
            ShardError: if it cannot be had; the message says what was tried.
        """
        attempts = retrying(
            f"{self.address}/{name}",
            judge_download,
            Retries(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, jitter_seconds=FIRST_PAUSE_SECONDS),
            stop=stop_when_event_set(self._closed)
            | (stop_after_delay(self._retry_seconds) & stop_after_attempt(MIN_ATTEMPTS)),
            sleep=sleep_using_event(self._closed),
        )
        try:
            attempts(self._attempt, name, path, check, max_bytes)
        except Exception as error:
            tries = attempts.statistics.get("attempt_number", 1)
            kind = MissingFileError if isinstance(error, FileNotFoundError) else ShardError
            raise kind(
                f"{self.address}/{name}: {download_problem(error)}; {self._advice(error, tries)}"
            ) from error

    def _attempt(
        self, name: str, path: Path, check: Callable[[Path], None], max_bytes: int
    ) -> None:
        """One download."""
        place = f"{self._root}/{name}{self._query}"
        try:
            if self.address.startswith(HTTP):
                # In small pieces, each of which is counted.
                pieces = {"chunk_size": 2**18, "callback": _Limit(max_bytes)}
                place = f"{self._root}/{quote(name)}{self._query}"
                self._fs.get_file(place, str(path), **pieces)
            else:
                # These ask for the size themselves, and read no more.
                if (n_bytes := self._fs.size(place) or 0) > max_bytes:
                    raise TooLargeError(f"expected at most {max_bytes:,} bytes, found {n_bytes:,}")
                self._fs.get_file(place, str(path))
            if not path.exists():  # some file systems take a missing file for an empty folder
                raise FileNotFoundError(errno.ENOENT, "no such file")
            check(path)
        except Exception:
            self._fs.invalidate_cache()  # sizes and hashes that it may have remembered
            raise

    def _options(self, address: str) -> dict:
        """Options for the file system: HTTP may take any time, but not be silent for long."""
        if not address.startswith(HTTP):
            return {}
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS)
        # A signature is of the characters that stand there.
        options = {"encoded": True} if self._query else {}
        return {"client_kwargs": {"timeout": timeout, "trust_env": True}} | options

    def _advice(self, error: Exception, tries: int) -> str:
        """What the user can do about the last failure."""
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "make room, lower --data_cache_gb or choose another --data_cache"
        if judge_download(error):
            advice = f"gave up after {tries} tries, start again with --resume auto"
            if isinstance(error, OtherContentError):
                advice += "; the data set may have been changed since"
                if self.address.startswith("hf://"):
                    advice += ": name the commit that it had, as in hf://datasets/OWNER/NAME@COMMIT"
            return advice
        if self.address.startswith("hf://"):
            return "check the address, and set HF_TOKEN if the data set is private or gated"
        return (
            "check the address and your credentials, which are never recorded: give them in the "
            "address again, or keep them in ~/.netrc or the environment"
        )


class _Limit(Callback):
    """Ends a download that brings more bytes than the file can have."""

    def __init__(self, max_bytes: int):
        super().__init__()
        self._max_bytes = max_bytes

    def relative_update(self, inc: int = 1) -> None:
        """Counts what has come."""
        super().relative_update(inc)
        if self.value > self._max_bytes:
            raise TooLargeError(f"expected at most {self._max_bytes:,} bytes, found more")
