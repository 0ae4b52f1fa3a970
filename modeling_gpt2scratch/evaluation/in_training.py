"""Benchmarks of a model that is being trained, by the tasks and the arithmetic of `compare.py`.

    benchmarks = load_benchmarks(["lambada"], sources={}, limit=None, accelerator=accelerator)
    score_benchmarks(benchmarks, model, tokenizer, accelerator, batch_tokens=8192)

The data is loaded once, before the first step. All processes of the run call both functions: they
share out the batches of `compare.py` among themselves, so that the scores do not depend on their
number.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_gpt2scratch.evaluation.scoring.batching import Batch
from modeling_gpt2scratch.evaluation.scoring.processes import (
    Problem,
    SharedProblem,
    alike,
    error_line,
    exchange,
)
from modeling_gpt2scratch.evaluation.scoring.row_scorer import Portion, Row, Sharing
from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer, Task
from modeling_gpt2scratch.evaluation.tasks import hellaswag, lambada
from modeling_gpt2scratch.evaluation.tasks.hellaswag import HellaswagTask, read_questions
from modeling_gpt2scratch.evaluation.tasks.lambada import LambadaTask, read_texts

# Task -> what reads its data, its class, and where the data is if no other place is given.
BENCHMARKS: dict[str, tuple[Callable, type[Task], str]] = {
    "lambada": (read_texts, LambadaTask, lambada.HUB_NAME),
    "hellaswag": (read_questions, HellaswagTask, hellaswag.HUB_NAME),
}
# Batches that each process computes before all hand out what they have. Few, because a process
# that failed waits until then, and the backends end a run whose processes wait for many minutes.
BATCHES_PER_EXCHANGE = 16


class BenchmarkError(ValueError):
    """Data of a benchmark that cannot be read."""


def load_benchmarks(
    names: Sequence[str],
    *,
    sources: dict[str, str | None],
    limit: int | None,
    accelerator: Accelerator,
) -> dict[str, Task]:
    """The benchmarks called `names`, with their data.

    One process of each machine reads first, so that the others find what it downloaded.

    Args:
        names: of the benchmarks.
        sources: by name, a local file or a Hub data set in place of the usual one.
        limit: examples of each, None for all.
        accelerator: of the run.

    Raises:
        BenchmarkError: if data cannot be read, on every process alike.
    """
    benchmarks = {}
    for is_first in (True, False):
        problem = None
        if accelerator.is_local_main_process == is_first:
            try:
                benchmarks = {name: _load(name, sources.get(name), limit) for name in names}
            except BenchmarkError as error:
                problem = str(error)
        for found in gather_object([problem]):
            if found is not None:
                raise BenchmarkError(found)
    return benchmarks


def score_benchmarks(
    benchmarks: dict[str, Task],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    *,
    batch_tokens: int,
) -> dict[str, float]:
    """Every metric of every benchmark, as "lambada/acc" and so on, on every process alike.

    A benchmark that cannot be scored, for want of memory or because a score is not finite, is left
    out, and the main process says so; a run does not end for it.

    Args:
        benchmarks: from `load_benchmarks`.
        model: of the run: not behind DDP, but itself if FSDP2 shards it. It keeps its mode.
        tokenizer: the model's own.
        accelerator: of the run.
        batch_tokens: padded tokens of one forward pass of one process.
    """
    values = {}
    was_training = model.training
    # Batches have all sizes, and each would be compiled anew.
    with torch.compiler.set_stance("force_eager"), torch.autocast(model.device.type, enabled=False):
        try:
            scorer = SharedScorer(model, tokenizer, accelerator, batch_tokens=batch_tokens)
            for name, task in benchmarks.items():
                try:
                    result = alike(partial(task.evaluate, scorer), (ValueError, OverflowError))
                except SharedProblem as error:
                    if accelerator.is_main_process:
                        print(f"no score of {name}: {error}")
                    continue
                values |= {f"{name}/{metric}": e.value for metric, e in result.estimates.items()}
        finally:
            model.train(was_training)
    return values


class SharedScorer(CausalScorer):
    """A scorer whose batches the processes of a run share out among themselves.

    A model sharded by FSDP2 waits for all processes in each forward pass. Therefore each process
    makes the same number of them, and rows that begin alike are computed whole.

    Args:
        model: see `score_benchmarks`.
        tokenizer: the model's own.
        accelerator: of the run.
        batch_tokens: padded input tokens of one forward pass.
        has_progress: whether the main process draws a bar.
        checks_head: whether to find out what the logits are made of. Those of a model in training
            may be in another precision than its weights, and are its head's.

    Raises:
        ValueError: as in `CausalScorer`, or for a sharded model without a head.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        *,
        batch_tokens: int | Literal["auto"],
        has_progress: bool = False,
        checks_head: bool = False,
    ) -> None:
        self._checks_head = checks_head
        super().__init__(model, tokenizer, batch_tokens=batch_tokens)
        self._accelerator = accelerator
        self._has_progress = has_progress and accelerator.is_main_process
        self._agreed_sharing: Sharing | None = None  # not asked yet
        self._is_sharded = isinstance(model, FSDPModule)
        if self._is_sharded:
            if self._head is None:
                raise ValueError(
                    f"{type(model).__name__}: expected a base model and get_output_embeddings() to "
                    "score a sharded model, found no such head"
                )
            weight = self._head.weight
            weight = weight.full_tensor() if isinstance(weight, DTensor) else weight
            self._head = partial(F.linear, weight=weight.detach())

    def compute_rows(
        self,
        batches: Iterable[Portion],
        compute: Callable[[Portion], Sequence[Row]],
        *,
        n_rows: int,
        description: str,
    ) -> Iterator[Row]:
        """What `compute` finds of each row, from one process or another, on all of them alike.

        Batches go round in turn.

        Raises:
            SharedProblem: on all processes alike, if `compute` raises anything on one of them.
        """
        batches = list(batches)
        n_batches = BATCHES_PER_EXCHANGE * self._accelerator.num_processes
        disable = None if self._has_progress else True  # None: only where nobody watches
        with tqdm(total=n_rows, desc=description, unit="row", disable=disable) as progress:
            for start in range(0, len(batches), n_batches):
                for found in self._share_out(batches[start : start + n_batches], compute):
                    yield found
                    progress.update()

    def _share_out(
        self, batches: Sequence[Portion], compute: Callable[[Portion], Sequence[Row]]
    ) -> list[Row]:
        """What `compute` finds of each row of a few batches, on every process alike.

        Whoever has none left of a sharded model's makes another's once more and drops what is
        found. Of several problems the one that one process would have met counts.
        """
        n_processes = self._accelerator.num_processes
        own: list[Sequence[Row]] = []
        problem = None
        for first in range(0, len(batches), n_processes):
            number = first + self._accelerator.process_index
            is_own = number < len(batches)
            if not self._is_sharded and (problem or not is_own):
                break
            try:
                found = compute(batches[number if is_own else first])
            except Exception as error:
                # Others wait in a pass that this process has left, and only its end sets them free.
                if self._is_sharded and not isinstance(error, ValueError):
                    raise
                problem = problem or Problem(number, error_line(error))
                continue
            if is_own:
                own.append(found)
        shares = exchange(own, problem)
        turns = (divmod(number, n_processes) for number in range(len(batches)))
        return [row for turn, process in turns for row in shares[process][turn]]

    def _score_tails(
        self,
        rows: Sequence[np.ndarray],
        n_scored: Sequence[int],
        groups: Sequence[Sequence[int]],
        description: str,
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """As in `RowScorer`; ids that a sharded model has no embedding for are found beforehand.

        In the pass itself the one process that has them would leave the others waiting.
        """
        if self._is_sharded:
            for row in rows:
                self._checked(row)
        return super()._score_tails(rows, n_scored, groups, description)

    def _score_batch(
        self, batch: Batch, rows: Sequence[np.ndarray], n_scored: Sequence[int]
    ) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """The scores of a batch; in halves for want of memory only where no other process waits."""
        if self._is_sharded:
            return self._score_whole_batch(batch, rows, n_scored)
        return super()._score_batch(batch, rows, n_scored)

    def _sharing(self) -> Sharing:
        """The least that a process finds, so that all make the same batches.

        None if the model is sharded: then the passes must be as many on every process.
        """
        if self._is_sharded:
            return "none"
        if self._agreed_sharing is None:
            found = exchange(super()._sharing())
            self._agreed_sharing = min(found, key=("none", "equal", "any").index)
        return self._agreed_sharing

    def _hidden_states(self, input_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """What the head sees: (B, T) -> (B, T, C)."""
        if not self._is_sharded:
            return super()._hidden_states(input_ids, **inputs)
        # Only a call of the whole model gathers the parameters outside its blocks.
        outputs = []
        hook = self.model.base_model.register_forward_hook(lambda *args: outputs.append(args[2][0]))
        try:
            self.model(input_ids=input_ids.to(self.model.device), use_cache=False, logits_to_keep=1)
        finally:
            hook.remove()
        return outputs[0].to(self._head.keywords["weight"].dtype)

    def _check_head(self) -> None:
        """As in `CausalModel`, if it is asked for."""
        if self._checks_head:
            super()._check_head()


def _load(name: str, source: str | None, limit: int | None) -> Task:
    """One benchmark with its data."""
    read, task_class, hub_name = BENCHMARKS[name]
    try:
        return task_class(read(source or hub_name, limit=limit))
    except Exception as error:  # `datasets` has many ways to find no network
        reason = " ".join(str(error).split()) or type(error).__name__
        hint = "" if source else f"; give a local file with --{name}_data"
        raise BenchmarkError(f"{name}: its examples cannot be read: {reason}{hint}") from error
