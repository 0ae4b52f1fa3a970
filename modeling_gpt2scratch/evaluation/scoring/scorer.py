"""Log-likelihoods of texts under any causal language model of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .encoding import context_length, encode_pairs
from .row_scorer import RowScorer


@dataclass(frozen=True)
class ContinuationScores:
    """One entry for each (context, continuation) pair, in the order given."""

    log_probs: np.ndarray  # float64, nats, summed over the tokens of the continuation
    is_greedy: np.ndarray  # bool, whether every token of the continuation is the argmax
    n_tokens: np.ndarray  # int64, tokens of the continuation
    is_truncated: np.ndarray  # bool, whether the context lost tokens


class CausalScorer(RowScorer):
    """A causal language model with its tokenizer, ready to score text.

    Args:
        model: as in `CausalModel`.
        tokenizer: the model's own.
        batch_tokens: as in `RowScorer`.

    Raises:
        ValueError: as in `RowScorer`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_tokens: int | Literal["auto"],
    ) -> None:
        super().__init__(
            model, context_tokens=context_length(model.config, tokenizer), batch_tokens=batch_tokens
        )
        self.tokenizer = tokenizer

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
        for pair, (_, continuation_ids) in zip(pairs, encoded, strict=True):
            if not 0 < len(continuation_ids) <= self.context_tokens:
                raise ValueError(
                    f"pair {pair!r}: expected a continuation of 1 to "
                    f"{self.context_tokens} tokens, found {len(continuation_ids)}"
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
