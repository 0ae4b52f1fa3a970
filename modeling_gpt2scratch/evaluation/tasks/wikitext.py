"""Task `wikitext`: perplexity of the raw test set that WikiText-2 and WikiText-103 have in common.

Protocol `wikitext` of lm-evaluation-harness (its version 2.0): 62 pages, de-tokenized by rules that
lose a little, and their nats divided by the 241,335 words or 1,290,527 bytes of the pages before
that. GPT-2 small has 37.37 per word. Protocols `wikitext:stride` and `wikitext:disjoint` are those
of a guide in transformers' documentation: the lines of the file as one text, nothing de-tokenized,
in windows of which each is scored where the one before ended, half a context or a whole one later;
perplexity is per token, and compares models of one tokenizer only. The GPT-2 paper's 29.41 and
37.50 belong to neither: its protocol is unpublished.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from modeling_gpt2scratch.evaluation.scoring.encoding import encode_texts

from .documents import Document, DocumentsTask
from .samples import TEXT_SUFFIXES, SampleData, Selection
from .task import TaskResult, perplexity_estimate, ratio_estimate

if TYPE_CHECKING:  # torch comes with it, and a command line needs none
    from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer

DATA = SampleData(
    argument="wikitext_data",
    file="wiki.test.raw",
    hub_name="EleutherAI/wikitext_document_level",
    subset="wikitext-2-raw-v1",
    sha256="173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
    n_samples=62,
)
BRACKETS = ("()", "[]", "{}", '""', "''")


class WikitextTask(DocumentsTask):
    """Pages, as lm-evaluation-harness scores them."""

    protocol: ClassVar[str] = "wikitext"
    metrics: ClassVar[dict[str, bool]] = {
        "word_perplexity": False,
        "byte_perplexity": False,
        "bits_per_byte": False,
    }
    data: ClassVar[SampleData] = DATA

    @classmethod
    def load(cls, selection: Selection) -> Self:
        """The first `selection.limit` pages."""
        return cls.from_pages(read_pages(DATA.source(selection), data=DATA)[: selection.limit])

    @classmethod
    def from_pages(cls, pages: list[str]) -> Self:
        """Pages as they are in the file."""
        documents = [
            Document(
                text=detokenize(page),
                n_words=len(
                    re.split(r"\s+", page)
                ),  # two more than words: the page's ends are blank
                n_bytes=len(page.encode()),
            )
            for page in pages
        ]
        return cls(documents, digest_of(pages))


@dataclass(frozen=True)
class StrideTask:
    """The whole file as one text, in overlapping windows."""

    protocol: ClassVar[str] = "wikitext:stride (half a context)"
    version: ClassVar[int] = 2
    samples: ClassVar[str] = "windows"
    metrics: ClassVar[dict[str, bool]] = {"token_perplexity": False}
    per_token: ClassVar[tuple[str, ...]] = ("token_perplexity",)
    data: ClassVar[SampleData] = DATA
    strides_of_context: ClassVar[int] = 2  # how often the window moves to be where it ended

    text: str
    sha256: str
    limit: int | None

    @classmethod
    def load(cls, selection: Selection) -> Self:
        """The file, and the first `selection.limit` windows of it."""
        pages = read_pages(DATA.source(selection), data=DATA)
        return cls(join_lines(pages), digest_of(pages), selection.limit)

    @property
    def data_status(self) -> str:
        """Whether this is the official file."""
        return DATA.status(self.sha256, DATA.n_samples)

    def evaluate(self, scorer: CausalScorer) -> TaskResult:
        """Perplexity per token; the standard error takes the windows as independent.

        A window counts as one token less than it scores, as in the guide.
        """
        (ids,) = encode_texts(scorer.tokenizer, [self.text])
        stride = max(1, scorer.context_tokens // self.strides_of_context)
        windows, n_scored, weights = [], [], []
        scored_end = 0
        for start in range(0, len(ids), stride):
            end = min(start + scorer.context_tokens, len(ids))
            if end - start == 1:  # nothing to predict it from
                break
            windows.append(np.array(ids[start:end]))
            n_scored.append(min(end - scored_end, end - start - 1))
            weights.append(end - scored_end - 1)
            scored_end = end
            if end == len(ids) or len(windows) == self.limit:
                break
        means = np.zeros(len(windows))
        for index, nats in scorer.score_windows(windows, description=self.protocol):
            if n_scored[index]:
                means[index] = nats[-n_scored[index] :].mean(dtype=np.float64)
        nats = means * weights
        return TaskResult(
            n_samples=len(windows),
            estimates={"token_perplexity": perplexity_estimate(ratio_estimate(nats, weights))},
            details={
                "window_tokens": scorer.context_tokens,
                "stride_tokens": stride,
                "n_target_tokens": sum(weights),
                "text_sha256": digest_of_windows(scorer, windows, n_scored),
            },
            samples={"token_perplexity": nats},
        )


class DisjointTask(StrideTask):
    """The same in windows that have nothing in common."""

    protocol: ClassVar[str] = "wikitext:disjoint (stride of a context)"
    strides_of_context: ClassVar[int] = 1


TASKS: dict[str, type] = {
    "wikitext": WikitextTask,
    "wikitext:stride": StrideTask,
    "wikitext:disjoint": DisjointTask,
}


def read_pages(source: str, *, data: SampleData, hub_column: str = "page") -> list[str]:
    """The pages of a file of WikiText's format, or of a Hub data set.

    Args:
        source: the file or the data set.
        data: the official one.
        hub_column: of the data set; `page` with a page in each row, or `text` with a line.

    Raises:
        ValueError: for a file without a page, or not in UTF-8.
    """
    if Path(source).is_file() or Path(source).suffix in TEXT_SUFFIXES:
        rows = data.rows(source, columns={"text": str}, limit=None)
        pages = split_pages([*(row["text"] for _, row in rows), ""])
    else:
        rows = data.rows(source, columns={hub_column: str}, limit=None)
        pages = [row[hub_column] for _, row in rows]
        if hub_column == "text":
            # A blank line is a space in the file, and nothing in a row.
            pages = split_pages([*(row.removesuffix("\n") or " " for row in pages), ""])
    if not any(page.strip() for page in pages):
        raise ValueError(f"{source}: expected at least one page, found none")
    return pages


def split_pages(lines: Iterable[str]) -> list[str]:
    """Lines to pages, each from a title ` = Title = ` on; blank lines before the first are lost."""
    pages: list[list[str]] = [[]]
    for line in lines:
        stripped = line.strip()
        is_title = stripped.startswith("= ") and stripped.endswith(" =")
        is_section = stripped.startswith("= =") or stripped.endswith("= =")
        if is_title and not is_section:
            pages.append([])
        pages[-1].append(line)
    texts = ["\n".join(page) for page in pages]
    return [text for text in texts if text.strip()]


def digest_of(pages: list[str]) -> str:
    """Checksum of the pages; all of the test set's give that of the official file.

    That file begins with a blank line, which belongs to no page.
    """
    return hashlib.sha256("\n".join([" ", *pages]).encode()).hexdigest()


def digest_of_windows(
    scorer: CausalScorer, windows: Sequence[np.ndarray], n_scored: Sequence[int]
) -> str:
    """Checksum of the text that is scored in each window; other tokenizers cut it elsewhere."""
    digest = hashlib.sha256()
    for ids, n in zip(windows, n_scored, strict=True):
        scored = ids[len(ids) - n :]
        text = scorer.tokenizer.decode(scored, clean_up_tokenization_spaces=False)
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def join_lines(pages: list[str]) -> str:
    """All lines, two line feeds between, as a data set with a row for each line is joined.

    A row ends with a line feed itself unless it is blank; the first one is.
    """
    lines = ["", *"\n".join(pages).split("\n")[:-1]]
    return "\n\n".join(f"{line}\n" if line.strip() else "" for line in lines)


def detokenize(page: str) -> str:
    """The page with its punctuation and brackets attached as in print, as Megatron-LM does it.

    Not all of it can be undone. A rule of theirs that never applies is left out.
    """
    page = page.replace("s '", "s'")
    for mark in "-,.":
        page = page.replace(f" @{mark}@ ", mark)
    for mark in ":;.!?,":
        page = page.replace(f" {mark} ", f"{mark} ")
    for opening, closing in BRACKETS:
        left, right = re.escape(opening), re.escape(closing)
        page = re.sub(rf"{left}\s*([^{right}]*?)\s*{right}", rf"{opening}\1{closing}", page)
    for n_signs in (4, 3, 2):
        page = page.replace(" ".join("=" * n_signs), "=" * n_signs)
    page = page.replace(" ° ", "°").replace(" \n", "\n").replace("\n ", "\n")
    return page.replace(" N ", " 1 ").replace(" 's", "'s")
