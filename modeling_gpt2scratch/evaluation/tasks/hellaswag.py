"""Task `hellaswag`: which of four endings of a scene does the model think most likely?

Protocol `hellaswag` of lm-evaluation-harness (its version 1.0): the 10,042 questions of the
validation split, no examples before the question, no token but what the tokenizer adds; `acc_norm`
is per character. Protocol `hellaswag:per-token` is that of build-nanogpt and llm.c: the scene
without the label of its activity and as it was written, `acc_norm` per token of the ending. Chance
is 0.25 in all. GPT-2 small has an `acc_norm` of 0.3114 in the first and 0.2955 in the second.
"""

import re
from typing import ClassVar

import numpy as np

from .multiple_choice import MultipleChoiceTask, Question, have_text
from .samples import SampleData

HUB_NAME = "Rowan/hellaswag"
N_ENDINGS = 4


class HellaswagTask(MultipleChoiceTask):
    """Scenes with four endings each, worded as lm-evaluation-harness words them."""

    protocol: ClassVar[str] = "hellaswag"
    columns: ClassVar[dict[str, type]] = {
        "activity_label": str,
        "ctx_a": str,
        "ctx_b": str,
        "endings": list,
    }
    data: ClassVar[SampleData] = SampleData(
        argument="hellaswag_data",
        file="hellaswag_val.jsonl",
        hub_name=HUB_NAME,
        split="validation",
        revision="218ec52e09a7e7462a5400043bb9a69a41d06b76",
        sha256="0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588",
        n_samples=10_042,
    )

    @classmethod
    def question(cls, place: str, row: dict) -> Question:
        """The scene after its activity's label, without WikiHow's marks."""
        endings = read_endings(place, row)
        cleaned = tuple(clean_text(ending) for ending in endings)
        if not have_text(cleaned):
            raise ValueError(f"{place}: expected {N_ENDINGS} endings with text, found {endings}")
        scene = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        return Question(clean_text(scene), cleaned, read_label(place, row))


class PerTokenHellaswagTask(HellaswagTask):
    """The same scenes as they were written, endings compared per token."""

    protocol: ClassVar[str] = "hellaswag:per-token"
    columns: ClassVar[dict[str, type]] = {"ctx": str, "endings": list}

    @classmethod
    def question(cls, place: str, row: dict) -> Question:
        """Scene and endings, nothing changed."""
        endings = read_endings(place, row)
        if not have_text(endings):
            raise ValueError(f"{place}: expected {N_ENDINGS} endings with text, found {endings}")
        return Question(row["ctx"], endings, read_label(place, row))

    def answer_lengths(self, n_tokens: np.ndarray) -> np.ndarray:
        """Tokens of each ending."""
        return n_tokens


TASKS: dict[str, type[MultipleChoiceTask]] = {
    task.protocol: task for task in (HellaswagTask, PerTokenHellaswagTask)
}


def clean_text(text: str) -> str:
    """The text without the marks that WikiHow's pages left: " [title]" ends a heading.

    Source: `preprocess` of lm_eval 0.4.13, `tasks/hellaswag/utils.py`; not idempotent, as there.
    """
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def read_endings(place: str, row: dict) -> tuple[str, ...]:
    """The row's endings as they are."""
    endings = row["endings"]
    if not all(isinstance(ending, str) for ending in endings) or len(endings) != N_ENDINGS:
        raise ValueError(f"{place}: expected {N_ENDINGS} texts as `endings`, found {endings}")
    return tuple(endings)


def read_label(place: str, row: dict) -> int:
    """Index of the true ending, a number in the file and text on the Hub."""
    label = str(row.get("label"))
    if label not in map(str, range(N_ENDINGS)):
        raise ValueError(
            f"{place}: expected a `label` below {N_ENDINGS}, found {row.get('label')!r}; the test "
            f"split has none"
        )
    return int(label)
