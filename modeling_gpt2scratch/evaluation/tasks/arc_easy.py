"""Task `arc_easy`: school science questions of the AI2 Reasoning Challenge, the easier part.

Protocol `arc_easy` of lm-evaluation-harness (its version 1.0): the 2,376 questions of the test
split, each with three to five answers, no examples before the question. Chance is about 0.25.
"""

from typing import ClassVar

from .multiple_choice import MultipleChoiceTask, Question, have_text
from .samples import SampleData


class ArcEasyTask(MultipleChoiceTask):
    """Questions whose answers are labelled A to E, or 1 to 5."""

    protocol: ClassVar[str] = "arc_easy"
    columns: ClassVar[dict[str, type]] = {"question": str, "choices": dict, "answerKey": str}
    data: ClassVar[SampleData] = SampleData(
        argument="arc_easy_data",
        file="arc_easy_test.jsonl",
        hub_name="allenai/ai2_arc",
        subset="ARC-Easy",
        n_samples=2376,
    )

    @classmethod
    def question(cls, place: str, row: dict) -> Question:
        """The question as the model reads it."""
        answers, labels = row["choices"].get("text"), row["choices"].get("label")
        for texts in (answers, labels):
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError(
                    f"{place}: expected `choices` with lists of texts as `text` and `label`, found "
                    f"{row['choices']}"
                )
        if not answers or len(answers) != len(labels) or not have_text(answers):
            raise ValueError(
                f"{place}: expected `choices` with as many texts as labels, found {row['choices']}"
            )
        if len(set(labels)) != len(labels):
            raise ValueError(f"{place}: expected each label once, found {labels}; correct the row")
        if row["answerKey"] not in labels:
            raise ValueError(
                f"{place}: expected an `answerKey` among {labels}, found {row['answerKey']!r}"
            )
        context = f"Question: {row['question']}\nAnswer:"
        return Question(context, tuple(answers), labels.index(row["answerKey"]))


TASKS: dict[str, type[MultipleChoiceTask]] = {ArcEasyTask.protocol: ArcEasyTask}
