"""Worker processes that encode documents: they load little, and end with their parent.

Batches come back in the order in which they were read, so what is made of them does not depend on
the number of workers. A worker imports this module and what it names, and neither torch,
transformers nor pyarrow.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import connection
from typing import NamedTuple

from .encoder import (
    DocumentEncoder,
    DocumentError,
    EncodedDocuments,
    encode_documents,
    use_one_thread,
)

BATCHES_PER_WORKER = 3  # on their way at a time: one in work, the others so that it never waits


class WorkerError(RuntimeError):
    """A worker process that died, or that met a document which it cannot encode."""


@dataclass(frozen=True)
class Batch:
    """Documents that are read, encoded and written together."""

    documents: list[str]
    position: dict  # behind them, as JSON values
    name: str = ""  # of the file that they come from
    rows: Sequence[int] = ()  # of that file, the one that ends with each document


class Encoding(NamedTuple):
    """What a worker needs to know."""

    tokenizer_spec: str
    end_of_text_id: int
    seed: int
    min_characters: int
    skips_failures: bool = False  # leaves out and counts documents that cannot be encoded


@contextmanager
def encoded(
    stream: Iterable[Batch], encoding: Encoding, num_workers: int
) -> Iterator[Iterator[tuple[EncodedDocuments, dict]]]:
    """The batches of the stream, encoded, in their order, each with the position behind it.

    Raises:
        WorkerError: if a worker process dies, or a document cannot be encoded.
    """
    if num_workers == 1:
        _start(encoding)
        yield (_of(batch, lambda b=batch: _encode(b.documents)) for batch in stream)
        return
    pool = start_workers(num_workers, initializer=_start, initargs=(encoding,))
    try:
        yield _in_order(stream, pool, BATCHES_PER_WORKER * num_workers)
    except BrokenProcessPool:
        raise WorkerError(
            "a worker process died, perhaps because memory ran out; what is finished is kept: run "
            "the same command again to go on, with a lower --num_workers if it happens again"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def start_workers(
    num_workers: int, *, initializer: Callable | None = None, initargs: tuple = ()
) -> ProcessPoolExecutor:
    """Processes that leave Ctrl-C to their parent, and end with it even if it is killed.

    They are spawned on every system: forking a process that has threads may deadlock.

    Args:
        num_workers: how many.
        initializer: called in each before its first work.
        initargs: its arguments.
    """
    pool = ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(initializer, initargs),
    )
    # A process inherits that it ignores a signal. One begins with each work that finds none idle.
    is_main_thread = threading.current_thread() is threading.main_thread()
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN) if is_main_thread else None
    try:
        for _ in range(num_workers):
            pool.submit(os.getpid)
    finally:
        if is_main_thread:
            signal.signal(signal.SIGINT, earlier)
    return pool


def _in_order(
    stream: Iterable[Batch], pool: ProcessPoolExecutor, n_ahead: int
) -> Iterator[tuple[EncodedDocuments, dict]]:
    """Keeps `n_ahead` batches with the workers, so that they encode while this process reads."""
    waiting = deque()
    for batch in stream:
        future = pool.submit(_encode, batch.documents)
        waiting.append((replace(batch, documents=[]), future.result))
        if len(waiting) == n_ahead:
            yield _of(*waiting.popleft())
    for batch, result in waiting:
        yield _of(batch, result)


def _of(batch: Batch, result: Callable[[], EncodedDocuments]) -> tuple[EncodedDocuments, dict]:
    """The encoded documents of a batch and its position; an error names file and row."""
    try:
        return result(), batch.position
    except DocumentError as error:
        raise WorkerError(f"{batch.name}: row {batch.rows[error.index]}: {error}") from error


_encoder: DocumentEncoder | None = None  # of this process
_encoding: Encoding | None = None


def _start(encoding: Encoding) -> None:
    """Loads the tokenizer of this process."""
    global _encoder, _encoding
    use_one_thread()
    _encoder = DocumentEncoder(encoding.tokenizer_spec, encoding.end_of_text_id)
    _encoding = encoding


def _begin(initializer: Callable | None, initargs: tuple) -> None:
    """The first that a worker does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer:
        initializer(*initargs)


def _end_with_parent() -> None:
    """Waits for the parent's end, of which a worker that waits for work would never hear."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _encode(documents: list[str]) -> EncodedDocuments:
    return encode_documents(
        _encoder,
        documents,
        seed=_encoding.seed,
        min_characters=_encoding.min_characters,
        skips_failures=_encoding.skips_failures,
    )
