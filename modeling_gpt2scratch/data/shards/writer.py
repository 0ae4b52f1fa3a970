"""Writes the shards of one split, so that a killed preparation can go on where it was."""

import contextlib
import dataclasses
import hashlib
import io
import os
from pathlib import Path

import numpy as np

from modeling_gpt2scratch.data.tokens.ids import token_dtype

from .directory import open_shard
from .format import HEADER_BYTES, ShardError, shard_header
from .manifest import ShardEntry, Split

BEGIN_ANEW = "prepare the data again with --overwrite"


class SplitWriter:
    """Writes one split as shards of `shard_tokens` tokens, the last one shorter.

    Tokens go to the disk as they come, so memory does not depend on the size of a shard. The shard
    that is being written is called `.train_000003.bin.partial` and has no header yet, so nobody can
    take it for a complete one.

    A preparation that is to survive a kill writes down `state()` and then calls `publish()`, again
    and again; a new writer that is given the last state goes on just there. A shard under its final
    name is complete, is in the state, and is never touched again.

    Args:
        directory: where the shards go.
        split: "train" or "val"; shards are called `{split}_000000.bin` and so on.
        shard_tokens: tokens per shard.
        vocab_size: ids must be below it; decides the type of the tokens.
        state: of an earlier writer with the same arguments, to continue.

    Raises:
        ShardError: if the files in `directory` are not those of `state`.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        *,
        shard_tokens: int,
        vocab_size: int,
        state: dict | None = None,
    ):
        self._directory = directory
        self._split = split
        self._shard_tokens = shard_tokens
        self._vocab_size = vocab_size
        self._dtype = np.dtype(token_dtype(vocab_size))
        self._shards: list[ShardEntry] = []
        self._n_published = 0
        self._n_documents = 0
        self._n_bytes = 0
        self._file: io.BufferedRandom | None = None  # of the shard that is being written
        self._n_in_file = 0
        if state is not None:
            self._restore(state)

    def add(self, tokens: np.ndarray, *, n_bytes: int, n_documents: int = 1) -> None:
        """Appends documents: their ids, `<|endoftext|>` before each, and what they count for.

        Args:
            tokens: ids of any integer type, of shape (n,).
            n_bytes: UTF-8 bytes of the documents.
            n_documents: documents in `tokens`.

        Raises:
            ShardError: if an id is negative or not below `vocab_size`, before it is narrowed.
        """
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < self._vocab_size:
            found = tokens.min() if tokens.min() < 0 else tokens.max()
            raise ShardError(f"{self._split}: expected ids below {self._vocab_size}, found {found}")
        self._n_documents += n_documents
        self._n_bytes += n_bytes
        tokens = tokens.astype(self._dtype, copy=False)
        while len(tokens):
            if self._file is None:
                self._open()
            taken = tokens[: self._shard_tokens - self._n_in_file]
            self._file.write(np.ascontiguousarray(taken).data)
            self._n_in_file += len(taken)
            tokens = tokens[len(taken) :]
            if self._n_in_file == self._shard_tokens:
                self._complete()

    def state(self) -> dict:
        """What has been added so far, as JSON values; everything in it is on the disk."""
        if self._file is not None:
            _flush(self._file)
        return dataclasses.asdict(self._entry()) | {"n_tokens_of_partial": self._n_in_file}

    def publish(self) -> None:
        """Gives the shards that are complete their final names."""
        for entry in self._shards[self._n_published :]:
            path = self._directory / entry.file
            os.replace(_partial(path), path)
        self._n_published = len(self._shards)

    def finish(self) -> None:
        """Completes the last shard, without its final name."""
        if self._file is not None:
            self._complete()

    def close(self) -> Split:
        """Completes and publishes the last shard; for those who never call `state`."""
        self.finish()
        self.publish()
        return self._entry()

    def abandon(self) -> None:
        """Closes the shard that is being written as it is, after an error."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what is not on a full disk cannot be helped
                self._file.close()

    def _entry(self) -> Split:
        return Split(
            n_tokens=sum(shard.n_tokens for shard in self._shards) + self._n_in_file,
            n_documents=self._n_documents,
            n_bytes=self._n_bytes,
            shards=tuple(self._shards),
        )

    def _open(self) -> None:
        """Starts the next shard: zeros in place of a header, which no reader accepts."""
        name = f"{self._split}_{len(self._shards):06d}.bin"
        self._file = open(_partial(self._directory / name), "w+b")  # noqa: SIM115 (closed by _complete)
        self._file.write(bytes(HEADER_BYTES))

    def _complete(self) -> None:
        """Puts the header on the shard that is being written, and its checksum on the list."""
        self._file.seek(0)
        self._file.write(shard_header(self._n_in_file, self._vocab_size).data)
        _flush(self._file)
        self._file.seek(0)
        sha256 = hashlib.file_digest(self._file, "sha256").hexdigest()
        self._file.close()
        name = f"{self._split}_{len(self._shards):06d}.bin"
        self._shards.append(ShardEntry(file=name, n_tokens=self._n_in_file, sha256=sha256))
        self._file, self._n_in_file = None, 0

    def _restore(self, state: dict) -> None:
        """Takes up an earlier writer's work; whatever it wrote after `state` is cut off."""
        self._n_documents, self._n_bytes = state["n_documents"], state["n_bytes"]
        self._shards = [ShardEntry(**shard) for shard in state["shards"]]
        for entry in self._shards:
            path = self._directory / entry.file
            if not path.exists() and _partial(path).exists():
                os.replace(_partial(path), path)
            try:
                open_shard(path, entry, vocab_size=self._vocab_size)
            except ShardError as error:
                raise ShardError(f"{error}; {BEGIN_ANEW}") from None
        self._n_published = len(self._shards)
        self._n_in_file = state["n_tokens_of_partial"]
        path = self._directory / f"{self._split}_{len(self._shards):06d}.bin"
        for later in self._directory.glob(f".{self._split}_*.bin.partial"):
            if later != _partial(path) or not self._n_in_file:
                later.unlink()
        if self._n_in_file:
            n_bytes = HEADER_BYTES + self._n_in_file * self._dtype.itemsize
            try:
                self._file = open(_partial(path), "r+b")  # noqa: SIM115 (closed by _complete)
                n_found = self._file.seek(0, os.SEEK_END)
            except OSError as error:
                raise ShardError(
                    f"{path}: expected its first part, found {error.strerror}; {BEGIN_ANEW}"
                ) from None
            if n_found < n_bytes:
                raise ShardError(
                    f"{_partial(path)}: expected at least {n_bytes} bytes, found {n_found}; "
                    f"{BEGIN_ANEW}"
                )
            # A shard that was completed after `state` was taken has a header by now.
            self._file.seek(0)
            self._file.write(bytes(HEADER_BYTES))
            self._file.truncate(n_bytes)
            self._file.seek(n_bytes)


def _partial(path: Path) -> Path:
    """The name of a shard while it is being written."""
    return path.with_name(f".{path.name}.partial")


def _flush(file: io.BufferedRandom) -> None:
    file.flush()
    os.fsync(file.fileno())
