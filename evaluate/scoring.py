"""Log-likelihoods under any causal language model of transformers, and the interface of a task.

The scorer gives the numbers of lm-evaluation-harness for less work: rows are packed longest first
into batches of a fixed number of padded tokens, and the language-model head, which for GPT-2 small
is a third of the arithmetic and most of the memory, runs only where a token is scored.

A task is one file with one class that satisfies `Task`, and one line in `TASKS` of `compare.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

if TYPE_CHECKING:
    from compare import CompareConfig

# Positions that pass through the head together. 128 rows of 50,257 float32 logits are 26 MB, which
# malloc can reuse; for arrays above 32 MB glibc asks the kernel for fresh pages every time.
HEAD_ROWS = 128
PROBE_TOKENS = 8


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
    the sample (not divided by anything) for a loss or a perplexity. Two models' results of the same
    data can be compared sample by sample.
    """

    n_samples: int
    estimates: dict[str, Estimate]
    details: dict[str, int] = field(default_factory=dict)
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


class CausalScorer:
    """A causal language model with its tokenizer, ready to score tokens.

    Args:
        model: any transformers causal LM whose logits are `get_output_embeddings()` applied to the
            last hidden state of `base_model`; a short forward pass checks that. It is switched to
            evaluation mode.
        tokenizer: the model's own.
        batch_tokens: padded input tokens of one forward pass; a longer row is a batch of its own.

    Raises:
        ValueError: for a model without such a head, or without a context length in its config.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_tokens: int
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.context_tokens = context_length(model)
        self._n_embeddings = model.get_input_embeddings().weight.shape[0]
        self._head = model.get_output_embeddings()
        if self._head is None or model.base_model is model:
            raise ValueError(
                f"{type(model).__name__}: expected a base model and get_output_embeddings(), "
                f"found {'no base model' if self._head is not None else 'no output embeddings'}"
            )
        self._check_head()

    def score_continuations(
        self, pairs: Sequence[tuple[str, str]], *, description: str = "continuations"
    ) -> ContinuationScores:
        """Log-likelihood of each continuation after its context, as lm-evaluation-harness has it.

        No beginning-of-text token is added. An input longer than the model's context loses its
        leftmost tokens.

        Raises:
            ValueError: for a continuation with no token of its own, or longer than the context.
        """
        rows, n_scored = [], []
        for context_ids, continuation_ids in encode_pairs(self.tokenizer, pairs):
            if not 0 < len(continuation_ids) <= self.context_tokens:
                raise ValueError(
                    f"pair {pairs[len(rows)]!r}: expected a continuation of 1 to "
                    f"{self.context_tokens} tokens, found {len(continuation_ids)}"
                )
            row = [*context_ids, *continuation_ids][-(self.context_tokens + 1) :]
            rows.append(np.asarray(row, dtype=np.int64))
            n_scored.append(len(continuation_ids))
        log_probs, is_greedy = np.zeros(len(rows)), np.zeros(len(rows), dtype=bool)
        for index, nats, greedy in self._score_tails(rows, n_scored, description):
            log_probs[index] = -nats.sum(dtype=np.float64)
            is_greedy[index] = greedy.all()
        return ContinuationScores(log_probs, is_greedy, np.asarray(n_scored, dtype=np.int64))

    def score_windows(
        self, windows: Sequence[np.ndarray], *, description: str = "windows"
    ) -> Iterator[tuple[int, np.ndarray]]:
        """For each window of L + 1 token ids its index and the (L,) nats of all but the first id.

        Longest window first, so windows of one length come in the order given.
        """
        n_scored = [len(window) - 1 for window in windows]
        for index, nats, _ in self._score_tails(windows, n_scored, description):
            yield index, nats

    def _score_tails(
        self, rows: Sequence[np.ndarray], n_scored: Sequence[int], description: str
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Index, nats and argmax flags of the last `n_scored[index]` ids of each row."""
        with tqdm(total=len(rows), desc=description, unit="row", disable=None) as progress:
            for batch in pack_batches([len(row) - 1 for row in rows], self.batch_tokens):
                scores = self._score_batch([rows[i] for i in batch], [n_scored[i] for i in batch])
                yield from zip(batch, *scores, strict=True)
                progress.update(len(batch))

    # Shapes: B rows, T input tokens of the longest, N scored tokens of the batch, C channels,
    # V vocabulary entries.
    @torch.no_grad()  # what a sharded model gathers in inference mode, it cannot train with
    def _score_batch(
        self, rows: list[np.ndarray], n_scored: list[int]
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
        targets = np.concatenate([row[-n:] for row, n in zip(rows, n_scored, strict=True)])
        largest_id = max(input_ids.max(), targets.max())
        if largest_id >= self._n_embeddings:
            # On CUDA the embedding itself would stop the whole process instead.
            raise ValueError(
                f"expected token ids below the model's {self._n_embeddings} embeddings, "
                f"found {largest_id}: is this the model's tokenizer?"
            )
        hidden_states = self._hidden_states(torch.from_numpy(input_ids)).flatten(0, 1)  # (B * T, C)
        device = hidden_states.device
        nats, greedy = self._score_positions(
            hidden_states[torch.from_numpy(positions).to(device)],
            torch.from_numpy(targets.astype(np.int64)).to(device),
        )
        if not np.isfinite(nats).all():
            raise ValueError(
                f"{(~np.isfinite(nats)).sum()} of {len(nats)} log-probs are not finite"
            )
        splits = np.cumsum(n_scored)[:-1]
        return np.split(nats, splits), np.split(greedy, splits)

    def _hidden_states(self, input_ids: torch.Tensor) -> torch.Tensor:
        """What the head sees: (B, T) -> (B, T, C)."""
        return self.model.base_model(input_ids=input_ids.to(self.model.device), use_cache=False)[0]

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
        tolerance = max(1e-3, 4 * torch.finfo(self.model.dtype).eps) * expected.abs().max()
        if expected.shape != found.shape or (expected - found).abs().max() > tolerance:
            raise ValueError(
                f"{type(self.model).__name__}: expected get_output_embeddings() on the last hidden "
                "state to give the logits, found that the model changes them afterwards"
            )


def context_length(model: PreTrainedModel) -> int:
    """Most input tokens the model accepts, from its config.

    Raises:
        ValueError: if the config holds neither `max_position_embeddings` nor `n_positions`.
    """
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions"):
        if isinstance(value := getattr(config, name, None), int):
            return value
    raise ValueError(
        f"{type(config).__name__}: expected max_position_embeddings or n_positions, found neither"
    )


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids of each (context, continuation), as lm-evaluation-harness splits them.

    Context and continuation are encoded as one text and cut after as many tokens as the context
    has by itself. Spaces at the end of the context count as the continuation's first: byte-level
    tokens begin with their space. An empty context becomes the tokenizer's `bos` or `eos` token.

    Raises:
        ValueError: for a context of white space only, which has no token left.

    Source: `TemplateLM._encode_pair` and `loglikelihood` in lm_eval 0.4.13, `api/model.py`.
    """
    contexts = [context.rstrip() for context, _ in pairs]
    context_ids = _encode(tokenizer, contexts)
    whole_ids = _encode(tokenizer, [context + continuation for context, continuation in pairs])
    for (context, _), before, whole in zip(pairs, context_ids, whole_ids, strict=True):
        if not context:
            bos = tokenizer.bos_token_id
            prefix = tokenizer.eos_token_id if bos is None else bos
            yield ([prefix], whole) if whole[:1] != [prefix] else (whole[:1], whole[1:])
        elif not before:
            raise ValueError(f"expected a context with a token, found {context!r}")
        else:
            yield before, whole[len(before) :]


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


def pack_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of rows, longest first, in batches of at most `batch_tokens` padded tokens.

    Longest first, so that a batch too large for the device fails at once and not hours later.
    Rows of equal length keep their order; a row longer than the budget is alone.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        n_rows = max(1, batch_tokens // lengths[order[start]])
        yield order[start : start + n_rows]
        start += n_rows


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, nothing added; `verbose` would warn of texts over the context."""
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)[
        "input_ids"
    ]
