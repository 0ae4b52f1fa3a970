"""A scorer whose batches the processes of a launch share out among themselves."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_gpt2scratch.common.console import progress_bar
from modeling_gpt2scratch.common.errors import in_words

from .batching import RowBatch
from .processes import Problem, exchange
from .scorer import CausalScorer, Portion, Row

# Batches that each process computes before all hand out what they have. Few, because a process
# that failed waits until then, and the backends end a run whose processes wait for many minutes.
BATCHES_PER_EXCHANGE = 16


class SharedScorer(CausalScorer):
    """A scorer whose batches the processes of a run share out among themselves.

    A model sharded by FSDP2 waits for all processes in each forward pass. Therefore each process
    makes the same number of them.

    Args:
        batch_tokens: padded input tokens of one forward pass.
        in_training: whether the run trains the model. Then no bar is drawn, and nobody finds out
            what the logits are made of: they may be in another precision than its weights, and are
            its head's.
        before_batches: called on all processes before each few batches; it may raise.

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
        in_training: bool = False,
        before_batches: Callable[[], None] = lambda: None,
    ) -> None:
        # Before the head is checked, which asks for hidden states.
        self._in_training, self._is_sharded = in_training, isinstance(model, FSDPModule)
        super().__init__(model, tokenizer, batch_tokens=batch_tokens)
        self._accelerator = accelerator
        self._agreed_trees: bool | None = None  # not asked yet
        self._before_batches = before_batches
        if self._is_sharded:
            if self._head is None:
                raise ValueError(
                    f"{type(model).__name__}: expected a base model and get_output_embeddings() to "
                    "score a sharded model, found no such head"
                )
            weight = self._head.weight
            weight = weight.full_tensor() if isinstance(weight, DTensor) else weight
            # Offloaded parameters are gathered on the CPU.
            self._head = partial(F.linear, weight=weight.detach().to(accelerator.device))

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
            SharedProblemError: on all processes alike, if `compute` raises anything on one of them.
        """
        batches = list(batches)
        n_batches = BATCHES_PER_EXCHANGE * self._accelerator.num_processes
        is_shown = self._accelerator.is_main_process and not self._in_training
        options = {"desc": description, "unit": "row", "is_shown": is_shown}
        with progress_bar(total=n_rows, **options) as bar:
            for start in range(0, len(batches), n_batches):
                self._before_batches()
                for found in self._share_out(batches[start : start + n_batches], compute):
                    yield found
                    bar.update()

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
                problem = problem or Problem(number, in_words(error))
                continue
            if is_own:
                own.append(found)
        shares = exchange(own, problem)
        turns = (divmod(number, n_processes) for number in range(len(batches)))
        return [row for turn, process in turns for row in shares[process][turn]]

    def _score_tails(
        self,
        batches: Iterable[RowBatch],
        rows: Sequence[np.ndarray],
        n_scored: Sequence[int],
        description: str,
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """As in `CausalScorer`; ids that a sharded model has no embedding for are found beforehand.

        In the pass itself the one process that has them would leave the others waiting.
        """
        if self._is_sharded:
            for row in rows:
                self._checked(row)
        return super()._score_tails(batches, rows, n_scored, description)

    def _score_batch(
        self, batch: RowBatch, rows: Sequence[np.ndarray], n_scored: Sequence[int]
    ) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """The scores of a batch; in halves for want of memory only where no other process waits."""
        if self._is_sharded:
            return self._score_whole_batch(batch, self._trees_of(batch, rows), rows, n_scored)
        return super()._score_batch(batch, rows, n_scored)

    def _can_join(self) -> bool:
        """Whether all processes find so, so that all make the same batches."""
        if self._agreed_trees is None:
            self._agreed_trees = all(exchange(super()._can_join()))
        return self._agreed_trees

    def _hidden_states(self, input_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """What the head sees: (B, T) -> (B, T, C)."""
        if not self._is_sharded:
            return super()._hidden_states(input_ids, **inputs)
        # Only a call of the whole model gathers the parameters outside its blocks.
        outputs = []
        hook = self.model.base_model.register_forward_hook(lambda *args: outputs.append(args[2][0]))
        input_ids = input_ids.to(self.model.device)
        try:
            self.model(input_ids=input_ids, use_cache=False, logits_to_keep=1, **inputs)
        finally:
            hook.remove()
        return outputs[0].to(self._head.keywords["weight"].dtype)

    def _check_head(self) -> None:
        """As in `CausalModel`, of a model that is not in training."""
        if not self._in_training:
            super()._check_head()
