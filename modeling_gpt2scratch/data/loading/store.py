"""Where the files of a data set come from: a local directory, or an address that fsspec knows.

Of a remote data set, the manifest and the tokenizer come first; shards come in the background ahead
of need. No token is handed out that was not checked: a file counts when its size and sha256 are the
manifest's, and one that was in the cache before is read once for that by each process. A source
that is silent, fails or sends something else is asked again, with a message and longer and longer
pauses, and given up in the end. A shard that is slow to come is named once a minute.
"""

import hashlib
import json
import os
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path

import numpy as np

from modeling_gpt2scratch.common.addresses import store_credentials
from modeling_gpt2scratch.common.atomic_files import write_file
from modeling_gpt2scratch.common.checksums import file_sha256
from modeling_gpt2scratch.common.console import tell
from modeling_gpt2scratch.common.errors import content_instead
from modeling_gpt2scratch.common.retries import download_problem
from modeling_gpt2scratch.data.shards.directory import load_manifest, open_shard, shard_bytes
from modeling_gpt2scratch.data.shards.format import ShardError, check_token_ids
from modeling_gpt2scratch.data.shards.manifest import (
    MANIFEST_NAME,
    MAX_METADATA_BYTES,
    Manifest,
    ShardEntry,
)
from modeling_gpt2scratch.data.shards.verification import read_whole

from .cache import CacheClosedError, ShardCache
from .remote_files import MissingFileError, OtherContentError, RemoteFiles

FETCHED_FILES = ("tokenizer.json", "tokenizer_config.json")
DOWNLOADS = 4  # at a time
PAUSE_SECONDS = 60  # before a download in advance that failed is tried again
PATIENCE_SECONDS = 60  # between two lines about a shard that the training waits for


def is_remote(address: str) -> bool:
    """Whether an address leads away from the file system."""
    return "://" in address


class LocalStore:
    """A data directory on this machine.

    Raises:
        ShardError: if it holds no data set, or other files of tokens beside it.
    """

    is_remote = False

    def __init__(self, directory: Path):
        self.name = str(directory)
        self.directory = directory
        self.manifest = load_manifest(directory)

    def label(self, entry: ShardEntry) -> str:
        """What to call a shard in messages."""
        return str(self.directory / entry.file)

    def open(self, entry: ShardEntry) -> np.ndarray:
        """The tokens of a shard, after a look at its size and header.

        Raises:
            ShardError: if it is missing or damaged.
        """
        path = self.directory / entry.file
        if not path.exists():
            raise ShardError(
                f"{path}: expected the shards that {MANIFEST_NAME} lists, found no such file; "
                f"copy the rest of the data set or prepare the data again"
            )
        if path.is_file() and path.stat().st_size == 0:
            raise ShardError(f"{path}: expected tokens, found none; prepare the data again")
        return open_shard(path, entry, vocab_size=self.manifest.vocab_size)

    def verify(self, entry: ShardEntry) -> None:
        """Reads a shard and compares its checksum and its ids.

        Raises:
            ShardError: if they are not what the manifest says.
        """
        self.open(entry)
        if problems := read_whole(self.directory / entry.file, entry, self.manifest).problems:
            raise ShardError(problems[-1])  # a wrong id says more than a checksum


class RemoteStore:
    """A data set behind an address, whose shards pass through a cache.

    Args:
        address: of its directory, anything that fsspec knows.
        cache: keeps the shards; it may serve several stores.
        retry_seconds: for how long a failing source is asked again.
        verify: check the sha256 whenever a shard is opened, and the ids as well.

    Raises:
        ShardError: if there is no data set, or it cannot be fetched.
    """

    is_remote = True

    def __init__(
        self, address: str, cache: ShardCache, *, retry_seconds: float = 600, verify: bool = False
    ):
        self.name = address = store_credentials(address)
        self._cache = cache
        self._verify = verify
        self._files = RemoteFiles(address, retry_seconds=retry_seconds, closed=cache.closed)
        key = hashlib.sha256(self._files.address.encode()).hexdigest()[:16]
        self.directory = cache.directory / "data_sets" / key
        self.directory.mkdir(parents=True, exist_ok=True)
        with cache.lock(key):
            self._fetch_descriptions()
            try:
                self.manifest = Manifest.load(self.directory)
            except ShardError as error:
                raise ShardError(str(error).replace(str(self.directory), address)) from None
        self._wanted: dict[str, list[ShardEntry]] = {}
        self._ordered: deque[ShardEntry] = deque()
        self._found: dict[str, Future] = {}
        self._checked: set[str] = set()  # by this process
        self._awaited: set[str] = set()  # by whoever cannot go on without them
        self._told: set[str] = set()  # that they failed in advance
        self._failed: dict[str, tuple[float, ShardEntry]] = {}  # in advance, and when
        self._condition = threading.Condition()
        for number in range(DOWNLOADS):
            # Daemons, because a download that hangs must not keep the process from ending.
            threading.Thread(target=self._work, name=f"download-{number}", daemon=True).start()

    def want(self, owner: str, entries: Iterable[ShardEntry]) -> None:
        """Orders shards, most urgent first, and spares them in the cache.

        It replaces what the same owner ordered before, unless that is already on its way.
        """
        entries = list(entries)
        self._cache.keep(f"{self.name} {owner}", (entry.sha256 for entry in entries))
        with self._condition:
            self._wanted = {owner: entries} | (self._wanted | {owner: entries})
            wanted = {entry.sha256: entry for group in self._wanted.values() for entry in group}
            waiting = {entry.sha256 for entry in self._ordered}
            for sha256 in waiting - wanted.keys():
                future = self._found.pop(sha256)
                if future.cancel():
                    future.set_running_or_notify_cancel()  # or `wait` would not see it
            # What has come may have left the cache since, and what failed gets another chance.
            self._found = {name: found for name, found in self._found.items() if not found.done()}
            self._ordered.clear()
            for sha256, entry in wanted.items():
                if sha256 in waiting:
                    self._ordered.append(entry)
                else:
                    self._order(entry)

    def label(self, entry: ShardEntry) -> str:
        """What to call a shard in messages."""
        return f"{self.name}/{entry.file}"

    def open(self, entry: ShardEntry) -> np.ndarray:
        """The tokens of a shard, as soon as it is there.

        Raises:
            ShardError: if it cannot be fetched, or is not what the manifest says.
        """
        vocab_size = self.manifest.vocab_size
        while True:
            with self._condition:
                self._forget_failure(entry)
                future = self._order(entry)
                self._awaited.add(entry.sha256)
            path = self._wait(future, entry)
            try:
                tokens = open_shard(path, entry, vocab_size=vocab_size)
                break
            except ShardError as error:
                if path.exists():
                    raise ShardError(str(error).replace(str(path), self.label(entry))) from None
                with self._condition:  # another process made room for what it needs
                    if self._found.get(entry.sha256) is future:
                        del self._found[entry.sha256]
        if self._verify:
            check_token_ids(self.label(entry), tokens, vocab_size=vocab_size)
        return tokens

    def verify(self, entry: ShardEntry) -> None:
        """Nothing: shards are checked as they come."""

    def bytes_of(self, entry: ShardEntry) -> int:
        """Size of a shard's file."""
        return shard_bytes(entry, self.manifest.vocab_size)

    def _order(self, entry: ShardEntry) -> Future:
        """The outcome of a shard's download, which begins as soon as a thread is free."""
        if entry.sha256 not in self._found:
            self._found[entry.sha256] = Future()
            self._ordered.append(entry)
            self._condition.notify()
        return self._found[entry.sha256]

    def _wait(self, future: Future, entry: ShardEntry) -> Path:
        """The outcome of a download without which the training cannot go on."""
        started = time.monotonic()
        try:
            while not wait([future], PATIENCE_SECONDS).done:
                if self._cache.closed.is_set():
                    raise ShardError(f"{self.name}: closed while waiting for {entry.file}")
                if os.environ.get("LOCAL_RANK", "0") == "0":  # one process of each machine
                    seconds = time.monotonic() - started
                    tell(
                        f"{self.label(entry)}: waited {seconds:.0f} s for it so far; "
                        f"{self._cache.bytes_so_far(entry.sha256):,} of "
                        f"{self.bytes_of(entry):,} bytes have come",
                        file=sys.stderr,
                    )
            return future.result()
        finally:
            with self._condition:
                self._awaited.discard(entry.sha256)

    def _put_off(self, entry: ShardEntry, error: Exception) -> None:
        """Says once that a download in advance has failed, which will be tried again."""
        self._failed[entry.sha256] = (time.monotonic(), entry)
        if entry.sha256 not in self._told:
            self._told.add(entry.sha256)
            reason = download_problem(error.__cause__ or error)
            hint = "it will be tried again when it is needed"
            tell(f"{self.label(entry)}: {reason}; {hint}", file=sys.stderr)

    def _order_again(self) -> None:
        """Orders what failed in advance a while ago, if it is still wanted."""
        for failed_at, entry in list(self._failed.values()):
            if time.monotonic() >= failed_at + PAUSE_SECONDS:
                self._forget_failure(entry)
                if any(entry in group for group in self._wanted.values()):
                    self._order(entry)

    def _forget_failure(self, entry: ShardEntry) -> None:
        """Lets a shard be ordered again if its download in advance has failed."""
        future = self._found.get(entry.sha256)
        if self._failed.pop(entry.sha256, None) and future is not None and future.done():
            del self._found[entry.sha256]

    def _work(self) -> None:
        """Downloads one ordered shard after another."""
        while not self._cache.closed.is_set():
            with self._condition:
                self._order_again()
                if not self._ordered:
                    self._condition.wait(timeout=1)
                    continue
                entry = self._ordered.popleft()
                future = self._found[entry.sha256]
            try:
                future.set_result(self._fetch(entry))
            except CacheClosedError:
                future.set_exception(ShardError(f"{self.name}: closed while {entry.file} came"))
            except Exception as error:
                with self._condition:
                    if entry.sha256 not in self._awaited and not self._cache.closed.is_set():
                        self._put_off(entry, error)
                    future.set_exception(error)

    def _fetch(self, entry: ShardEntry) -> Path:
        """The shard's file in the cache, downloaded if need be."""
        n_bytes = self.bytes_of(entry)
        check = partial(check_shard, entry=entry, n_bytes=n_bytes)
        is_trusted = entry.sha256 in self._checked and not self._verify
        path = self._cache.get(
            entry.sha256,
            n_bytes,
            download=partial(self._files.download, entry.file, check=check, max_bytes=n_bytes),
            check=None if is_trusted else check,
        )
        self._checked.add(entry.sha256)
        return path

    def _fetch_descriptions(self) -> None:
        """Manifest and tokenizer, the latter only with another manifest than the last time."""
        manifest = self.directory / MANIFEST_NAME
        known = manifest.read_bytes() if manifest.exists() else None
        with tempfile.TemporaryDirectory(dir=self.directory) as temporary:
            folder = Path(temporary)
            self._fetch_description(MANIFEST_NAME, folder)
            if (folder / MANIFEST_NAME).read_bytes() == known:
                return
            try:
                has_tokenizer = not Manifest.load(folder).is_adopted
            except ShardError as error:
                raise ShardError(str(error).replace(str(folder), self.name)) from None
            for name in FETCHED_FILES:
                (self.directory / name).unlink(missing_ok=True)
                try:
                    self._fetch_description(name, folder)
                except MissingFileError:
                    # Where other programs' files were adopted, it is known by its name.
                    if has_tokenizer:
                        raise
            for path in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST_NAME):
                write_file(self.directory / path.name, path.read_bytes())  # the manifest last

    def _fetch_description(self, name: str, folder: Path) -> None:
        """One small file."""
        self._files.download(name, folder / name, check=_check_json, max_bytes=MAX_METADATA_BYTES)


def check_shard(path: Path, *, entry: ShardEntry, n_bytes: int) -> None:
    """Refuses a file that is not the manifest's shard.

    Raises:
        ShardError: if size or sha256 differ; the message does not name the file.
    """
    n_found = path.stat().st_size
    if n_found != n_bytes:
        found = content_instead(path) or f"{n_found:,}"
        raise ShardError(f"expected {n_bytes:,} bytes, found {found}")
    found = file_sha256(path)
    if found != entry.sha256:
        raise OtherContentError(f"expected sha256 {entry.sha256[:16]}..., found {found[:16]}...")


def _check_json(path: Path) -> None:
    """Refuses a file that was cut short, or an error page in its place."""
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ShardError(f"expected JSON, found {content_instead(path) or error}") from None
