"""Batches made on a background thread while the model works."""

import queue
import threading
import time
from typing import Any

import torch
from torch import Tensor

from modeling_gpt2scratch.data.shards.format import ShardError
from modeling_gpt2scratch.distributed.device import has_pinned_memory

from .loader import ShardLoader

DEPTH = 8  # micro-batches that wait to be used


class Prefetcher:
    """The micro-batches of a process from a step on, without end.

    Use it as a context manager: the thread ends with the block.

    Args:
        start_step: optimizer updates already made.
        device: that the batches are for; they are put where a GPU fetches them by itself.
    """

    def __init__(
        self, loader: ShardLoader, *, start_step: int = 0, device: torch.device | None = None
    ):
        self._loader = loader
        self._device = device
        self._ready: queue.Queue = queue.Queue(DEPTH)
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(start_step,), name="prefetcher", daemon=True
        )
        self.waited_seconds = 0.0  # that the consumer has spent in `next` so far

    def __enter__(self) -> "Prefetcher":
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._stopped.set()
        # A thread that waits for a shard is left behind; as a daemon it does not keep the process.
        self._thread.join(timeout=1)

    def __iter__(self) -> "Prefetcher":
        return self

    def __next__(self) -> dict[str, Tensor]:
        """The next micro-batch; see `ShardLoader.batch`.

        Raises:
            ShardError: if it could not be read.
        """
        started = time.perf_counter()
        item = self._ready.get()
        self.waited_seconds += time.perf_counter() - started
        if not isinstance(item, BaseException):
            return item
        self._put(item)  # whoever asks again gets the same answer
        if isinstance(item, OSError):
            raise ShardError(str(item)) from item
        raise item

    def _run(self, step: int) -> None:
        """Fills the queue until told to stop."""
        is_pinned = self._device is not None and has_pinned_memory(self._device)
        try:
            # A new thread has the first GPU, which is also what a single process's "cuda" means.
            if is_pinned and self._device.index is not None:
                torch.accelerator.set_device_index(self._device.index)
            while True:
                for micro_step in range(self._loader.micro_steps):
                    batch = self._loader.batch(step, micro_step)
                    if is_pinned:
                        batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
                    if not self._put(batch):
                        return
                step += 1
        except BaseException as error:
            self._put(error)

    def _put(self, item: Any) -> bool:
        """Waits for room in the queue; False if told to stop before there was any."""
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
