"""Log-likelihoods of rows of token ids under any causal language model of transformers.

The numbers are those of lm-evaluation-harness for less work: rows are packed longest first into
batches of a budget of padded tokens, what rows have in common is computed once, and the
language-model head, which for GPT-2 small is a third of the arithmetic and most of the memory, runs
only where a token is scored.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from batching import MIN_SHARED_TOKENS, Batch, n_common_tokens, pack_endings, plan_batches
from encoding import context_length
from shared_prefix import shared_cache
from torch.nn import functional as F
from tqdm import tqdm
from transformers import Cache, DynamicCache, PreTrainedModel

logger = logging.getLogger(__name__)
# Positions that pass through the head together. 128 rows of 50,257 float32 logits are 26 MB, which
# malloc can reuse; for arrays above 32 MB glibc asks the kernel for fresh pages every time.
HEAD_ROWS = 128
PROBE_TOKENS = 8
# Where `batch_tokens` "auto" begins, by the device: more gains nothing on a CPU.
AUTO_BATCH_TOKENS = {"cpu": 8192, "cuda": 32768}


class RowScorer:
    """A causal language model, ready to score token ids.

    Args:
        model: any transformers causal LM whose logits are `get_output_embeddings()` applied to the
            last hidden state of `base_model`; a short forward pass checks that. It is switched to
            evaluation mode.
        batch_tokens: padded input tokens of one forward pass; a longer row is a batch of its own.
            Whenever the device has not enough memory, the number is halved. "auto" begins with
            `AUTO_BATCH_TOKENS` of the device.

    Raises:
        ValueError: for a model without such a head, or without a context length in its config.
    """

    def __init__(self, model: PreTrainedModel, *, batch_tokens: int | Literal["auto"]) -> None:
        self.model = model.eval()
        if batch_tokens == "auto":
            batch_tokens = AUTO_BATCH_TOKENS.get(model.device.type, AUTO_BATCH_TOKENS["cpu"])
        self.batch_tokens = batch_tokens
        # What batches are made for. It stays as it is, so that several processes make the same.
        self._planned_tokens = batch_tokens
        self.context_tokens = context_length(model)
        self._n_embeddings = model.get_input_embeddings().weight.shape[0]
        self._shares_cache: bool | None = None  # not tried yet
        self._head = model.get_output_embeddings()
        if self._head is None or model.base_model is model:
            raise ValueError(
                f"{type(model).__name__}: expected a base model and get_output_embeddings(), "
                f"found {'no base model' if self._head is not None else 'no output embeddings'}"
            )
        self._check_head()

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
        with tqdm(total=len(rows), desc=description, unit="row", disable=None) as progress:
            for batch in self._plan(rows, n_scored, groups):
                for scores in self._score_batch(batch, rows, n_scored):
                    yield scores
                    progress.update()

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
        if any(n >= MIN_SHARED_TOKENS for n in n_shared) and not self._takes_shared_cache():
            n_shared = [0] * len(groups)
        return plan_batches([len(row) - 1 for row in rows], groups, n_shared, self._planned_tokens)

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
        if not batch.n_shared:
            scores = self._score_padded(
                [rows[index] for index in batch.rows], [n_scored[index] for index in batch.rows]
            )
            return list(zip(batch.rows, *scores, strict=True))
        beginnings = self._cache_of([rows[group[0]][: batch.n_shared] for group in batch.groups])
        indices = batch.rows
        owners = [owner for owner, group in enumerate(batch.groups) for _ in group]
        endings = [rows[index][batch.n_shared :] for index in indices]
        lengths = [len(ending) - 1 for ending in endings]
        found = []
        for part in pack_endings(lengths, batch.n_shared, self.batch_tokens):
            scores = self._score_padded(
                [endings[i] for i in part],
                [n_scored[indices[i]] for i in part],
                shared_cache(beginnings, torch.tensor([owners[i] for i in part])),
            )
            found += zip([indices[i] for i in part], *scores, strict=True)
        return found

    # Shapes: B rows, T input tokens of the longest, N scored tokens of the batch, C channels,
    # V vocabulary entries.
    @torch.no_grad()  # what a sharded model gathers in inference mode, it cannot train with
    def _cache_of(self, beginnings: list[np.ndarray]) -> Cache:
        """Keys and values of rows of one length."""
        cache = DynamicCache()  # without a config, so that sliding windows are kept whole
        self._hidden_states(self._checked(np.stack(beginnings)), cache)
        return cache

    @torch.no_grad()
    def _score_padded(
        self, rows: list[np.ndarray], n_scored: list[int], cache: Cache | None = None
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Nats and argmax flags of the last `n_scored` ids of each row, from one forward pass."""
        lengths = [len(row) - 1 for row in rows]
        # Padding on the right needs no mask: no scored position looks that way.
        input_ids = np.zeros((len(rows), max(lengths)), dtype=np.int64)
        for padded, row, length in zip(input_ids, rows, lengths, strict=True):
            padded[:length] = row[:-1]
        starts = np.arange(len(rows)) * max(lengths)
        positions = np.concatenate(
            [
                start + np.arange(length - n, length)
                for start, length, n in zip(starts, lengths, n_scored, strict=True)
            ]
        )
        targets = self._checked(
            np.concatenate([row[-n:] for row, n in zip(rows, n_scored, strict=True)])
        )
        hidden_states = self._hidden_states(self._checked(input_ids), cache).flatten(0, 1)
        device = hidden_states.device
        nats, greedy = self._score_positions(
            hidden_states[torch.from_numpy(positions).to(device)], targets.to(device)
        )
        if not np.isfinite(nats).all():
            raise ValueError(
                f"{(~np.isfinite(nats)).sum()} of {len(nats)} log-probs are not finite"
            )
        splits = np.cumsum(n_scored)[:-1]
        return np.split(nats, splits), np.split(greedy, splits)

    def _checked(self, token_ids: np.ndarray) -> torch.Tensor:
        """The ids as int64, each of which has an embedding."""
        if token_ids.max() >= self._n_embeddings:
            # On CUDA the embedding itself would stop the whole process instead.
            raise ValueError(
                f"expected token ids below the model's {self._n_embeddings} embeddings, "
                f"found {token_ids.max()}: is this the model's tokenizer?"
            )
        return torch.from_numpy(token_ids.astype(np.int64))

    def _hidden_states(self, input_ids: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """What the head sees: (B, T) -> (B, T, C)."""
        return self.model.base_model(
            input_ids=input_ids.to(self.model.device),
            past_key_values=cache,
            use_cache=cache is not None,
        )[0]

    def _score_positions(
        self, hidden_states: torch.Tensor, targets: torch.Tensor
    ) -> tuple[np.ndarray, np.ndarray]:
        """Nats (float32) and argmax flags of each target: (N, C), (N,) -> (N,), (N,)."""
        nats, greedy = [], []
        for chunk, chunk_targets in zip(
            hidden_states.split(HEAD_ROWS), targets.split(HEAD_ROWS), strict=True
        ):
            logits = self._head(chunk).float()  # (up to HEAD_ROWS, V)
            nats.append(F.cross_entropy(logits, chunk_targets, reduction="none"))
            greedy.append(logits.argmax(dim=-1) == chunk_targets)
        return torch.cat(nats).cpu().numpy(), torch.cat(greedy).cpu().numpy()

    @torch.no_grad()
    def _check_head(self) -> None:
        """Compare our logits with the model's own, on a few tokens.

        Some architectures scale or cap what the head returns; scored without that they would give
        plausible, wrong numbers.
        """
        n_tokens = min(PROBE_TOKENS, self.context_tokens, self._n_embeddings)
        input_ids = torch.arange(n_tokens, device=self.model.device)[None]
        expected = self.model(input_ids=input_ids, use_cache=False).logits.float()
        found = self._head(self._hidden_states(input_ids)).float()
        if not torch.isfinite(expected).all():
            raise ValueError(f"{type(self.model).__name__}: expected finite logits, found others")
        if not self._is_close(expected, found):
            raise ValueError(
                f"{type(self.model).__name__}: expected get_output_embeddings() on the last hidden "
                "state to give the logits, found that the model changes them afterwards"
            )

    @torch.no_grad()
    def _takes_shared_cache(self) -> bool:
        """Whether rows after a cached beginning have the hidden states of whole rows.

        Some architectures have no such cache. Their rows are computed whole, after one warning.
        """
        if self._shares_cache is None:
            n_tokens = min(PROBE_TOKENS, self.context_tokens, self._n_embeddings)
            rows = np.stack([np.arange(n_tokens), np.arange(n_tokens)[::-1]])
            half = n_tokens // 2
            try:
                expected = self._hidden_states(self._checked(rows))[:, half:].float()
                cache = shared_cache(self._cache_of(list(rows[:, :half])), torch.arange(2))
                found = self._hidden_states(self._checked(rows[:, half:]), cache).float()
                self._shares_cache = self._is_close(expected, found)
            except Exception as error:  # of any kind, from whatever the model is
                logger.debug("no shared cache: %s", error)
                self._shares_cache = False
            if not self._shares_cache:
                logger.warning(
                    "%s: expected a model that continues from a DynamicCache, found that it does "
                    "not; each row is computed whole, which takes several times longer",
                    type(self.model).__name__,
                )
        return self._shares_cache

    def _is_close(self, expected: torch.Tensor, found: torch.Tensor) -> bool:
        """Whether two results of the model differ by no more than its precision explains."""
        if expected.shape != found.shape:
            return False
        tolerance = max(1e-3, 4 * torch.finfo(self.model.dtype).eps) * expected.abs().max()
        return bool((expected - found).abs().max() <= tolerance)
