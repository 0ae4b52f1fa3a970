"""Writes checkpoints while training goes on, so that each is complete under its name or absent.

A checkpoint is filled under a hidden name, flushed, read back and compared, listed in
`checksums.json`, and renamed in one step; then `latest` names it, and expired ones go. Ranks agree
after each of these steps in a process group of their own, from their writers' threads: if one of
them fails, all know it and nothing is published, and the training's own collectives are not
disturbed.
"""

import contextlib
import shutil
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_gpt2scratch.common.atomic_files import PARTIAL_SUFFIX, publish_directory, write_file
from modeling_gpt2scratch.common.checksums import write_checksums
from modeling_gpt2scratch.common.console import gigabytes
from modeling_gpt2scratch.common.errors import in_words
from modeling_gpt2scratch.distributed.zero_state import is_zero

from .checkpoint import CheckpointError, named_tensors, save_model
from .retention import (
    CHECKPOINT_PREFIX,
    LATEST_NAME,
    checkpoints_by_step,
    clear_leftovers,
    latest_step,
    most_to_come,
    prune,
    step_of,
)
from .snapshot import (
    HostCopies,
    Snapshot,
    make_skeleton,
    optimizer_tensors,
    take_snapshot,
)

REHEARSAL_NAME = f"{CHECKPOINT_PREFIX}rehearsal"


class CheckpointWriter:
    """Writes the checkpoints of a run; all ranks make one and call its methods together.

    Args:
        output_dir: of the run. Where the model is sharded, all ranks must see the same.
        keep_checkpoints: that many of the newest stay, 0 for all.
        keep_every: multiples of this step stay, 0 for none.
        keep_best: whether the one with the lowest validation loss stays.
        in_background: whether `save` returns when the tensors are copied, not when they are
            written. The copies take as much memory of the host as the checkpoint of the disk,
            beside a GPU up to twice as much: pinned memory comes in powers of two.
        timeout_minutes: how long a writer waits for those of the other ranks.

    Raises:
        OSError: on all ranks alike, if the leftovers of a killed run cannot be removed.
    """

    def __init__(
        self,
        output_dir: Path,
        *,
        keep_checkpoints: int,
        keep_every: int,
        keep_best: bool = False,
        in_background: bool,
        timeout_minutes: float = 30.0,
    ):
        self._output_dir = output_dir
        self._keep_checkpoints = keep_checkpoints
        self._keep_every = keep_every
        self._keep_best = keep_best
        self._in_background = in_background
        self._copies = HostCopies(is_aliasing=not in_background)
        self._skeleton: PreTrainedModel | None = None
        self._thread: threading.Thread | None = None
        # What was wrong with the last save, as soon as this rank knows; `wait` raises it.
        self.problem: str | None = None
        self._group = None
        if dist.is_initialized():
            timeout = timedelta(minutes=timeout_minutes)
            self._group = dist.new_group(backend="gloo", timeout=timeout)
        self._is_main = self._group is None or dist.get_rank() == 0
        self._on_main(clear_leftovers, output_dir)

    def save(
        self,
        *,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: torch.optim.Optimizer,
        state: dict,
        best_step: int | None = None,
        on_written: Callable[[Path], None] | None = None,
    ) -> float:
        """Writes `checkpoint-N` for N = state["step"], after the one in flight if there is one.

        Args:
            model: without any wrapper; its parameters are the optimizer's.
            optimizer: the torch optimizer itself.
            state: JSON values that a resumed run needs or checks.
            best_step: of the checkpoint with the lowest validation loss, None if it is not known.
            on_written: called on the main rank with the complete checkpoint, before `latest` names
                it and any other is pruned. Whatever it raises counts as a failure to write.

        Returns:
            Seconds that the training stood still.

        Raises:
            OSError: on all ranks alike, if this one failed, or if the one before failed in the
                background. This one is then not begun, and may be asked for again.
        """
        started = time.perf_counter()
        self.wait()
        snapshot = self._snapshot(model, tokenizer, optimizer, state)
        path = self._output_dir / f"{CHECKPOINT_PREFIX}{state['step']}"
        self._thread = threading.Thread(
            target=self._write,
            args=(snapshot, path, best_step, on_written),
            name="checkpoint writer",
            daemon=True,
        )
        self._thread.start()
        if not self._in_background:
            self.wait()
        return time.perf_counter() - started

    def wait(self) -> None:
        """Returns when nothing is in flight.

        Raises:
            OSError: on all ranks alike, once, if what was in flight has failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        problem, self.problem = self.problem, None
        if problem is not None:
            raise OSError(problem)

    def rehearse(
        self,
        *,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: torch.optim.Optimizer,
        state: dict,
        last_step: int = 0,
        save_every: int = 0,
        eval_every: int = 0,
    ) -> None:
        """Writes, verifies and deletes one checkpoint, after looking for the space of all.

        Args:
            model: as for `save`, and so tokenizer, optimizer and state.
            last_step: of the run, which saves its last checkpoint after it; 0 if not known.
            save_every: steps between checkpoints, 0 for none before that.
            eval_every: steps between validations, each of which may be the best, 0 for none.

        Raises:
            CheckpointError: if ranks do not see the same directory.
            OSError: if a checkpoint cannot be written, or those that are to be kept do not fit.
                Both on all ranks alike.
        """
        self.wait()
        if 0 < last_step <= state["step"]:  # no checkpoint is to come
            return
        n_bytes = checkpoint_bytes(model, optimizer)
        rule = {"keep_checkpoints": self._keep_checkpoints, "keep_every": self._keep_every}
        rule |= {"keep_best": self._keep_best, "last_step": last_step}
        rule |= {"save_every": save_every, "eval_every": eval_every}
        self._on_main(_require_space, self._output_dir, n_bytes, step=state["step"], **rule)
        snapshot = self._snapshot(model, tokenizer, optimizer, state)
        with self._partial_directory(self._output_dir / REHEARSAL_NAME) as partial:
            self._require_shared(partial)
            self._fill(snapshot, partial)

    def save_model(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Writes the model itself into the directory of the run, as a result of it.

        Raises:
            OSError: on all ranks alike.
        """
        self.wait()
        snapshot = self._snapshot(model, tokenizer, None, {})
        self._on_main(
            save_model, snapshot.skeleton, tokenizer, self._output_dir, weights=snapshot.weights
        )

    def close(self) -> None:
        """Lets what is in flight end, and gives the process group back; raises nothing."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def _snapshot(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: torch.optim.Optimizer | None,
        state: dict,
    ) -> Snapshot:
        """The copies of this rank."""
        if self._skeleton is None:
            self._skeleton = make_skeleton(model)
        return take_snapshot(
            self._copies,
            model=model,
            skeleton=self._skeleton,
            tokenizer=tokenizer,
            optimizer=optimizer,
            state=state,
        )

    def _write(
        self,
        snapshot: Snapshot,
        path: Path,
        best_step: int | None,
        on_written: Callable[[Path], None] | None,
    ) -> None:
        """Writes a checkpoint and publishes it; what goes wrong is the new `problem`."""
        try:
            with self._partial_directory(path) as partial:
                self._fill(snapshot, partial)
                self._on_main(publish_directory, partial, path)
            if on_written is not None:
                self._on_main(on_written, path)
            self._on_main(self._point_and_prune, path, best_step)
        except Exception as error:  # a thread has nobody to raise to
            self.problem = (
                f"{path}: {in_words(error)}; mend that, and --resume auto goes on from the "
                f"checkpoint before"
            )

    def _fill(self, snapshot: Snapshot, partial: Path) -> None:
        """Every rank's files, and their checksums, verified."""
        of_ranks = self._on_all(snapshot.write, partial)
        checksums = {name: entry for of_rank in of_ranks for name, entry in of_rank.items()}
        self._on_main(write_checksums, partial, checksums)

    def _point_and_prune(self, path: Path, best_step: int | None) -> None:
        """Makes `latest` name the checkpoint, and deletes those that have expired."""
        before = latest_step(self._output_dir)
        write_file(self._output_dir / LATEST_NAME, f"{path.name}\n".encode())
        prune(
            self._output_dir,
            written=step_of(path),
            before=before,
            best=best_step if self._keep_best else None,
            keep_checkpoints=self._keep_checkpoints,
            keep_every=self._keep_every,
        )

    @contextlib.contextmanager
    def _partial_directory(self, path: Path):
        """An empty hidden directory for all ranks, which is gone afterwards."""
        partial = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
        try:
            self._on_main(_make_empty, partial)
            yield partial
        finally:
            if self._is_main:
                shutil.rmtree(partial, ignore_errors=True)

    def _require_shared(self, partial: Path) -> None:
        """Refuses ranks that do not see the main rank's directory."""
        for rank, is_seen in enumerate(self._on_all(partial.is_dir)):
            if not is_seen:
                raise CheckpointError(
                    f"expected {self._output_dir} to be one directory that all processes share, as "
                    f"each reads the checkpoints; found that process {rank} has another; choose "
                    f"--output_dir on a shared file system"
                )

    def _on_main(self, function: Callable, *args, **kwargs) -> None:
        """Calls the function on the main rank; what it raises is raised on all."""
        if self._is_main:
            self._on_all(function, *args, **kwargs)
        else:
            self._on_all(lambda: None)

    def _on_all(self, function: Callable, *args, **kwargs) -> list[Any]:
        """What the function returned on each rank.

        Raises:
            OSError: on all ranks alike, if it raised anything on any.
        """
        result, problem = None, None
        try:
            result = function(*args, **kwargs)
        except Exception as error:  # of any kind: the other ranks are waiting for an answer
            if self._group is None:
                raise
            problem = in_words(error)
        if self._group is None:
            return [result]
        of_ranks: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(of_ranks, (result, problem), group=self._group)
        for rank, (_, problem) in enumerate(of_ranks):
            if problem is not None:
                raise OSError(f"process {rank}: {problem}")
        return [result for result, _ in of_ranks]


def checkpoint_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes that a checkpoint will take, about; two moments if the optimizer has none yet."""
    if is_zero(model):  # weights and two moments, in float32 whatever the model's own type
        return 12 * sum(tensor.numel() for _, tensor in named_tensors(model))
    n_weights = sum(t.numel() * t.element_size() for _, t in named_tensors(model))
    moments = (tensor for _, tensor in optimizer_tensors(model, optimizer))
    n_moments = sum(t.numel() * t.element_size() for t in moments)
    return n_weights + (n_moments or 2 * n_weights)


def _require_space(output_dir: Path, n_bytes: int, **rule) -> None:
    """Refuses a disk without room for the checkpoints to come, by the rule of `most_to_come`."""
    output_dir.mkdir(parents=True, exist_ok=True)
    n_missing = max(1, most_to_come(checkpoints_by_step(output_dir), **rule))
    n_kept = rule["keep_checkpoints"]
    fewer = {0: " or give --keep_checkpoints 3", 1: ""}.get(n_kept, " or lower --keep_checkpoints")
    n_free = shutil.disk_usage(output_dir).free
    if n_free < n_missing * n_bytes:
        checkpoints = "checkpoints" if n_missing > 1 else "checkpoint"
        raise OSError(
            f"{output_dir}: expected {gigabytes(n_missing * n_bytes)} GB free for {n_missing} more "
            f"{checkpoints} of {gigabytes(n_bytes)} GB, found {gigabytes(n_free)}; free some{fewer}"
        )


def _make_empty(directory: Path) -> None:
    """A directory with nothing in it."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
