"""Task `hellaswag`: which of four endings of a scene does the model think most likely?

Protocol `hellaswag` of lm-evaluation-harness (its version 1.0): the 10,042 questions of the
validation split, no examples before the question, no beginning-of-text token. `acc` takes the
ending with the highest log-likelihood, `acc_norm` the one with the highest per character. Chance is
0.25 in both. Other programs divide by tokens, or leave out the label of the activity, and get other
numbers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from sample_files import read_rows
from scoring import CausalScorer, TaskResult, ratio_estimate

if TYPE_CHECKING:
    from compare import CompareConfig

HUB_NAME = "Rowan/hellaswag"
REVISION = "218ec52e09a7e7462a5400043bb9a69a41d06b76"
COLUMNS = {"activity_label": str, "ctx_a": str, "ctx_b": str, "endings": list}
N_ENDINGS = 4


@dataclass(frozen=True)
class Question:
    """A scene, and its endings of which one is the true one."""

    context: str
    endings: tuple[str, ...]
    answer: int  # index of the true ending


@dataclass(frozen=True)
class HellaswagTask:
    """Questions with four endings each."""

    protocol: ClassVar[str] = "hellaswag"
    version: ClassVar[int] = 1
    samples: ClassVar[str] = "questions"
    metrics: ClassVar[dict[str, bool]] = {"acc": True, "acc_norm": True}

    questions: Sequence[Question]

    @classmethod
    def from_config(cls, config: CompareConfig) -> HellaswagTask:
        """The first `config.limit` questions of `config.hellaswag_data`."""
        return cls(read_questions(config.hellaswag_data, limit=config.limit))

    @property
    def sha256(self) -> str:
        """Digest of the questions used, from wherever they were read: a JSON list on each line."""
        digest = hashlib.sha256()
        for question in self.questions:
            row = [question.context, question.endings, question.answer]
            digest.update(json.dumps(row).encode() + b"\n")
        return digest.hexdigest()

    def evaluate(self, scorer: CausalScorer) -> TaskResult:
        """Both accuracies, as fractions."""
        scores = scorer.score_choices(
            [question.context for question in self.questions],
            [[" " + ending for ending in question.endings] for question in self.questions],
            description=self.protocol,
        )
        log_probs = scores.log_probs.reshape(-1, N_ENDINGS)
        lengths = np.array([[len(ending) for ending in q.endings] for q in self.questions])
        answers = np.array([question.answer for question in self.questions])
        samples = {
            "acc": (log_probs.argmax(1) == answers).astype(np.float64),
            "acc_norm": ((log_probs / lengths).argmax(1) == answers).astype(np.float64),
        }
        ones = np.ones(len(answers))
        return TaskResult(
            n_samples=len(answers),
            estimates={name: ratio_estimate(right, ones) for name, right in samples.items()},
            details={"n_target_tokens": int(scores.n_tokens.sum())},
            samples=samples,
        )


def read_questions(source: str, *, limit: int | None) -> list[Question]:
    """The first `limit` questions of `source`.

    Args:
        source: a .jsonl file of the official format, or a Hub data set of its columns with a split
            `validation`; `HUB_NAME` is read at a fixed commit.
        limit: questions to read, None for all.

    Raises:
        ValueError: for a line or a row that is not as above, or no question at all.
    """
    revision = REVISION if source == HUB_NAME else None
    rows = read_rows(source, columns=COLUMNS, split="validation", limit=limit, revision=revision)
    questions = [_question(place, row) for place, row in rows]
    if not questions:
        raise ValueError(f"{source}: expected at least one question, found none")
    return questions


def clean_text(text: str) -> str:
    """The text without the marks that WikiHow's pages left: " [title]" ends a heading.

    Source: `preprocess` of lm_eval 0.4.13, `tasks/hellaswag/utils.py`; not idempotent, as there.
    """
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _question(place: str, row: dict) -> Question:
    """The question of a row, as the model will read it."""
    label = str(row.get("label"))  # a number in the file, text on the Hub
    endings = row["endings"]
    if not all(isinstance(ending, str) for ending in endings) or len(endings) != N_ENDINGS:
        raise ValueError(f"{place}: expected {N_ENDINGS} texts as `endings`, found {endings}")
    if label not in map(str, range(N_ENDINGS)):
        raise ValueError(
            f"{place}: expected a `label` below {N_ENDINGS}, found {row.get('label')!r}; the test "
            f"split has none"
        )
    cleaned = tuple(clean_text(ending) for ending in endings)
    if not all(cleaned):
        raise ValueError(f"{place}: expected {N_ENDINGS} endings with text, found {endings}")
    scene = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return Question(clean_text(scene), cleaned, int(label))
