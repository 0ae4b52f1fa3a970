"""Log-likelihoods of texts under any causal language model of transformers.

The numbers are those of lm-evaluation-harness for less work: rows are packed longest first into
batches of a budget of padded tokens, what rows have in common is computed once, and the
language-model head, which for GPT-2 small is a third of the arithmetic and most of the memory, runs
only where a token is scored.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_gpt2scratch.common.console import progress_bar
from modeling_gpt2scratch.common.errors import named
from modeling_gpt2scratch.data.tokens.lost_text import unknown_token

from .batching import RowBatch, join_rows, plan_batches
from .causal_model import CausalModel, n_reserved_positions
from .encoding import context_length, encode_pairs
from .token_scores import score_tokens
from .token_tree import TokenTree, layers_without_mask, smallest_window, tree_inputs

logger = logging.getLogger(__name__)
# Where `batch_tokens` "auto" begins. On a CPU more is slower: rows of one batch differ more in
# length, and its arrays leave the cache. Apple's devices take memory from everybody else.
AUTO_BATCH_TOKENS = 32768
FEWER_BATCH_TOKENS = {"cpu": 1024, "mps": 1024}
BRANCH_TOKENS = 2  # after a branch, where a convolution that ignores the mask shows most
TREE_PROBE_TOKENS = 256  # of a row; two branches are then nearly as far apart as in real trees
# Of a tree of rows, where a row itself is not longer: its mask grows with the square.
MOST_TREE_TOKENS = 1024
Portion = TypeVar("Portion")
Row = TypeVar("Row")


@dataclass(frozen=True)
class ContinuationScores:
    """One entry for each (context, continuation) pair, in the order given."""

    log_probs: np.ndarray  # float64, nats, summed over the tokens of the continuation
    is_greedy: np.ndarray  # bool, whether every token of the continuation is the argmax
    n_tokens: np.ndarray  # int64, tokens of the continuation
    is_truncated: np.ndarray  # bool, whether the context lost tokens


class CausalScorer(CausalModel):
    """A causal language model with its tokenizer, ready to score text.

    Args:
        batch_tokens: padded input tokens of one forward pass; a longer row is a batch of its own.
            Whenever the device has not enough memory, the number is halved. "auto" begins with
            `AUTO_BATCH_TOKENS`, or fewer on some devices.

    Raises:
        ValueError: as in `CausalModel`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_tokens: int | Literal["auto"],
    ) -> None:
        context_tokens = context_length(model.config, tokenizer) - n_reserved_positions(model)
        super().__init__(model, context_tokens=context_tokens)
        self.tokenizer = tokenizer
        if batch_tokens == "auto":
            batch_tokens = FEWER_BATCH_TOKENS.get(model.device.type, AUTO_BATCH_TOKENS)
        self.batch_tokens = batch_tokens
        # What batches are made for. It stays as it is, so that several processes make the same.
        self.planned_tokens = batch_tokens
        self._takes_trees: bool | None = None  # not tried yet
        self._unknown_token = unknown_token(tokenizer)
        self.n_unknown = 0  # scored tokens, since somebody set it to 0, that are this one

    def score_continuations(
        self, pairs: Sequence[tuple[str, str]], *, description: str = "continuations"
    ) -> ContinuationScores:
        """Log-likelihood of each continuation after its context, as lm-evaluation-harness has it.

        Nothing is added but what the tokenizer adds of itself, for many models a beginning-of-text
        token. An input longer than the model's context loses its leftmost tokens.

        Raises:
            ValueError: for a continuation with no token of its own, or longer than the context.
        """
        contexts = [context for context, _ in pairs]
        choices = [[continuation] for _, continuation in pairs]
        return self.score_choices(contexts, choices, description=description)

    def score_choices(
        self,
        contexts: Sequence[str],
        choices: Sequence[Sequence[str]],
        *,
        description: str = "choices",
    ) -> ContinuationScores:
        """Log-likelihood of each of several continuations after each context, one after the other.

        The scores of `score_continuations`, but an input longer than the model's context takes its
        leftmost tokens from all inputs of its context, so that the continuations are compared after
        the same words.

        Raises:
            ValueError: for a continuation with no token of its own, or longer than the context.
        """
        pairs = [(c, choice) for c, own in zip(contexts, choices, strict=True) for choice in own]
        encoded = list(encode_pairs(self.tokenizer, pairs))
        for (_, continuation), (_, continuation_ids) in zip(pairs, encoded, strict=True):
            if not 0 < len(continuation_ids) <= self.context_tokens:
                raise ValueError(
                    f"expected a continuation of 1 to {self.context_tokens} tokens, found "
                    f"{len(continuation_ids)} in {continuation!r:.80}; leave the task out for this "
                    f"model"
                )
        n_scored = np.array([len(continuation) for _, continuation in encoded], dtype=np.int64)
        ends = np.cumsum([len(own) for own in choices], dtype=np.int64)
        groups = [range(end - len(own), end) for end, own in zip(ends, choices, strict=True)]
        rows, is_truncated = [], np.zeros(len(pairs), dtype=bool)
        for group in groups:
            whole = [np.array([*encoded[i][0], *encoded[i][1]], dtype=np.int64) for i in group]
            n_dropped = max([0, *(len(row) - self.context_tokens - 1 for row in whole)])
            rows += [row[n_dropped:] for row in whole]
            is_truncated[group] = n_dropped > 0
        log_probs, is_greedy = self._score_rows(rows, n_scored, description)
        return ContinuationScores(log_probs, is_greedy, n_scored, is_truncated)

    def score_windows(
        self, windows: Sequence[np.ndarray], *, description: str = "windows"
    ) -> Iterator[tuple[int, np.ndarray]]:
        """For each window of L + 1 token ids its index and the (L,) nats of all but the first id.

        Longest window first, so windows of one length come in the order given.
        """
        lengths = [len(window) - 1 for window in windows]
        batches = (
            batch
            for own in self._alike(lengths)
            for batch in plan_batches(
                [[index] for index in own], [lengths[index] for index in own], self.planned_tokens
            )
        )
        for index, nats, _ in self._score_tails(batches, windows, lengths, description):
            yield index, nats

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
        """
        with progress_bar(total=n_rows, desc=description, unit="row") as bar:
            for batch in batches:
                for found in compute(batch):
                    yield found
                    bar.update()

    def count_unknown(self, scored: Iterable[np.ndarray]) -> None:
        """Adds to `n_unknown` how many of the ids, which are to be scored, are the unknown token.

        Who scores tokens elsewhere says so here.
        """
        if self._unknown_token is not None:
            found = (np.count_nonzero(ids == self._unknown_token) for ids in scored)
            self.n_unknown += int(sum(found))

    def halve_batch_tokens(self) -> None:
        """Halves `batch_tokens` after a forward pass for which the device lacked the memory.

        Call it after the `except` block: until then the exception keeps the pass's tensors alive.
        """
        self.batch_tokens //= 2
        clear_device_cache()
        logger.warning(
            "The device is out of memory; forward passes have %d tokens now", self.batch_tokens
        )

    def _score_rows(
        self, rows: Sequence[np.ndarray], n_scored: Sequence[int], description: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probability of the last `n_scored` ids of each row, and whether all are argmax."""
        log_probs, is_greedy = np.zeros(len(rows)), np.zeros(len(rows), dtype=bool)
        batches = self._plan(rows)
        for index, nats, greedy in self._score_tails(batches, rows, n_scored, description):
            log_probs[index] = -nats.sum(dtype=np.float64)
            is_greedy[index] = greedy.all()
        return log_probs, is_greedy

    def _plan(self, rows: Sequence[np.ndarray]) -> Iterator[RowBatch]:
        """The batches of all rows, those that begin alike together."""
        inputs = [row[:-1] for row in rows]
        for own in self._alike(list(map(len, inputs))):
            trees, lengths = join_rows(
                [inputs[index] for index in own],
                most_tokens=min(self.planned_tokens, self._most_tree_tokens),
                n_channels=self.model.get_input_embeddings().weight.shape[1],
            )
            trees = [[own[place] for place in tree] for tree in trees]
            if len(trees) < len(own) and not self._can_join():
                trees, lengths = [[index] for index in own], [len(inputs[index]) for index in own]
            yield from plan_batches(trees, lengths, self.planned_tokens)

    def _alike(self, lengths: Sequence[int]) -> list[list[int]]:
        """The indices of rows that may pass together: of those of many tokens, and of the others.

        Where `longrope` has other factors for many tokens, it takes them for a whole batch.
        """
        limit = self._short_rope_tokens
        is_long = [limit is not None and length > limit for length in lengths]
        own = [[i for i, long in enumerate(is_long) if long == side] for side in (True, False)]
        return [indices for indices in own if indices]

    def _score_tails(
        self,
        batches: Iterable[RowBatch],
        rows: Sequence[np.ndarray],
        n_scored: Sequence[int],
        description: str,
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Index, nats and argmax flags of the last `n_scored[index]` ids of each row."""
        self.count_unknown(row[len(row) - n :] for row, n in zip(rows, n_scored, strict=True))
        return self.compute_rows(
            batches,
            lambda batch: self._score_batch(batch, rows, n_scored),
            n_rows=len(rows),
            description=description,
        )

    def _score_batch(
        self, batch: RowBatch, rows: Sequence[np.ndarray], n_scored: Sequence[int]
    ) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Index, nats and argmax flags of each row; in halves where the device lacks the memory."""
        trees = self._trees_of(batch, rows)
        longest = max(map(len, trees))
        while len(batch.rows) == 1 or longest * len(trees) <= self.batch_tokens:
            try:
                return self._score_whole_batch(batch, trees, rows, n_scored)
            except RuntimeError as error:
                is_smallest = len(batch.rows) == 1 and self.batch_tokens < longest
                if is_smallest or not should_reduce_batch_size(error):
                    raise
            self.halve_batch_tokens()
        return [s for half in batch.halves() for s in self._score_batch(half, rows, n_scored)]

    def _trees_of(self, batch: RowBatch, rows: Sequence[np.ndarray]) -> list[TokenTree]:
        """The input ids of a batch's rows."""
        return [TokenTree([rows[index][:-1] for index in tree]) for tree in batch.trees]

    # Shapes: B trees, T input tokens of the longest, N places where a token is scored, M scores,
    # C channels, V vocabulary entries.
    @torch.no_grad()  # what a sharded model gathers in inference mode, it cannot train with
    def _score_whole_batch(
        self,
        batch: RowBatch,
        trees: Sequence[TokenTree],
        rows: Sequence[np.ndarray],
        n_scored: Sequence[int],
    ) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Index, nats and argmax flags of each row, from one forward pass."""
        hidden_states = self._states_of(trees)
        places, sizes = [], [n_scored[index] for index in batch.rows]
        for number, tree in enumerate(trees):
            for path in tree.paths:
                n = sizes[len(places)]
                places.append(number * hidden_states.shape[1] + path[len(path) - n :])
        targets = np.concatenate(
            [rows[index][-n:] for index, n in zip(batch.rows, sizes, strict=True)]
        )
        self._checked(targets)
        # Rows that begin alike have the same scores there, and several tokens may follow one place.
        pairs = np.concatenate(places) * self._n_embeddings + targets
        pairs, own = np.unique(pairs, return_inverse=True)
        following, targets = np.divmod(pairs, self._n_embeddings)  # (M,)
        scored_at, sources = np.unique(following, return_inverse=True)  # (N,), (M,)
        device = hidden_states.device
        nats, greedy = score_tokens(
            self._logits_of,
            hidden_states.flatten(0, 1)[torch.from_numpy(scored_at).to(device)],
            torch.from_numpy(sources).to(device),
            torch.from_numpy(targets).to(device),
        )
        splits = np.cumsum(sizes)[:-1]
        return list(
            zip(batch.rows, np.split(nats[own], splits), np.split(greedy[own], splits), strict=True)
        )

    def _states_of(self, trees: Sequence[TokenTree]) -> torch.Tensor:
        """What the head sees of each token of the trees, (B, T, C)."""
        # Zeros on the right need no mask: no token that counts looks that way.
        token_ids = pad_sequence([self._checked(t.token_ids) for t in trees], batch_first=True)
        # transformers' own masks are of these types.
        is_sdpa = self.model.config._attn_implementation == "sdpa"
        dtype = torch.bool if is_sdpa else self.model.dtype
        inputs = tree_inputs(trees, dtype=dtype, device=self.model.device)
        return self._hidden_states(token_ids, **inputs)

    @property
    def _most_tree_tokens(self) -> int:
        """Of a tree; in one beyond a window of attention, tokens would see more than in a row."""
        window = smallest_window(self.model.config.get_text_config())
        return window or max(MOST_TREE_TOKENS, self.context_tokens)

    def _can_join(self) -> bool:
        """Whether the model takes rows that begin alike as a tree, as a few tokens show."""
        if self._takes_trees is None:
            found = self._broken_tree()
            self._takes_trees = found is None
            if found is not None:
                logger.warning(
                    "%s: expected a model that takes a mask of (B, 1, T, T), found %s; rows that "
                    "begin alike are computed whole, which takes several times longer",
                    type(self.model).__name__,
                    found,
                )
        return self._takes_trees

    @torch.no_grad()
    def _broken_tree(self) -> str | None:
        """What happens to two rows in a tree; None if what should happen."""
        if kind := layers_without_mask(self.model.config.get_text_config()):
            return f"layers of {kind}"
        n_tokens = min(TREE_PROBE_TOKENS, self.context_tokens, max(1, self._most_tree_tokens // 2))
        first, second = np.random.default_rng(0).integers(0, self._n_embeddings, (2, n_tokens))
        second[: n_tokens // 4] = first[: n_tokens // 4]
        try:
            expected = [self._states_of([TokenTree([row])])[0].float() for row in (first, second)]
            tree = TokenTree([first, second])
            (states,) = self._states_of([tree]).float()
        except Exception as error:  # of any kind, from whatever the model is
            return named(error)
        found = [states[torch.from_numpy(path).to(states.device)] for path in tree.paths]
        # Of each token against its own size, for some are a hundred times larger than others.
        errors = [
            (own - other).norm(dim=-1) / own.norm(dim=-1)
            for own, other in zip(expected, found, strict=True)
        ]
        # One of these few may ask other experts of a mixture, for a mere rounding error.
        after_branch = errors[1][n_tokens // 4 :][:BRANCH_TOKENS].min()
        is_same = max(torch.cat(errors).mean(), after_branch) <= self._tolerance
        return None if is_same else "other hidden states"
