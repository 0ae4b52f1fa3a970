"""Tasks `cbt-cn`, `cbt-ne`, `cbt-v`, `cbt-p`: which of ten words was left out of a sentence?

The Children's Book Test (Hill et al. 2016) by the kind of the word: common noun, named entity,
verb, preposition. The bare name is the validation split, on which the GPT-2 paper reports, and
`cbt-cn-test` the test split. Chance is 0.1. Protocols:

- `cbt-cn`, as in the paper: the word with the highest probability of itself and the rest of the
  sentence, after the twenty sentences before. What the paper leaves open is chosen so: sentences
  joined by a space, the detokenizer below, no token before them but what the tokenizer adds, the
  first of equal words.
- `cbt-cn:predecessor`: the lowest mean loss of the whole text, not detokenized. The mean favours
  words of many tokens. Questions longer than the model's context are left out.
- `cbt-cn:query-only`: the paper's, without the twenty sentences.
- `cbt-cn:candidate-only`: the paper's, by the probability of the word alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from modeling_gpt2scratch.evaluation.scoring.encoding import encode_plain, encode_texts

from .cbt_questions import (
    BLANK,
    CATEGORIES,
    N_CANDIDATES,
    SPLITS,
    ClozeQuestion,
    question_data,
    read_questions,
)
from .samples import SampleData, Selection, digest_of_rows
from .task import TaskResult, mean_estimate, n_truncated_of, responses_of

if TYPE_CHECKING:  # torch comes with it, and a command line needs none
    from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer

# In this order, as in `detokenize` of lm-evaluation-harness 0.3, `tasks/cbt.py`.
REPLACEMENTS = (
    *((" '", "'"), (" \n", "\n"), ("\n ", "\n"), (" n't", "n't"), ("`` ", '"'), ("''", '"')),
    *((f" {mark}", mark) for mark in ":;!?,."),
)
TOKEN_COUNTS = ("1", "2", "3_or_more")  # of the right word, for the accuracies in `details`


@dataclass(frozen=True)
class ClozeTask:
    """Sentences with a blank, and the protocol of the paper."""

    protocol: ClassVar[str]
    version: ClassVar[int] = 3
    samples: ClassVar[str] = "questions"
    metrics: ClassVar[dict[str, bool]] = {"acc": True}
    data: ClassVar[SampleData]

    questions: Sequence[ClozeQuestion]

    @classmethod
    def load(cls, selection: Selection) -> Self:
        """The first `selection.limit` questions."""
        source = cls.data.source(selection)
        return cls(read_questions(source, cls.data, limit=selection.limit))

    @property
    def sha256(self) -> str:
        """Digest of the questions used, a JSON list for each."""
        return digest_of_rows([q.sentences, q.query, q.candidates, q.right] for q in self.questions)

    @property
    def data_status(self) -> str:
        """Whether these are the official questions."""
        return self.data.status(self.sha256, len(self.questions))

    def evaluate(self, scorer: CausalScorer) -> TaskResult:
        """Accuracy, a fraction; in `details` also by the tokens of the right word."""
        requests = [self.request(question) for question in self.questions]
        contexts, choices = [context for context, _ in requests], [own for _, own in requests]
        scores = scorer.score_choices(contexts, choices, description=self.protocol)
        n_answers = [len(own) for own in choices]
        bounds = np.cumsum(n_answers)[:-1]
        chosen = [int(nats.argmax()) for nats in np.split(scores.log_probs, bounds)]
        return self.result(
            scorer,
            chosen,
            {"n_target_tokens": int(scores.n_tokens.sum())},
            responses=responses_of(scores, n_answers),
            n_truncated=n_truncated_of(scores, n_answers),
        )

    def request(self, question: ClozeQuestion) -> tuple[str, list[str]]:
        """What the model reads, and what it may go on with, one text for each candidate."""
        before, blank, after = detokenize(self.passage(question)).partition(BLANK)
        rest = blank + after
        return before, [rest.replace(BLANK, candidate) for candidate in question.candidates]

    def passage(self, question: ClozeQuestion) -> str:
        """The text with the blank."""
        return " ".join([*question.sentences, question.query])

    def result(
        self,
        scorer: CausalScorer,
        chosen: Sequence[int | None],
        details: dict[str, float],
        *,
        responses: Sequence[Sequence[tuple[float, bool]]],
        n_truncated: int = 0,
    ) -> TaskResult:
        """The accuracies.

        Args:
            scorer: whose tokens are counted.
            chosen: index of a candidate for each question, None where it was left out.
            details: further counts.
            n_truncated: questions whose context lost tokens.
        """
        right = [question.right for question in self.questions]
        is_right = np.array(
            [np.nan if c is None else float(c == r) for c, r in zip(chosen, right, strict=True)]
        )
        is_used = np.isfinite(is_right)
        if not is_used.any():
            raise ValueError(
                f"expected a question of at most {scorer.context_tokens} tokens, found none"
            )
        answers = [" " + question.candidates[question.right] for question in self.questions]
        n_tokens = np.array([len(ids) for ids in encode_plain(scorer.tokenizer, answers)])
        for number, name in enumerate(TOKEN_COUNTS, start=1):
            is_of_count = is_used & (np.minimum(n_tokens, len(TOKEN_COUNTS)) == number)
            details[f"n_answers_of_{name}_tokens"] = int(is_of_count.sum())
            if is_of_count.any():
                details[f"acc_of_{name}_tokens"] = float(is_right[is_of_count].mean())
        details["n_truncated"] = n_truncated
        details["n_left_out"] = int((~is_used).sum())
        details["n_without_10_candidates"] = sum(
            len(question.candidates) != N_CANDIDATES for question in self.questions
        )
        used = is_right[is_used]
        return TaskResult(
            n_samples=len(used),
            estimates={"acc": mean_estimate(used)},
            details=details,
            samples={"acc": is_right},
            responses=responses,
        )


class QueryOnlyTask(ClozeTask):
    """The sentence with the blank, without those before it."""

    def passage(self, question: ClozeQuestion) -> str:
        """The query."""
        return question.query


class CandidateOnlyTask(ClozeTask):
    """Candidates by their own probability, whatever comes after the blank."""

    def request(self, question: ClozeQuestion) -> tuple[str, list[str]]:
        """The text before the blank, and the candidates."""
        before, _ = super().request(question)
        return before, list(question.candidates)


class PredecessorTask(ClozeTask):
    """Candidates by the mean loss of the whole text, tokens and spaces as in the file."""

    def request(self, question: ClozeQuestion) -> tuple[str, list[str]]:
        """The text before the blank, and each candidate with the text after it."""
        before, blank, after = self.passage(question).partition(BLANK)
        return before.rstrip(), [
            f" {(blank + after).replace(BLANK, candidate)}" for candidate in question.candidates
        ]

    def evaluate(self, scorer: CausalScorer) -> TaskResult:
        """Accuracy over the questions that fit into the model's context with every candidate."""
        requests = []
        for index, question in enumerate(self.questions):
            before, own = self.request(question)
            texts = [before + choice for choice in own]
            whole = encode_texts(scorer.tokenizer, texts, keeps_end=False)
            if max(map(len, whole)) <= scorer.context_tokens:
                requests.append((index, before, own))
        contexts = [before for _, before, _ in requests]
        choices = [own for _, _, own in requests]
        scores = scorer.score_choices(contexts, choices, description=self.protocol)
        encoded = encode_texts(scorer.tokenizer, contexts, keeps_end=False)
        context_ids = [np.array(ids) for ids in encoded]
        chosen: list[int | None] = [None] * len(self.questions)
        bounds = np.cumsum([len(own) for own in choices])[:-1]
        log_probs, n_tokens = np.split(scores.log_probs, bounds), np.split(scores.n_tokens, bounds)
        # The loss of what all candidates of a question have before them, all but its first token.
        for number, nats in scorer.score_windows(context_ids, description=self.protocol):
            total = nats.sum(dtype=np.float64) - log_probs[number]
            losses = total / (len(nats) + n_tokens[number])
            chosen[requests[number][0]] = int(losses.argmin())
        responses: list[list[tuple[float, bool]]] = [[] for _ in self.questions]
        own_responses = responses_of(scores, [len(own) for own in choices])
        for (index, _, _), own in zip(requests, own_responses, strict=True):
            responses[index] = own
        details = {"n_target_tokens": int(scores.n_tokens.sum())}
        return self.result(scorer, chosen, details, responses=responses)


def detokenize(text: str) -> str:
    """The text with fewer of the spaces that a tokenizer put between words and marks."""
    for old, new in REPLACEMENTS:
        text = text.replace(old, new)
    return text


def _tasks() -> dict[str, type[ClozeTask]]:
    """The task of each category, split and protocol, by name."""
    protocols = {
        "": ClozeTask,
        ":predecessor": PredecessorTask,
        ":query-only": QueryOnlyTask,
        ":candidate-only": CandidateOnlyTask,
    }
    tasks = {}
    for category in CATEGORIES:
        for split in SPLITS:
            family = f"cbt-{category.lower()}" + ("-test" if split == "test" else "")
            for suffix, base in protocols.items():
                name = family + suffix
                attributes = {"protocol": name, "data": question_data(category, split)}
                tasks[name] = type(base.__name__, (base,), attributes)
    return tasks


TASKS: dict[str, type[ClozeTask]] = _tasks()
