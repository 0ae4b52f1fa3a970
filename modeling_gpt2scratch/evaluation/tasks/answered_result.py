"""The result of questions with a few answers each, and what the model said of each answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modeling_gpt2scratch.evaluation.scoring.scorer import ContinuationScores, TaskResult


@dataclass(frozen=True)
class AnsweredResult(TaskResult):
    """As `TaskResult`, for the log of the samples.

    `responses` holds for each sample the log-likelihood of each answer in nats, and whether each of
    its tokens is the argmax; nothing for a sample that was left out.
    """

    responses: Sequence[Sequence[tuple[float, bool]]] = ()


def responses_of(
    scores: ContinuationScores, n_answers: Sequence[int]
) -> list[list[tuple[float, bool]]]:
    """The scores of all answers, one after the other, by question.

    Args:
        scores: from `score_choices`.
        n_answers: of each question.
    """
    ends = np.cumsum(n_answers, dtype=np.int64)
    pairs = list(zip(scores.log_probs.tolist(), scores.is_greedy.tolist(), strict=True))
    return [pairs[end - n : end] for end, n in zip(ends, n_answers, strict=True)]
