"""Log-likelihoods of rows of token ids under any causal language model of transformers.

The numbers are those of lm-evaluation-harness for less work: rows are packed longest first into
batches of a budget of padded tokens, what rows have in common is computed once, and the
language-model head, which for GPT-2 small is a third of the arithmetic and most of the memory, runs
only where a token is scored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel

from modeling_gpt2scratch.common.activity import kept_moving
from modeling_gpt2scratch.common.errors import named

from .batching import MIN_SHARED_TOKENS, Batch, n_common_tokens, pack_endings, plan_batches
from .causal_model import PROBE_TOKENS, CausalModel
from .shared_prefix import SharedPrefix, smallest_window
from .token_scores import padded, score_tokens

logger = logging.getLogger(__name__)
LONGEST_PROBED_WINDOW = 512  # of attention, in tokens; a longer one would take too long to exceed
# Where `batch_tokens` "auto" begins. On a CPU more is slower: rows of one batch differ more in
# length, and its arrays leave the cache. Apple's devices take memory from everybody else.
AUTO_BATCH_TOKENS = 32768
FEWER_BATCH_TOKENS = {"cpu": 1024, "mps": 1024}
# Beginnings that one cache may hold: of any lengths, of one length, or none.
Sharing = Literal["any", "equal", "none"]
Portion = TypeVar("Portion")
Row = TypeVar("Row")


class RowScorer(CausalModel):
    """A causal language model, ready to score token ids.

    Args:
        model: as in `CausalModel`.
        context_tokens: as in `CausalModel`.
        batch_tokens: padded input tokens of one forward pass; a longer row is a batch of its own.
            Whenever the device has not enough memory, the number is halved. "auto" begins with
            `AUTO_BATCH_TOKENS`, or fewer on some devices.

    Raises:
        ValueError: as in `CausalModel`.
    """

    def __init__(
        self, model: PreTrainedModel, *, context_tokens: int, batch_tokens: int | Literal["auto"]
    ) -> None:
        super().__init__(model, context_tokens=context_tokens)
        if batch_tokens == "auto":
            batch_tokens = FEWER_BATCH_TOKENS.get(model.device.type, AUTO_BATCH_TOKENS)
        self.batch_tokens = batch_tokens
        # What batches are made for. It stays as it is, so that several processes make the same.
        self._planned_tokens = batch_tokens
        self._known_sharing: Sharing | None = None  # not tried yet

    def score_windows(
        self, windows: Sequence[np.ndarray], *, description: str = "windows"
    ) -> Iterator[tuple[int, np.ndarray]]:
        """For each window of L + 1 token ids its index and the (L,) nats of all but the first id.

        Longest window first, so windows of one length come in the order given.
        """
        n_scored = [len(window) - 1 for window in windows]
        groups = [[index] for index in range(len(windows))]
        for index, nats, _ in self._score_tails(windows, n_scored, groups, description):
            yield index, nats

    def _score_rows(
        self,
        rows: Sequence[np.ndarray],
        n_scored: Sequence[int],
        groups: Sequence[Sequence[int]],
        description: str,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probability of the last `n_scored` ids of each row, and whether all are argmax."""
        log_probs, is_greedy = np.zeros(len(rows)), np.zeros(len(rows), dtype=bool)
        for index, nats, greedy in self._score_tails(rows, n_scored, groups, description):
            log_probs[index] = -nats.sum(dtype=np.float64)
            is_greedy[index] = greedy.all()
        return log_probs, is_greedy

    def _score_tails(
        self,
        rows: Sequence[np.ndarray],
        n_scored: Sequence[int],
        groups: Sequence[Sequence[int]],
        description: str,
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Index, nats and argmax flags of the last `n_scored[index]` ids of each row."""
        batches = self._plan(rows, n_scored, groups)
        return self.compute_rows(
            batches,
            lambda batch: self._score_batch(batch, rows, n_scored),
            n_rows=len(rows),
            description=description,
        )

    def compute_rows(
        self,
        batches: Iterable[Portion],
        compute: Callable[[Portion], Sequence[Row]],
        *,
        n_rows: int,
        description: str,
    ) -> Iterator[Row]:
        """What `compute` finds of each row, one batch after the other.

        Whatever runs the model on many rows does it here, where several processes share it out.

        Args:
            batches: of rows, the same on every process.
            compute: what is found of each row of a batch.
            n_rows: of all batches, for the progress bar.
            description: of the progress bar.
        """
        with (
            tqdm(total=n_rows, desc=description, unit="row", disable=None) as bar,
            kept_moving(bar),
        ):
            for batch in batches:
                for found in compute(batch):
                    yield found
                    bar.update()

    def _plan(
        self,
        rows: Sequence[np.ndarray],
        n_scored: Sequence[int],
        groups: Sequence[Sequence[int]],
    ) -> Iterator[Batch]:
        """The batches of all rows."""
        n_shared = [
            0 if len(group) < 2 else n_common_tokens(rows, n_scored, group) for group in groups
        ]
        needs_sharing = any(n >= MIN_SHARED_TOKENS for n in n_shared)
        sharing = self._sharing() if needs_sharing else "none"
        return plan_batches(
            [len(row) - 1 for row in rows],
            groups,
            n_shared if sharing != "none" else [0] * len(groups),
            self._planned_tokens,
            is_equal=sharing == "equal",
        )

    def _score_batch(
        self, batch: Batch, rows: Sequence[np.ndarray], n_scored: Sequence[int]
    ) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Index, nats and argmax flags of each row; in halves where the device lacks the memory."""
        longest = max(len(rows[index]) - 1 for index in batch.rows)
        while len(batch.groups) == 1 or batch.n_tokens <= self.batch_tokens:
            try:
                return self._score_whole_batch(batch, rows, n_scored)
            except RuntimeError as error:
                is_smallest = len(batch.groups) == 1 and self.batch_tokens < longest
                if is_smallest or not should_reduce_batch_size(error):
                    raise
            # Here, not above: the exception would keep the tensors of the failed pass alive.
            self.batch_tokens //= 2
            clear_device_cache()
            logger.warning(
                "The device is out of memory; forward passes have %d tokens now", self.batch_tokens
            )
        return [s for half in batch.halves() for s in self._score_batch(half, rows, n_scored)]

    def _score_whole_batch(
        self, batch: Batch, rows: Sequence[np.ndarray], n_scored: Sequence[int]
    ) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Index, nats and argmax flags of each row, what the rows share computed once."""
        if not any(batch.n_shared):
            scores = self._score_padded(
                [rows[index] for index in batch.rows], [n_scored[index] for index in batch.rows]
            )
            return list(zip(batch.rows, *scores, strict=True))
        prefix, last_states = self._shared_prefix(
            [rows[group[0]][:n] for group, n in zip(batch.groups, batch.n_shared, strict=True)]
        )
        indices = batch.rows
        owners = [owner for owner, group in enumerate(batch.groups) for _ in group]
        endings = [
            rows[index][batch.n_shared[owner] :]
            for index, owner in zip(indices, owners, strict=True)
        ]
        lengths = [len(ending) - 1 for ending in endings]
        found = []
        for part in pack_endings(lengths, max(batch.n_shared), self.batch_tokens):
            own = torch.tensor([owners[i] for i in part])
            scores = self._score_padded(
                [endings[i] for i in part],
                [n_scored[indices[i]] for i in part],
                before=last_states[own.to(last_states.device)],
                **prefix.inputs(own, lengths[part[0]]),
            )
            found += zip([indices[i] for i in part], *scores, strict=True)
        return found

    # Shapes: B rows, T input tokens of the longest, N scored tokens of the batch, C channels,
    # V vocabulary entries.
    @torch.no_grad()  # what a sharded model gathers in inference mode, it cannot train with
    def _shared_prefix(self, beginnings: list[np.ndarray]) -> tuple[SharedPrefix, torch.Tensor]:
        """Keys and values of rows, and what the head sees after the last id of each, (B, C)."""
        lengths = torch.tensor([len(beginning) for beginning in beginnings])
        cache = DynamicCache()  # without a config, so that sliding windows are kept whole
        input_ids = self._checked(padded(beginnings))
        states = self._hidden_states(input_ids, past_key_values=cache, use_cache=True)
        last = states[torch.arange(len(states)), (lengths - 1).to(states.device)]
        return SharedPrefix(cache, lengths, self.context_tokens), last

    @torch.no_grad()
    def _score_padded(
        self,
        rows: list[np.ndarray],
        n_scored: list[int],
        *,
        before: torch.Tensor | None = None,
        **inputs: Any,
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Nats and argmax flags of the last `n_scored` ids of each row, from one forward pass.

        Args:
            rows: token ids; the last of each is not put in.
            n_scored: of each row, at most its ids, or one less where nothing comes before.
            before: (B, C), what the head sees before the first id of each row, if it is known.
            inputs: of the forward pass beside the token ids.
        """
        input_ids = self._checked(padded([row[:-1] for row in rows]))
        states = [] if before is None else [before[:, None]]
        if input_ids.shape[1] > 0:
            states.append(self._hidden_states(input_ids, **inputs))
        hidden_states = torch.cat(states, dim=1)  # row b's id after state t is predicted by it
        ends = [len(row) - (before is None) for row in rows]
        positions = np.concatenate(
            [
                row * hidden_states.shape[1] + np.arange(end - n, end)
                for row, (end, n) in enumerate(zip(ends, n_scored, strict=True))
            ]
        )
        targets = self._checked(
            np.concatenate([row[-n:] for row, n in zip(rows, n_scored, strict=True)])
        )
        hidden_states = hidden_states.flatten(0, 1)
        device = hidden_states.device
        nats, greedy = score_tokens(
            self._logits_of,
            hidden_states[torch.from_numpy(positions).to(device)],
            targets.to(device),
        )
        splits = np.cumsum(n_scored)[:-1]
        return np.split(nats, splits), np.split(greedy, splits)

    def _sharing(self) -> Sharing:
        """Which beginnings one cache may hold, as a few tokens show."""
        if self._known_sharing is None:
            self._known_sharing = "none"
            window = smallest_window(self.model.config.get_text_config())
            n_tokens = PROBE_TOKENS
            if window is not None and window <= LONGEST_PROBED_WINDOW:
                n_tokens = max(PROBE_TOKENS, 2 * window + 2)
            half = min(n_tokens, self.context_tokens) // 2
            # A window is counted over the padding between a beginning and the rest of its row.
            if window is None and self._broken_continuation([half, half - 1]) is None:
                self._known_sharing = "any"
            elif (found := self._broken_continuation([half, half])) is None:
                self._known_sharing = "equal"
            else:
                logger.warning(
                    "%s: expected a model that continues from a DynamicCache, found %s; each row "
                    "is computed whole, which takes several times longer",
                    type(self.model).__name__,
                    found,
                )
        return self._known_sharing

    @torch.no_grad()
    def _broken_continuation(self, bounds: list[int]) -> str | None:
        """What happens to rows cut at `bounds` after their cache; None if what should happen."""
        row = np.arange(2 * max(bounds)) % self._n_embeddings
        try:
            expected = self._hidden_states(self._checked(row[None]))[0].float()
            prefix, _ = self._shared_prefix([row[:bound] for bound in bounds])
            endings = self._checked(padded([row[bound:] for bound in bounds]))
            inputs = prefix.inputs(torch.arange(len(bounds)), endings.shape[1])
            found = self._hidden_states(endings, **inputs).float()
        except Exception as error:  # of any kind, from whatever the model is
            return named(error)
        is_same = all(
            self._is_close(expected[bound:], states[: len(row) - bound])
            for bound, states in zip(bounds, found, strict=True)
        )
        return None if is_same else "other hidden states"
