"""Numbers that others published, each with the task and protocol it belongs to.

They stand in `published_numbers.json`, with their sources. Nothing of it was measured here. A
number whose protocol is none of ours has no place there: a 45.99 of another protocol beside our
LAMBADA accuracy would only mislead.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from modeling_gpt2scratch.common.addresses import split_revision

PATH = Path(__file__).with_suffix(".json")
OPENAI_MODELS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


@dataclass(frozen=True)
class PublishedNumber:
    """One number: accuracies are fractions, everything else as it was published."""

    task: str  # a key of `TASKS` in compare.py
    metric: str
    model: str
    value: float
    source: str  # a key of `sources` in the file
    where: str
    stderr: float | None = None
    note: str | None = None  # how its protocol may differ from ours


def read_published() -> tuple[list[PublishedNumber], dict[str, str]]:
    """All numbers, and for each source what it is."""
    content = json.loads(PATH.read_bytes())
    return [PublishedNumber(**number) for number in content["numbers"]], content["sources"]


def numbers_beside(
    numbers: Iterable[PublishedNumber], *, tasks: Iterable[str], models: Iterable[str]
) -> list[PublishedNumber]:
    """The numbers that belong to these tasks, of the compared models as far as they are OpenAI's.

    Without a model of OpenAI's among them it is the smallest that others are compared with. The
    models of other papers are always there.
    """
    tasks = set(tasks)
    # Of openai-community/gpt2@main, gpt2.
    names = [Path(split_revision(model)[0]).name for model in models]
    shown = [name for name in OPENAI_MODELS if name in names] or [OPENAI_MODELS[0]]
    return [
        number
        for number in numbers
        if number.task in tasks and (number.model in shown or number.model not in OPENAI_MODELS)
    ]
