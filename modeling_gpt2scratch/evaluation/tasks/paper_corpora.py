"""Tasks of the GPT-2 paper's other language-modelling rows, whose protocols are unpublished.

`wikitext2-tokens` and `wikitext103-tokens` (the files with `<unk>`), `ptb`, `1bw`, `enwik8` and
`text8`. The paper de-tokenized them in ways that can be undone, and says no more; others measured
up to twice its numbers. So these numbers compare models with each other, not with the paper. Where
the text is one stream, it is scored as a hundred parts, for the sake of a standard error. Each
document comes after one token that begins a text, and a tokenizer adds nothing else to it. The
WikiText files come from the Hub. The others are files of yours: no Hub data set is certain to be
the one that the paper used.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from modeling_gpt2scratch.common.errors import reason

from .documents import Document, DocumentsTask
from .samples import SampleData, Selection
from .wikitext import detokenize as detokenize_wikitext
from .wikitext import read_pages

N_PARTS = 100
TEST_BYTES = 5_000_000  # the end of enwik8 and text8 that is their test set
UNPUBLISHED = "(the paper's protocol is unpublished)"


@dataclass(frozen=True)
class PaperTask(DocumentsTask):
    """Documents of a file; a subclass makes them."""

    version: ClassVar[int] = 3
    encoding: ClassVar[dict[str, bool]] = {"add_special_tokens": False}
    metrics: ClassVar[dict[str, bool]] = {"word_perplexity": False}

    @classmethod
    def load(cls, selection: Selection) -> Self:
        """The first `selection.limit` documents.

        Raises:
            ValueError: if there is none.
        """
        source = cls.data.source(selection)
        documents, sha256 = cls.read(source)
        if not documents:
            raise ValueError(f"{source}: expected text, found none")
        return cls(documents[: selection.limit], sha256)

    @classmethod
    def read(cls, source: str) -> tuple[list[Document], str]:
        """All documents, and the digest of what they were read from.

        Raises:
            ValueError: that names the file, if it cannot be read or is not in UTF-8.
        """
        try:
            content = Path(source).read_bytes()
            return cls.documents_of(content), hashlib.sha256(content).hexdigest()
        except UnicodeDecodeError as error:
            raise ValueError(f"{source}: expected UTF-8, found {error}; convert it") from error
        except OSError as error:
            raise ValueError(f"{source}: expected a file of text, found {reason(error)}") from error

    @classmethod
    def documents_of(cls, content: bytes) -> list[Document]:
        """The documents of a whole file."""
        raise NotImplementedError


class WikitextTokensTask(PaperTask):
    """Pages of WikiText-2 with rare words as <unk>; a line end counts as a word."""

    protocol: ClassVar[str] = f"wikitext2-tokens {UNPUBLISHED}"
    data: ClassVar[SampleData] = SampleData(
        argument="wikitext2_tokens_data",
        file="wikitext-2/wiki.test.tokens",
        hub_name="Salesforce/wikitext",
        subset="wikitext-2-v1",
        n_samples=62,
    )

    @classmethod
    def read(cls, source: str) -> tuple[list[Document], str]:
        """Pages of a file, or of a Hub data set with a row for each line."""
        pages = read_pages(source, data=cls.data, hub_column="text")
        documents = [
            # A page lost the end of its last line when it was cut out.
            Document(detokenize_wikitext(page), count_words(page + "\n"), len(page.encode()))
            for page in pages
        ]
        return documents, hashlib.sha256("\n".join(pages).encode()).hexdigest()


class Wikitext103TokensTask(WikitextTokensTask):
    """The same of WikiText-103, which knows more words."""

    protocol: ClassVar[str] = f"wikitext103-tokens {UNPUBLISHED}"
    data: ClassVar[SampleData] = SampleData(
        argument="wikitext103_tokens_data",
        file="wikitext-103/wiki.test.tokens",
        hub_name="Salesforce/wikitext",
        subset="wikitext-103-v1",
        n_samples=62,
    )


class PtbTask(PaperTask):
    """Penn Treebank in Mikolov's version, without capitals, punctuation and numbers."""

    protocol: ClassVar[str] = f"ptb {UNPUBLISHED}"
    samples: ClassVar[str] = "parts"
    data: ClassVar[SampleData] = SampleData(
        argument="ptb_data",
        file="ptb.test.txt",
        sha256="dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
    )

    @classmethod
    def documents_of(cls, content: bytes) -> list[Document]:
        """A hundred parts of whole sentences; a line end counts as a word."""
        parts = cut_parts(lines_of(text_of(content)))
        return [Document(detokenize(part), count_words(part), len(part.encode())) for part in parts]


class BillionWordsTask(PaperTask):
    """The One Billion Word Benchmark, whose sentences are in no order."""

    protocol: ClassVar[str] = f"1bw {UNPUBLISHED}"
    samples: ClassVar[str] = "sentences"
    data: ClassVar[SampleData] = SampleData(
        argument="billion_words_data", file="news.en.heldout-00000-of-00050"
    )

    @classmethod
    def documents_of(cls, content: bytes) -> list[Document]:
        """Each sentence by itself; its end counts as a word."""
        return [
            Document(detokenize(line), count_words(line), len(line.encode()))
            for line in lines_of(text_of(content))
            if line.strip()
        ]


class Enwik8Task(PaperTask):
    """The last five million bytes of enwik8, markup and all."""

    protocol: ClassVar[str] = f"enwik8 {UNPUBLISHED}"
    samples: ClassVar[str] = "parts"
    metrics: ClassVar[dict[str, bool]] = {"bits_per_byte": False}
    data: ClassVar[SampleData] = SampleData(
        argument="enwik8_data",
        file="enwik8",
        sha256="2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
    )

    @classmethod
    def documents_of(cls, content: bytes) -> list[Document]:
        """A hundred parts of whole lines, or words where there are no lines."""
        # The cut may have left an end of a character.
        text = content[-TEST_BYTES:].decode(errors="ignore")
        pieces = lines_of(text)
        if len(pieces) < N_PARTS:
            pieces = re.findall(r"\s*\S+|\s+", text)
        return [Document(part, len(part.split()), len(part.encode())) for part in cut_parts(pieces)]


class Text8Task(Enwik8Task):
    """The last five million letters and spaces of text8."""

    protocol: ClassVar[str] = f"text8 {UNPUBLISHED}"
    metrics: ClassVar[dict[str, bool]] = {"bits_per_character": False}  # each is a byte
    data: ClassVar[SampleData] = SampleData(
        argument="text8_data",
        file="text8",
        sha256="6e890197040d37d85beb962ae1f041ff1d9a9ca8d20c7d99c85027eebf51dca7",
    )


TASKS: dict[str, type[PaperTask]] = {
    task.protocol.removesuffix(f" {UNPUBLISHED}"): task
    for task in (
        *(WikitextTokensTask, Wikitext103TokensTask, PtbTask),
        *(BillionWordsTask, Enwik8Task, Text8Task),
    )
}


def text_of(content: bytes) -> str:
    """The text of a file, without the mark and the line ends of Windows."""
    return content.decode("utf-8-sig").replace("\r\n", "\n")


def lines_of(text: str) -> list[str]:
    """Lines with their line feeds; no other character ends one."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def cut_parts(pieces: Sequence[str]) -> list[str]:
    """The pieces put together to a hundred texts of about as many pieces, or fewer."""
    n_parts = min(N_PARTS, len(pieces))
    bounds = [len(pieces) * index // n_parts for index in range(n_parts + 1)] if n_parts else []
    return ["".join(pieces[start:stop]) for start, stop in zip(bounds, bounds[1:], strict=False)]


def count_words(text: str) -> int:
    """Words between blanks, and one for the end of each line."""
    return len(text.split()) + text.count("\n")


def detokenize(text: str) -> str:
    """Tokenized English with its punctuation, endings and brackets attached, as in print.

    Rules of our own: `<unk>`, and PTB's `N` for a number, stay as they are.
    """
    text = re.sub(r" (n't|'(?:s|re|ve|ll|d|m)|[.,;:!?%)\]])(?=\s|$)", r"\1", text)
    text = re.sub(r"(^|\s)([$#(\[]) ", r"\1\2", text)
    return re.sub(r"(?m)^ | $", "", text)
