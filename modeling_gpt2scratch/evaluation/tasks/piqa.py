"""Task `piqa`: which of two ways to reach an everyday goal is the sensible one?

Protocol `piqa` of lm-evaluation-harness (its version 1.0): the 1,838 questions of the validation
split, no examples before the question. Chance is 0.5.
"""

from typing import ClassVar

from .multiple_choice import MultipleChoiceTask, Question
from .samples import SampleData


class PiqaTask(MultipleChoiceTask):
    """Goals with two ways each."""

    protocol: ClassVar[str] = "piqa"
    columns: ClassVar[dict[str, type]] = {"goal": str, "sol1": str, "sol2": str, "label": int}
    data: ClassVar[SampleData] = SampleData(
        argument="piqa_data",
        file="piqa_validation.jsonl",
        hub_name="baber/piqa",
        split="validation",
        n_samples=1838,
    )

    @classmethod
    def question(cls, place: str, row: dict) -> Question:
        """The goal as the model reads it."""
        ways = (row["sol1"], row["sol2"])
        if row["label"] not in (0, 1):
            raise ValueError(
                f"{place}: expected a `label` of 0 or 1, found {row['label']}; the test split has "
                "none"
            )
        return Question(f"Question: {row['goal']}\nAnswer:", ways, row["label"])


TASKS: dict[str, type[MultipleChoiceTask]] = {PiqaTask.protocol: PiqaTask}
