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
from functools import partial
from multiprocessing import connection
from typing import NamedTuple

from modeling_gpt2scratch.common.errors import MendableError

from .encoder import (
    DocumentEncoder,
    DocumentError,
    EncodedDocuments,
    encode_documents,
    use_one_thread,
)

BATCHES_PER_WORKER = 3  # on their way at a time: one in work, the others so that it never waits
SECONDS_TO_END = 2.0  # of the pool's own thread, once its processes are dead


class WorkerError(MendableError, RuntimeError):
    """A worker process that died, or that met a document which it cannot encode."""


@dataclass(frozen=True)
class DocumentBatch:
    """Documents that are read, encoded and written together."""

    documents: list[str]
    position: dict  # behind them, as JSON values
    name: str = ""  # of the file that they come from
    rows: Sequence[int] = ()  # of that file, the one that ends with each document
    n_too_short: int = 0  # documents that were left out
    n_train: int | None = None  # those behind so many are held out; None: their text decides
    cut_digest: bytes | None = None  # of the whole document that the border of the splits cuts


class Encoding(NamedTuple):
    """What a worker needs to know."""

    tokenizer_spec: str
    end_of_text_id: int
    seed: int
    val_fraction: float  # of the documents, where their text decides
    skips_failures: bool = False  # leaves out and counts documents that cannot be encoded


# The encoded documents of a batch, and the batch.
EncodedBatches = Iterator[tuple[EncodedDocuments, DocumentBatch]]


@contextmanager
def encoded(
    stream: Iterable[DocumentBatch], encoding: Encoding, num_workers: int
) -> Iterator[EncodedBatches]:
    """The batches of the stream, encoded, in their order.

    Raises:
        WorkerError: if a worker process dies, or a document cannot be encoded.
    """
    if num_workers == 1:
        _start(encoding)
        yield (_of(batch, partial(_encode, batch)) for batch in stream)
        return
    with start_workers(num_workers, initializer=_start, initargs=(encoding,)) as pool:
        try:
            yield _in_order(stream, pool, BATCHES_PER_WORKER * num_workers)
        except BrokenProcessPool:
            raise WorkerError(
                "a worker process died, perhaps because memory ran out; what is finished is kept: "
                "run the same command again to go on, with a lower --num_workers if it happens "
                "again"
            ) from None


@contextmanager
def start_workers(
    num_workers: int, *, initializer: Callable | None = None, initargs: tuple = ()
) -> Iterator[ProcessPoolExecutor]:
    """Processes that leave Ctrl-C to their parent, and end with the block and with their parent.

    An error in the block, as Ctrl-C is, ends them in the middle of their work. They are spawned on
    every system: forking a process that has threads may deadlock.

    Args:
        num_workers: how many.
        initializer: called in each before its first work.
        initargs: its arguments.

    Raises:
        WorkerError: if one of them dies.
    """
    pool = ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(initializer, initargs),
    )
    try:
        with _deaf_children():
            for _ in range(num_workers):  # one begins with each work that finds none idle
                pool.submit(os.getpid)
        yield pool
    except BrokenProcessPool:
        _kill(pool)
        raise WorkerError(
            "a worker process died, perhaps because memory ran out; run the same command again"
        ) from None
    except BaseException:
        _kill(pool)
        raise
    pool.shutdown(wait=True, cancel_futures=True)


def _kill(pool: ProcessPoolExecutor) -> None:
    """Ends the processes of a pool in the middle of their work.

    `kill_workers` of Python 3.14 does the same but for the pipe: a process that is killed while it
    writes a result would leave the pool's thread, and so the interpreter, waiting for the rest.
    Work must not be cancelled as well: what finds it so, in the pool's thread, ends in a traceback.
    """
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool._result_queue._writer.close()
    thread = pool._executor_manager_thread
    pool.shutdown(wait=False)
    if thread is not None:  # Python wakes it when it ends, and must not while it closes its pipes
        thread.join(timeout=SECONDS_TO_END)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Within the block, processes begin that Ctrl-C does not reach; it is not lost for this one."""
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # is inherited
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def _in_order(
    stream: Iterable[DocumentBatch], pool: ProcessPoolExecutor, n_ahead: int
) -> EncodedBatches:
    """Keeps `n_ahead` batches with the workers, so that they encode while this process reads."""
    waiting = deque()
    for batch in stream:
        future = pool.submit(_encode, batch)
        waiting.append((replace(batch, documents=[]), future.result))
        if len(waiting) == n_ahead:
            yield _of(*waiting.popleft())
    for batch, result in waiting:
        yield _of(batch, result)


def _of(
    batch: DocumentBatch, result: Callable[[], EncodedDocuments]
) -> tuple[EncodedDocuments, DocumentBatch]:
    """The encoded documents of a batch, with the batch; an error names file and row."""
    try:
        return result(), batch
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


def _encode(batch: DocumentBatch) -> EncodedDocuments:
    return encode_documents(
        _encoder,
        batch.documents,
        seed=_encoding.seed,
        val_fraction=_encoding.val_fraction,
        n_train=batch.n_train,
        skips_failures=_encoding.skips_failures,
    )
