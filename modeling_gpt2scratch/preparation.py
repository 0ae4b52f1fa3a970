"""Documents to shards: encoded by several processes, shuffled in blocks, resumable after each.

    DocumentStream -> batches -> workers -> blocks of some 50 million tokens -> SplitWriter

Batches come back from the workers in the order in which they were read, so the result does not
depend on the number of workers. A block is complete when it holds `shuffle_buffer_tokens`; then its
documents are permuted, written, and the progress saved. Memory holds one block and the batches on
their way, whatever the size of the input.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from .document_encoder import (
    DocumentEncoder,
    EncodedDocuments,
    encode_documents,
    is_held_out,
    use_one_thread,
)
from .document_stream import Batch, DocumentStream
from .preparation_progress import Progress, SeenDocuments, WorkingDirectory
from .split_writer import SplitWriter

BATCHES_PER_WORKER = 3  # on their way at a time: one in work, the others so that it never waits


class WorkerError(RuntimeError):
    """A worker process that died."""


class Encoding(NamedTuple):
    """What a worker needs to know."""

    tokenizer_spec: str
    end_of_text_id: int
    seed: int
    min_characters: int


@dataclass(frozen=True)
class Plan:
    """How encoded documents become shards."""

    encoding: Encoding
    vocab_size: int
    shard_tokens: int
    val_fraction: float
    block_tokens: int
    is_shuffled: bool
    is_deduplicated: bool
    max_tokens: int | None
    num_workers: int


def write_shards(
    stream: DocumentStream, plan: Plan, working: WorkingDirectory, progress: Progress
) -> None:
    """Reads the stream to its end and completes all shards; `progress` says how far they are.

    Raises:
        SourceError: if the input is bad.
        WorkerError: if a worker process died.
        OSError: if the disk is full. What the progress speaks of is kept in all cases.
    """
    shards = _Shards(plan, working, progress)
    with (
        closing(shards),
        tqdm(unit=" tokens", unit_scale=True, desc="tokenizing", mininterval=1) as bar,
        _encoded(stream, plan.encoding, plan.num_workers) as batches,
    ):
        bar.update(shards.n_tokens)
        position = progress.position
        for documents, position in batches:
            bar.update(shards.add(documents))
            if shards.is_block_full:
                shards.commit(position)
                stream.release(position)
            if shards.is_enough:
                break
        shards.commit(position, is_last=True)


class _Shards:
    """The documents of the current block, and the shards of those before."""

    def __init__(self, plan: Plan, working: WorkingDirectory, progress: Progress):
        self._plan, self._working, self._progress = plan, working, progress
        self._writers = {
            split: SplitWriter(
                working.data,
                split,
                shard_tokens=plan.shard_tokens,
                vocab_size=plan.vocab_size,
                state=progress.splits.get(split),
            )
            for split in (("train", "val") if plan.val_fraction else ("train",))
        }
        self._seen = None
        if plan.is_deduplicated:
            self._seen = SeenDocuments(working.seen, n_blocks=progress.n_blocks)
        self.n_tokens = sum(state["n_tokens"] for state in progress.splits.values())
        self._counts = Counter(progress.counts)
        self._clear_block()

    @property
    def is_block_full(self) -> bool:
        """Whether it is time to commit."""
        return self._n_in_block >= self._plan.block_tokens

    @property
    def is_enough(self) -> bool:
        """Whether no more documents are wanted."""
        return self._plan.max_tokens is not None and self.n_tokens >= self._plan.max_tokens

    def add(self, documents: EncodedDocuments) -> int:
        """Takes documents into the block; returns the number of their tokens.

        Duplicates are left out, and so is what comes after the document that completes
        `max_tokens`.
        """
        n_before = self.n_tokens
        starts = np.cumsum(documents.lengths) - documents.lengths
        self._counts["too_short"] += documents.n_too_short
        for start, length, n_bytes, digest in zip(
            starts.tolist(),
            documents.lengths.tolist(),
            documents.n_bytes.tolist(),
            documents.digests,
            strict=True,
        ):
            if self.is_enough:
                break
            if self._seen and not self._seen.is_new(digest, self._progress.n_blocks):
                self._counts["duplicates"] += 1
                continue
            self._block.append((documents.ids[start : start + length], n_bytes, digest))
            self.n_tokens += length
        self._n_in_block += self.n_tokens - n_before
        return self.n_tokens - n_before

    def commit(self, position: dict | None, *, is_last: bool = False) -> None:
        """Writes the block and saves the progress; afterwards a kill loses nothing of it."""
        self._write_block()
        if is_last:
            for writer in self._writers.values():
                writer.finish()
        if self._seen:
            self._seen.commit()
        self._progress.splits = {name: writer.state() for name, writer in self._writers.items()}
        self._progress.counts = dict(self._counts)
        self._progress.n_blocks += 1
        self._progress.position = position
        self._progress.is_finished = is_last
        self._working.save(self._progress)
        for writer in self._writers.values():
            writer.publish()

    def close(self) -> None:
        """Closes all files, of which only an error has left any open but the table of digests."""
        for writer in self._writers.values():
            writer.abandon()
        if self._seen:
            self._seen.close()

    def _write_block(self) -> None:
        """Hands each document to the writer of its split, in the order of the shuffle."""
        block = self._block
        if self._plan.is_shuffled:
            entropy = np.random.SeedSequence((self._plan.encoding.seed, self._progress.n_blocks))
            keys = entropy.generate_state(len(block), np.uint64)
            block = [block[index] for index in np.argsort(keys, kind="stable")]
        by_split = {split: [] for split in self._writers}
        for document in block:
            split = "val" if is_held_out(document[2], self._plan.val_fraction) else "train"
            by_split[split].append(document)
        for split, documents in by_split.items():
            if documents:
                self._writers[split].add(
                    np.concatenate([ids for ids, _, _ in documents]),
                    n_bytes=sum(n_bytes for _, n_bytes, _ in documents),
                    n_documents=len(documents),
                )
        self._clear_block()

    def _clear_block(self) -> None:
        self._block: list[tuple[np.ndarray, int, bytes]] = []  # ids, UTF-8 bytes, digest
        self._n_in_block = 0


@contextmanager
def _encoded(
    stream: Iterable[Batch], encoding: Encoding, num_workers: int
) -> Iterator[Iterator[tuple[EncodedDocuments, dict]]]:
    """The batches of the stream, encoded, in their order, each with the position behind it."""
    if num_workers == 1:
        _start(encoding)
        yield ((_encode(batch.documents), batch.position) for batch in stream)
        return
    # Spawned on every system: forking a process that has threads may deadlock.
    pool = ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(encoding,),
    )
    _start_workers(pool)
    try:
        yield _in_order(stream, pool, BATCHES_PER_WORKER * num_workers)
    except BrokenProcessPool:
        raise WorkerError(
            "a worker process died, perhaps because memory ran out; what is finished is kept: run "
            "the same command again to go on, with a lower --num_workers if it happens again"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_workers(pool: ProcessPoolExecutor) -> None:
    """Starts all workers, which inherit that they ignore Ctrl-C from their first moment on."""
    is_main_thread = threading.current_thread() is threading.main_thread()
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN) if is_main_thread else None
    try:
        pool.submit(os.getpid)
    finally:
        if is_main_thread:
            signal.signal(signal.SIGINT, earlier)


def _in_order(
    stream: Iterable[Batch], pool: ProcessPoolExecutor, n_ahead: int
) -> Iterator[tuple[EncodedDocuments, dict]]:
    """Keeps `n_ahead` batches with the workers, so that they encode while this process reads."""
    waiting = deque()
    for batch in stream:
        waiting.append((pool.submit(_encode, batch.documents), batch.position))
        if len(waiting) == n_ahead:
            future, position = waiting.popleft()
            yield future.result(), position
    for future, position in waiting:
        yield future.result(), position


_encoder: DocumentEncoder | None = None  # of this process
_encoding: Encoding | None = None


def _start(encoding: Encoding) -> None:
    """Loads the tokenizer of this process."""
    global _encoder, _encoding
    use_one_thread()
    _encoder = DocumentEncoder(encoding.tokenizer_spec, encoding.end_of_text_id)
    _encoding = encoding


def _start_worker(encoding: Encoding) -> None:
    """Loads the tokenizer of a worker, which leaves Ctrl-C to its parent and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _start(encoding)


def _end_with_parent() -> None:
    """Waits for the parent's end, of which a worker that waits for work would never hear."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _encode(documents: list[str]) -> EncodedDocuments:
    return encode_documents(
        _encoder, documents, seed=_encoding.seed, min_characters=_encoding.min_characters
    )
