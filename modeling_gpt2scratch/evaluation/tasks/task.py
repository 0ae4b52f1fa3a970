"""What a task is, and what it finds: estimates with standard errors.

A task is one file with one class that satisfies `Task`, and a line in `registry.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from .samples import SampleData, Selection

if TYPE_CHECKING:  # torch comes with it, and a command line needs none
    from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer, ContinuationScores


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error, None where one sample alone gives none.

    The number is finite, or infinite for a perplexity beyond what a float can hold. Then `nats`, of
    which it is the exponential, says how large it is, and there is no standard error.

    Numbers of numpy become Python's, which JSON can hold.

    Raises:
        ValueError: for what is no number, or not a finite one, with that one exception.
    """

    value: float
    stderr: float | None
    nats: float | None = None

    def __post_init__(self) -> None:
        for name in ("value", "stderr", "nats"):
            number = getattr(self, name)
            if number is None and name != "value":
                continue
            if isinstance(number, str) or not hasattr(number, "__float__"):
                raise ValueError(f"expected a number as {name} of an Estimate, found {number!r}")
            object.__setattr__(self, name, float(number))
        is_told = self.value == math.inf and self.stderr is None and self.nats is not None
        if not (math.isfinite(self.value) or is_told) or not math.isfinite(self.stderr or 0.0):
            raise ValueError(f"expected a finite estimate, found {self.value} ± {self.stderr}")


def ratio_estimate(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Sum of `numerators` over sum of `denominators`, with the delta method's standard error.

    The pairs are the independent samples. With denominators of 1 this is the mean and the usual
    standard error of a mean; for 0/1 numerators that is sqrt(p (1 - p) / (n - 1)).

    Raises:
        ValueError: if the denominators are not above 0 in total, or the ratio is not finite.
    """
    y, x = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if x.sum() <= 0:
        raise ValueError(f"expected a positive total to divide by, found {x.sum()}")
    ratio = float(y.sum() / x.sum())
    if len(y) < 2:
        return Estimate(ratio, None)
    residual_variance = np.square(y - ratio * x).sum() / (len(y) - 1)
    return Estimate(ratio, float(np.sqrt(len(y) * residual_variance) / x.sum()))


def mean_estimate(samples: Sequence[float]) -> Estimate:
    """The mean of independent samples, as `ratio_estimate` with denominators of 1."""
    return ratio_estimate(samples, np.ones(len(samples)))


def perplexity_estimate(mean_nats: Estimate) -> Estimate:
    """exp of a mean in nats; by the delta method its standard error grows by the same factor."""
    try:
        value = math.exp(mean_nats.value)
    except OverflowError:
        return Estimate(math.inf, None, nats=mean_nats.value)
    stderr = None if mean_nats.stderr is None else value * mean_nats.stderr
    return Estimate(value, stderr if math.isfinite(stderr or 0.0) else None)


@dataclass(frozen=True)
class TaskResult:
    """What one model scored: an estimate for each of the task's metrics.

    `details` holds further counts (tokens, bytes) for the results file. `samples` holds for each
    metric one float64 per sample, in the order of the data: 1 or 0 for right or wrong, the nats of
    the sample (not divided by anything) for a loss or a perplexity; nan where the protocol leaves
    the sample out. Two models' results of the same data can be compared sample by sample.
    `responses`, of a task with answers to choose from, is for the log of the samples: for each
    sample the log-likelihood of each answer in nats, and whether each of its tokens is the argmax;
    nothing for a sample that was left out.

    Raises:
        ValueError: for an estimate that is no `Estimate`, samples that are no list of numbers, or a
            detail that is neither a finite number nor a text.
    """

    n_samples: int
    estimates: dict[str, Estimate]
    details: dict[str, float] = field(default_factory=dict)
    samples: dict[str, np.ndarray] = field(default_factory=dict)
    responses: Sequence[Sequence[tuple[float, bool]]] = ()

    def __post_init__(self) -> None:
        for name, estimate in self.estimates.items():
            if not isinstance(estimate, Estimate):
                raise ValueError(
                    f"estimates: expected an Estimate for {name}, found {estimate!r}; write "
                    f"Estimate(value, stderr)"
                )
        samples = {name: _as_samples(name, values) for name, values in self.samples.items()}
        object.__setattr__(self, "samples", samples)
        object.__setattr__(self, "responses", _as_responses(self.responses))
        object.__setattr__(self, "n_samples", int(self.n_samples))
        details = {n: v.item() if isinstance(v, np.generic) else v for n, v in self.details.items()}
        object.__setattr__(self, "details", details)
        for name, value in details.items():
            is_number = isinstance(value, int | float) and math.isfinite(value)
            if not (is_number or isinstance(value, str)):  # results are JSON
                raise ValueError(f"details: expected a number for {name}, found {value!r}")

    @property
    def n_read(self) -> int:
        """Samples that were read, of which a protocol may leave some out."""
        return max(map(len, self.samples.values()), default=self.n_samples)


class Task(Protocol):
    """Data read once, evaluated on each model in turn."""

    protocol: ClassVar[str]  # with `version` it says exactly what was measured
    version: ClassVar[int]  # raised whenever the same model would score differently
    samples: ClassVar[str]  # what `--limit` counts, in the plural
    metrics: ClassVar[dict[str, bool]]  # name -> whether higher is better, in printing order
    data: ClassVar[SampleData]  # where the samples are, if nobody names another place
    sha256: str  # of the data, as the task's file defines it

    @classmethod
    def load(cls, selection: Selection) -> Task:
        """The task with its data read and checked."""
        ...

    def evaluate(self, scorer: CausalScorer) -> TaskResult:
        """The model's estimates of every metric."""
        ...


def result_of(task: Task, scorer: CausalScorer) -> TaskResult:
    """What a task finds of a model, and in `details` how many scored tokens are `n_unknown`.

    Raises:
        ValueError: for anything but a `TaskResult`, which a task of one's own may return, or an
            estimate of something that is none of the task's metrics.
    """
    scorer.n_unknown = 0
    result = task.evaluate(scorer)
    if not isinstance(result, TaskResult):
        raise ValueError(
            f"expected a TaskResult from evaluate of {type(task).__name__}, found "
            f"{type(result).__name__}; return TaskResult(n_samples, estimates)"
        )
    if unknown := [name for name in result.estimates if name not in task.metrics]:
        raise ValueError(
            f"expected estimates of {', '.join(task.metrics)}, found {unknown[0]}; add it to "
            f"metrics of {type(task).__name__}"
        )
    if scorer.n_unknown:
        result.details["n_unknown"] = scorer.n_unknown
    return result


def responses_of(
    scores: ContinuationScores, n_answers: Sequence[int]
) -> list[list[tuple[float, bool]]]:
    """The scores of all answers, one after the other, by question."""
    ends = np.cumsum(n_answers, dtype=np.int64)
    pairs = list(zip(scores.log_probs.tolist(), scores.is_greedy.tolist(), strict=True))
    return [pairs[end - n : end] for end, n in zip(ends, n_answers, strict=True)]


def n_truncated_of(scores: ContinuationScores, n_answers: Sequence[int]) -> int:
    """Of the scores of all answers, one after the other, questions whose context lost tokens."""
    by_question = np.split(scores.is_truncated, np.cumsum(n_answers, dtype=np.int64)[:-1])
    return sum(bool(flags.any()) for flags in by_question)


def _as_responses(responses: Any) -> list[list[tuple[float, bool]]]:
    """Log-likelihood of each answer and whether it is the argmax, in Python's own types."""
    try:
        return [[(float(total), bool(greedy)) for total, greedy in one] for one in responses]
    except (TypeError, ValueError):
        raise ValueError(
            "responses: expected a log-likelihood and a bool for each answer of each sample, found "
            "something else"
        ) from None


def _as_samples(name: str, values: Sequence[float]) -> np.ndarray:
    """The values of a metric as float64, one for each sample."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        array = None
    if array is None or array.ndim != 1:
        raise ValueError(f"samples: expected one number of {name} for each, found {values!r:.80}")
    return array
