"""Chooses the text of `ten_million_words.yaml`: at most ten million words, as `wc -w` counts them.

    python recipes/ten_million_words.py --corpus corpus --output_file data/ten_million_words.jsonl

`corpus` holds `.jsonl.zst` files of rows with a field `text`: `c4_sample`, `fineweb_sample`,
`openstax` and `classic_books_*`, the books with a field `year`. A paragraph becomes a document, and
of every second paragraph each sentence does, because a model that scores single sentences should
have seen many of them. Headings, lists and lines of menus are left out: a paragraph has a few words
and ends as a sentence does. Texts are taken in a fixed order until a source's share is full, so the
same corpus gives the same file.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modeling_gpt2scratch.common.atomic_files import write_json_lines
from modeling_gpt2scratch.common.command_line import argument, parse_config
from modeling_gpt2scratch.data.sources.decompression import decompressed

MAX_WORDS = 10_000_000
# Files and the most words that each may give; the last ones fill up what is left.
SHARES = {
    "c4_sample": MAX_WORDS,
    "fineweb_sample": MAX_WORDS,
    "openstax": 3_000_000,
    "classic_books_*": MAX_WORDS,
}
FIRST_YEAR = 1880  # of a book: older English is too far from that of the tests
MIN_WORDS = 4
END_OF_SENTENCE = re.compile(r"[.!?][\"'”’)]*$")
# The space between two sentences: not after an initial or a title, and before no small letter.
BETWEEN_SENTENCES = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][\"'”’)]))"
    r"(?<!\b[A-Z]\.)(?<!\b[DMS][rst]\.)(?<!\bMrs\.) (?=[A-Z\"'“‘(])"
)


@dataclass(frozen=True)
class Config:
    """Every argument of this script."""

    corpus: str = argument("directory of the .jsonl.zst files")
    output_file: str = argument(".jsonl file, a paragraph on each line")


def main() -> None:
    """Writes the paragraphs, and prints how many words each source gave."""
    config = parse_config(Config, description=__doc__)
    chosen: list[str] = []
    n_left = MAX_WORDS
    for pattern, share in SHARES.items():
        n_words = 0
        for text in paragraphs(Path(config.corpus), pattern):
            n = len(text.split())
            if n_words + n > min(share, n_left):
                break
            n_words += n
            chosen.append(text)
        n_left -= n_words
        print(f"{pattern}: {n_words:,} words")
    Path(config.output_file).parent.mkdir(parents=True, exist_ok=True)
    rows = ({"text": text} for text in documents(chosen))
    write_json_lines(Path(config.output_file), rows, ensure_ascii=False)
    print(f"{MAX_WORDS - n_left:,} words of {len(chosen):,} paragraphs in {config.output_file}")


def documents(chosen: list[str]) -> Iterator[str]:
    """The paragraphs as documents: one whole, the sentences of the next one by one, and so on."""
    for i, paragraph in enumerate(chosen):
        if i % 2 == 0:
            yield paragraph
        else:
            yield from BETWEEN_SENTENCES.split(paragraph)


def paragraphs(corpus: Path, pattern: str) -> Iterator[str]:
    """The paragraphs of a source's documents, which come in the order of their texts' hashes."""
    files = sorted(corpus.glob(f"{pattern}.jsonl.zst"))
    if not files:
        raise SystemExit(f"expected {pattern}.jsonl.zst in {corpus}, found none")
    texts = []
    for path in files:
        with io.TextIOWrapper(decompressed(path, ".zst"), encoding="utf-8") as lines:
            rows = map(json.loads, lines)
            texts += [row["text"] for row in rows if is_recent(row)]
    for text in sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest()):
        for paragraph in text.split("\n\n" if "\n\n" in text else "\n"):
            paragraph = " ".join(paragraph.split())
            if len(paragraph.split()) >= MIN_WORDS and END_OF_SENTENCE.search(paragraph):
                yield paragraph


def is_recent(row: dict) -> bool:
    """Whether a book has a year and is not too old; what is no book has none."""
    return "year" not in row or int(row["year"] or 0) >= FIRST_YEAR


if __name__ == "__main__":
    main()
