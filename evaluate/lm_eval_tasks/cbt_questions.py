"""Functions that the task files of the Children's Book Test name."""

import re
from itertools import groupby
from pathlib import Path

from datasets import Dataset

BLANK = "XXXXX"


def read_file(path: str, **metadata) -> dict[str, Dataset]:
    """The questions of an official file, under the columns of the Hub's data set."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    rows = []
    for is_empty, question in groupby(lines, key=lambda line: not line.strip()):
        if not is_empty:
            *sentences, last = (line.split(" ", 1)[1] for line in question)
            query, answer, _, options = last.split("\t")
            row = {"sentences": [text.strip() for text in sentences], "question": query.strip()}
            rows.append(row | {"answer": answer.strip(), "options": options.strip().split("|")})
    return {"validation": Dataset.from_list(rows)}


def text(doc: dict) -> str:
    """The sentences and the query with its blank, without spaces before marks."""
    joined = " ".join([*doc["sentences"], doc["question"]])
    joined = re.sub(" (?='|n't)", "", joined).replace("`` ", '"').replace("''", '"')
    return re.sub(" (?=[:;!?,.])", "", joined)


def context(doc: dict) -> str:
    """What stands before the blank."""
    return text(doc).partition(BLANK)[0]


def choices(doc: dict) -> list[str]:
    """Each candidate with what stands after the blank."""
    _, blank, rest = text(doc).partition(BLANK)
    candidates = [option.strip() for option in doc["options"] if option and option.strip()]
    return [(blank + rest).replace(BLANK, candidate) for candidate in candidates]


def target(doc: dict) -> int:
    """Index of the answer among the candidates."""
    candidates = [option.strip() for option in doc["options"] if option and option.strip()]
    return candidates.index(doc["answer"].strip())
