"""Benchmarks of a model that is being trained, by the tasks and the arithmetic of `compare.py`.

    benchmarks = load_benchmarks(["lambada"], sources={}, limit=None, accelerator=accelerator)
    score_benchmarks(benchmarks, model, tokenizer, accelerator, batch_tokens=8192)

The data is loaded once, before the first step. All processes of the run call both functions: they
share out the batches of `compare.py` among themselves, so that the scores do not depend on their
number.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import hellaswag
import lambada
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from batching import Batch
from hellaswag import HellaswagTask, read_questions
from lambada import LambadaTask, read_texts
from row_scorer import Sharing
from scoring import CausalScorer, Task
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Task -> what reads its data, its class, and where the data is if no other place is given.
BENCHMARKS: dict[str, tuple[Callable, type[Task], str]] = {
    "lambada": (read_texts, LambadaTask, lambada.HUB_NAME),
    "hellaswag": (read_questions, HellaswagTask, hellaswag.HUB_NAME),
}


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

    A benchmark that has no finite score is left out, and said to be; a run does not end for it.

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
                    estimates = task.evaluate(scorer).estimates
                except (ValueError, OverflowError) as error:
                    accelerator.print(f"no score of {name}: {error}")
                    continue
                values |= {f"{name}/{metric}": e.value for metric, e in estimates.items()}
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
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        *,
        batch_tokens: int,
    ) -> None:
        super().__init__(model, tokenizer, batch_tokens=batch_tokens)
        self._accelerator = accelerator
        self._is_sharded = isinstance(model, FSDPModule)
        if self._is_sharded:
            weight = self._head.weight
            weight = weight.full_tensor() if isinstance(weight, DTensor) else weight
            self._head = partial(F.linear, weight=weight.detach())

    def _score_tails(
        self,
        rows: Sequence[np.ndarray],
        n_scored: Sequence[int],
        groups: Sequence[Sequence[int]],
        description: str,
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Index, nats and argmax flags of all rows, on every process alike.

        Batches go round in turn. Whoever has none left of a sharded model's makes another's once
        more and drops its scores.

        Raises:
            ValueError: if one process has a score that is not finite; on every process alike.
        """
        n_processes = self._accelerator.num_processes
        batches = list(self._plan(rows, n_scored, groups))
        ends = np.cumsum(n_scored, dtype=np.int64)
        # Each process fills in its share, and the rest is 0: the sum over processes is whole.
        scores = np.zeros((2, ends[-1] if len(ends) else 0), dtype=np.float32)
        n_failed = 0  # batches of this process without a finite score
        for first in range(0, len(batches), n_processes):
            number = first + self._accelerator.process_index
            is_own = number < len(batches)
            if not (is_own or self._is_sharded):
                continue
            try:
                found = self._score_batch(batches[number if is_own else first], rows, n_scored)
            except ValueError:  # the others must not wait for this process
                n_failed += 1
                continue
            if is_own:
                for index, nats, greedy in found:
                    scores[:, ends[index] - n_scored[index] : ends[index]] = nats, greedy
        if n_failed := int(self._sum(np.array([n_failed], dtype=np.float32))[0]):
            raise ValueError(f"expected finite log-probs, found others in {n_failed} batches")
        nats, greedy = (np.split(values, ends[:-1]) for values in self._sum(scores))
        for index in (index for batch in batches for index in batch.rows):
            yield index, nats[index], greedy[index] > 0

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """The sum over all processes, on every process alike."""
        device = self._accelerator.device if self._accelerator.num_processes > 1 else "cpu"
        total = self._accelerator.reduce(torch.tensor(values, device=device), reduction="sum")
        return total.cpu().numpy()

    def _score_batch(
        self, batch: Batch, rows: Sequence[np.ndarray], n_scored: Sequence[int]
    ) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """The scores of a batch; in halves for want of memory only where no other process waits."""
        if self._is_sharded:
            return self._score_whole_batch(batch, rows, n_scored)
        return super()._score_batch(batch, rows, n_scored)

    def _sharing(self) -> Sharing:
        """None if the model is sharded: then the passes must be as many on every process."""
        return "none" if self._is_sharded else super()._sharing()

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
        """Nothing: a trained model's own logits may be in another precision, and need no check."""


def _load(name: str, source: str | None, limit: int | None) -> Task:
    """One benchmark with its data."""
    read, task_class, hub_name = BENCHMARKS[name]
    try:
        return task_class(read(source or hub_name, limit=limit))
    except Exception as error:  # `datasets` has many ways to find no network
        reason = " ".join(str(error).split()) or type(error).__name__
        hint = "" if source else f"; give a local file with --{name}_data"
        raise BenchmarkError(f"{name}: expected its examples, found: {reason}{hint}") from error
