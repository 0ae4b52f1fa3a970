"""Task `text`: perplexity of documents of one's own, per word, per byte and in bits per byte.

Protocol `documents`: as `wikitext`, but with nothing de-tokenised. Bits per byte compares models
with different tokenizers.
"""

from __future__ import annotations

import hashlib
from typing import ClassVar, Self

from .documents import Document, DocumentsTask
from .samples import SampleData, Selection

SEPARATOR = "<|endoftext|>"


class LocalTextTask(DocumentsTask):
    """Documents of a local file."""

    protocol: ClassVar[str] = "documents"
    metrics: ClassVar[dict[str, bool]] = {
        "word_perplexity": False,
        "byte_perplexity": False,
        "bits_per_byte": False,
    }
    data: ClassVar[SampleData] = SampleData(
        argument="text_data", file="text.txt or documents.jsonl", is_own=True
    )

    @classmethod
    def load(cls, selection: Selection) -> Self:
        """The first `selection.limit` documents."""
        return cls.from_source(cls.data.source(selection), limit=selection.limit)

    @classmethod
    def from_source(cls, source: str, *, limit: int | None) -> Self:
        """The first `limit` documents.

        Args:
            source: a .jsonl file with a document in the field `text` of each line, or a .txt file
                with <|endoftext|> between documents.
            limit: documents to read, None for all.

        Raises:
            ValueError: for a line that is not as above, or no document with text.
        """
        texts = [row["text"] for _, row in cls.data.rows(source, columns={"text": str}, limit=None)]
        if source.endswith(".txt"):
            texts = "\n".join(texts).split(SEPARATOR)
        texts = [text for text in texts if text.strip()][:limit]
        if not texts:
            raise ValueError(f"{source}: expected at least one document with text, found none")
        digest = hashlib.sha256(SEPARATOR.join(texts).encode())
        documents = [Document(text, len(text.split()), len(text.encode())) for text in texts]
        return cls(documents, digest.hexdigest())

    @property
    def data_status(self) -> None:
        """None: of one's own documents there are no official ones."""
        return None


TASKS: dict[str, type[DocumentsTask]] = {"text": LocalTextTask}
