"""What multiple-choice tasks share: which of a question's answers does the model think most likely?

`acc` takes the answer with the highest log-likelihood, `acc_norm` the one with the highest per
character of the answer, as lm-evaluation-harness has them; ties go to the first answer. A task is a
subclass with the wording of its questions: `arc_easy.py` is one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from .samples import SampleData, Selection, digest_of_rows
from .task import TaskResult, mean_estimate, n_truncated_of, responses_of

if TYPE_CHECKING:  # torch comes with it, and a command line needs none
    from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer


@dataclass(frozen=True)
class Question:
    """What the model reads, and the answers of which one is right; a space comes before each."""

    context: str
    answers: tuple[str, ...]
    right: int  # index of the right answer


@dataclass(frozen=True)
class MultipleChoiceTask(ABC):
    """Questions with a few answers each."""

    protocol: ClassVar[str]
    version: ClassVar[int] = 3
    samples: ClassVar[str] = "questions"
    metrics: ClassVar[dict[str, bool]] = {"acc": True, "acc_norm": True}
    columns: ClassVar[dict[str, type]]  # that a row must have
    data: ClassVar[SampleData]

    questions: Sequence[Question]
    source: str | None = None  # from which they were read

    @classmethod
    @abstractmethod
    def question(cls, place: str, row: dict) -> Question:
        """The question of a row, as the model will read it.

        Raises:
            ValueError: that begins with `place`, for a row that holds no question.
        """

    @classmethod
    def load(cls, selection: Selection) -> Self:
        """The first `selection.limit` questions."""
        source = cls.data.source(selection)
        return cls(cls.read(source, limit=selection.limit), source)

    @classmethod
    def read(cls, source: str, *, limit: int | None) -> list[Question]:
        """The first `limit` questions of a .jsonl file or a Hub data set.

        Raises:
            ValueError: for a row without the task's columns, an answer without text or a right one
                that is none of them, or no question at all.
        """
        questions = []
        for place, row in cls.data.rows(source, columns=cls.columns, limit=limit):
            question = cls.question(place, row)
            if not all(question.answers):
                raise ValueError(f"{place}: expected answers with text, found {question.answers}")
            if not 0 <= question.right < len(question.answers):
                expected = f"a right answer from 0 to {len(question.answers) - 1}"
                raise ValueError(f"{place}: expected {expected}, found {question.right}")
            questions.append(question)
        if not questions:
            raise ValueError(f"{source}: expected at least one question, found none")
        return questions

    @property
    def sha256(self) -> str:
        """Digest of the questions used, a JSON list for each."""
        return digest_of_rows([q.context, q.answers, q.right] for q in self.questions)

    @property
    def data_status(self) -> str | None:
        """Whether these are from the official file; None where nothing says from which."""
        if self.source is None:
            return None
        return self.data.source_status(self.source, len(self.questions))

    def evaluate(self, scorer: CausalScorer) -> TaskResult:
        """Both accuracies, as fractions."""
        scores = scorer.score_choices(
            [question.context for question in self.questions],
            [[" " + answer for answer in question.answers] for question in self.questions],
            description=self.protocol,
        )
        n_answers = [len(question.answers) for question in self.questions]
        ends = np.cumsum(n_answers)[:-1]
        log_probs = np.split(scores.log_probs, ends)
        lengths = np.split(self.answer_lengths(scores.n_tokens), ends)
        right = [question.right for question in self.questions]
        chosen = [nats.argmax() for nats in log_probs]
        chosen_norm = [
            (nats / length).argmax() for nats, length in zip(log_probs, lengths, strict=True)
        ]
        samples = {
            "acc": np.equal(chosen, right).astype(np.float64),
            "acc_norm": np.equal(chosen_norm, right).astype(np.float64),
        }
        return TaskResult(
            n_samples=len(right),
            estimates={name: mean_estimate(values) for name, values in samples.items()},
            details={
                "n_target_tokens": int(scores.n_tokens.sum()),
                "n_truncated": n_truncated_of(scores, n_answers),
            },
            samples=samples,
            responses=responses_of(scores, n_answers),
        )

    def answer_lengths(self, n_tokens: np.ndarray) -> np.ndarray:
        """What `acc_norm` divides by, for each answer of each question in turn.

        Args:
            n_tokens: of each answer under the model's tokenizer, with the space before it.
        """
        return np.array([len(answer) for q in self.questions for answer in q.answers])


def have_text(answers: Sequence[str]) -> bool:
    """Whether each has more than white space, which a model would score without a word."""
    return all(answer.strip() for answer in answers)
