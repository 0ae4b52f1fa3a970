"""A task of your own: which word is the opposite?"""

from typing import ClassVar

from modeling_gpt2scratch.evaluation import MultipleChoiceTask, Question, SampleData


class OppositesTask(MultipleChoiceTask):
    """Words with the candidates for their opposite; `answer` is the index of the right one."""

    protocol: ClassVar[str] = "opposites"
    columns: ClassVar[dict[str, type]] = {"word": str, "words": list, "answer": int}
    data: ClassVar[SampleData] = SampleData(argument="opposites_data", file="opposites.jsonl")

    @classmethod
    def question(cls, place: str, row: dict) -> Question:
        """The question as the model reads it."""
        return Question(f"The opposite of {row['word']} is", tuple(row["words"]), row["answer"])


TASKS = {OppositesTask.protocol: OppositesTask}
