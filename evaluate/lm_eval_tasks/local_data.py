"""Functions that the task files here name; all but one are lm-evaluation-harness's own."""

import re

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
