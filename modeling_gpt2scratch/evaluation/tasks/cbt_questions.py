"""Questions of the Children's Book Test: from the official text files, or from the Hub.

A question of an official file is 21 numbered lines and an empty one. Twenty are consecutive
sentences of a book, tokenized and joined by spaces; the next sentence, line 21, lacks a word:

    21 `` Where is the XXXXX ? ''<tab>king<tab><tab>queen|king|donkey|...

with the word and its ten candidates after it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from .samples import SampleData, numbered_lines

HUB_NAME = "cam-cst/cbt"
REVISION = "refs/convert/parquet"  # the Hub's own copy: CN/validation/0000.parquet and so on
OFFICIAL_PREFIX = "cbtest_"  # of the files' names
BLANK = "XXXXX"
N_SENTENCES = 20
N_CANDIDATES = 10
CATEGORIES = {"CN": "common nouns", "NE": "named entities", "V": "verbs", "P": "prepositions"}
# Split of the Hub -> how the official file is called, and its questions.
SPLITS = {"validation": ("valid_2000ex", 2000), "test": ("test_2500ex", 2500)}
COLUMNS = {"sentences": list, "question": str, "answer": str, "options": list}


@dataclass(frozen=True)
class ClozeQuestion:
    """Sentences, the next one with a blank, and the words that may fill it; all tokenized."""

    sentences: tuple[str, ...]
    query: str
    candidates: tuple[str, ...]
    right: int  # index of the first candidate that is the answer


def question_data(category: str, split: str) -> SampleData:
    """Where the official questions of a category and split are."""
    name, n_samples = SPLITS[split]
    return SampleData(
        argument="cbt_data",
        file=f"{OFFICIAL_PREFIX}{category}_{name}.txt",
        hub_name=HUB_NAME,
        split=split,
        # That branch has no README, without which its folders are no subsets.
        files=(f"{category}/{split}/*.parquet", f"{category}/*{split}*.parquet"),
        revision=REVISION,
        n_samples=n_samples,
    )


def read_questions(source: str, data: SampleData, *, limit: int | None) -> list[ClozeQuestion]:
    """The first `limit` questions.

    Args:
        source: an official text file, a .jsonl file with the columns of the Hub, or a Hub data set.
        data: the official questions; says which part of a Hub data set to read.
        limit: questions to read, None for all.

    Raises:
        ValueError: that names the line or row, for anything but a question; for no question at all,
            and for an official file of others.
    """
    name = Path(source).name
    if name.startswith(OFFICIAL_PREFIX) and name != data.file:
        raise ValueError(f"{source}: expected {data.file}, found questions of another task")
    if Path(source).suffix == ".txt":
        rows = islice(_read_file(Path(source)), limit)
    else:
        rows = data.rows(source, columns=COLUMNS, limit=limit)
    questions = [_question(place, row) for place, row in rows]
    if not questions:
        raise ValueError(f"{source}: expected at least one question, found none")
    return questions


def _read_file(path: Path) -> Iterator[tuple[str, dict]]:
    """Each question of an official file under the Hub's columns, after the place of its end."""
    sentences: list[str] = []
    with path.open("rb") as file:
        for place, text in numbered_lines(file, str(path)):
            if not text.endswith("\n"):
                raise ValueError(f"{place}: expected a line feed at its end: the file is cut")
            if not text.strip():
                if sentences:
                    raise ValueError(f"{place}: expected line {len(sentences) + 1}, found none")
                continue
            label, _, rest = text.rstrip("\r\n").partition(" ")
            if label != str(len(sentences) + 1):
                raise ValueError(
                    f"{place}: expected line {len(sentences) + 1} of a question, found {label!r}"
                )
            if len(sentences) < N_SENTENCES:
                sentences.append(rest.strip())
                continue
            fields = rest.split("\t")
            if len(fields) != 4 or fields[2]:
                raise ValueError(
                    f"{place}: expected a query, an answer, nothing and candidates between tabs, "
                    f"found {len(fields)} fields"
                )
            query, answer, _, options = (field.strip() for field in fields)
            row = {"sentences": sentences, "question": query, "answer": answer}
            yield place, row | {"options": options.split("|")}
            sentences = []
    if sentences:
        raise ValueError(f"{place}: expected line {len(sentences) + 1}, found the end of the file")


def _question(place: str, row: dict) -> ClozeQuestion:
    """The question of a row."""
    sentences, query, answer = row["sentences"], row["question"], row["answer"].strip()
    if len(sentences) != N_SENTENCES or not all(isinstance(text, str) for text in sentences):
        raise ValueError(f"{place}: expected {N_SENTENCES} sentences, found {len(sentences)}")
    if BLANK not in query:
        raise ValueError(f"{place}: expected a query with {BLANK}, found {query!r}")
    if not all(text is None or isinstance(text, str) for text in row["options"]):
        raise ValueError(f"{place}: expected candidates as texts, found {row['options']}")
    # A candidate may be empty, or the separator itself.
    candidates = tuple(text.strip() for text in row["options"] if text and text.strip())
    if answer not in candidates or len(row["options"]) < N_CANDIDATES:
        raise ValueError(
            f"{place}: expected {N_CANDIDATES} candidates with the answer {answer!r} among them, "
            f"found {row['options']}"
        )
    return ClozeQuestion(tuple(sentences), query.strip(), candidates, candidates.index(answer))
