"""Functions that the task files here name; all but two are lm-evaluation-harness's own."""

import json
import re
from pathlib import Path

from datasets import Dataset
from lm_eval.tasks.hellaswag.utils import process_docs as process_docs
from lm_eval.tasks.wikitext.preprocess_wikitext import process_results as process_results
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer as wikitext_detokenizer


def wikitext_pages(whole_file: Dataset) -> Dataset:
    """A row `page` for each page of a file that was read as one row `text`."""
    (row,) = whole_file
    # A title has one equals sign on each side, a section more.
    pages = re.split(r"\n(?= = [^=\n][^\n]* = \n)", row["text"])
    return Dataset.from_dict({"page": [page for page in pages if page.strip()]})


def pairs(directory: str, **metadata) -> dict[str, Dataset]:
    """The sentences of all files of a directory, one file after the other."""
    columns = ("sentence_good", "sentence_bad", "UID", "linguistics_term")  # others differ
    rows = [
        {name: row[name] for name in columns}
        for path in sorted(Path(directory).glob("*.jsonl"))
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    ]
    return {"train": Dataset.from_list(rows)}
