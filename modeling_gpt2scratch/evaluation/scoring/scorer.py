"""Log-likelihoods under any causal language model of transformers, and the interface of a task.

A task is one file with one class that satisfies `Task`, and one line in `TASKS` of `compare.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .encoding import context_length, encode_pairs
from .row_scorer import RowScorer

if TYPE_CHECKING:
    from modeling_gpt2scratch.evaluation.compare import CompareConfig


@dataclass(frozen=True)
class Estimate:
    """A finite number and its standard error, None where one sample alone gives none."""

    value: float
    stderr: float | None

    def __post_init__(self) -> None:
        if not math.isfinite(self.value) or not math.isfinite(self.stderr or 0.0):
            raise ValueError(f"expected a finite estimate, found {self.value} ± {self.stderr}")


def ratio_estimate(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Sum of `numerators` over sum of `denominators`, with the delta method's standard error.

    The pairs are the independent samples. With denominators of 1 this is the mean and the usual
    standard error of a mean; for 0/1 numerators that is sqrt(p (1 - p) / (n - 1)).
    """
    y, x = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if x.sum() <= 0:
        raise ValueError(f"expected a positive total to divide by, found {x.sum()}")
    ratio = float(y.sum() / x.sum())
    if len(y) < 2:
        return Estimate(ratio, None)
    residual_variance = np.square(y - ratio * x).sum() / (len(y) - 1)
    return Estimate(ratio, float(np.sqrt(len(y) * residual_variance) / x.sum()))


def perplexity_estimate(mean_nats: Estimate) -> Estimate:
    """exp of a mean in nats; by the delta method its standard error grows by the same factor."""
    value = math.exp(mean_nats.value)
    return Estimate(value, None if mean_nats.stderr is None else value * mean_nats.stderr)


@dataclass(frozen=True)
class TaskResult:
    """What one model scored: an estimate for each of the task's metrics.

    `details` holds further counts (tokens, bytes) for the results file. `samples` holds for each
    metric one float64 per sample, in the order of the data: 1 or 0 for right or wrong, the nats of
    the sample (not divided by anything) for a loss or a perplexity; nan where the protocol leaves
    the sample out. Two models' results of the same data can be compared sample by sample.
    """

    n_samples: int
    estimates: dict[str, Estimate]
    details: dict[str, float] = field(default_factory=dict)
    samples: dict[str, np.ndarray] = field(default_factory=dict)


class Task(Protocol):
    """Data read once, evaluated on each model in turn."""

    protocol: ClassVar[str]  # with `version` it says exactly what was measured
    version: ClassVar[int]  # raised whenever the same model would score differently
    samples: ClassVar[str]  # what `--limit` counts, in the plural
    metrics: ClassVar[dict[str, bool]]  # name -> whether higher is better, in printing order
    sha256: str  # of the data, as the task's file defines it

    @classmethod
    def from_config(cls, config: CompareConfig) -> Task:
        """The task with its data read and checked."""
        ...

    def evaluate(self, scorer: CausalScorer) -> TaskResult:
        """The model's estimates of every metric."""
        ...


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

    @property
    def planned_tokens(self) -> int:
        """`batch_tokens` before memory ran out: batches made for it are alike on all processes."""
        return self._planned_tokens

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

        The scores of `score_continuations` for less work: what the inputs of one context's
        continuations have in common passes through the model once. An input longer than the model's
        context takes its leftmost tokens from all inputs of its context, so that the continuations
        are compared after the same words.

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
        log_probs, is_greedy = self._score_rows(rows, n_scored, groups, description)
        return ContinuationScores(log_probs, is_greedy, n_scored, is_truncated)


def cut_windows(token_ids: np.ndarray, window_tokens: int) -> list[np.ndarray]:
    """Views of `window_tokens + 1` ids that share one id with the next, the partial tail dropped.

    So each window has `window_tokens` inputs and as many targets, and no id is a target twice: a
    training loop's cut. A stream shorter than one window is one shorter window.

    Raises:
        ValueError: for a stream of fewer than 2 ids, which has no target.
    """
    if len(token_ids) < 2:
        raise ValueError(f"expected a stream of at least 2 tokens, found {len(token_ids)}")
    n_windows = (len(token_ids) - 1) // window_tokens
    if n_windows == 0:
        return [token_ids]
    starts = range(0, n_windows * window_tokens, window_tokens)
    return [token_ids[start : start + window_tokens + 1] for start in starts]
