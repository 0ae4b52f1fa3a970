"""Task `text`: perplexity of documents of one's own, per word, per byte and in bits per byte.

Protocol `documents`: as `wikitext`, but with nothing de-tokenized, and with the text as
`prepare_data.py` reads and encodes it: the same documents of a .txt file, and no special tokens in
the text, neither those that a tokenizer adds to each text nor those that the text names. (In
lm-evaluation-harness, a text that spells `<|endoftext|>` has that token.) Bits per byte compares
models with different tokenizers.
"""

from pathlib import Path
from typing import ClassVar, Self

from .documents import Document, DocumentsTask
from .samples import SampleData, Selection, digest_of_rows


class LocalTextTask(DocumentsTask):
    """Documents of a local file."""

    protocol: ClassVar[str] = "documents"
    version: ClassVar[int] = 4
    encoding: ClassVar[dict[str, bool]] = {
        "add_special_tokens": False,
        "split_special_tokens": True,
    }
    metrics: ClassVar[dict[str, bool]] = {
        "word_perplexity": False,
        "byte_perplexity": False,
        "bits_per_byte": False,
    }
    data: ClassVar[SampleData] = SampleData(
        argument="text_data",
        file=".jsonl with a field `text`, or a file that prepare_data.py reads",
        is_own=True,
    )

    @classmethod
    def load(cls, selection: Selection) -> Self:
        """The first `selection.limit` documents.

        Args:
            selection: of a .jsonl file with a document in the field `text` of each line; or a file
                that `prepare_data.py` reads, as a .txt file with <|endoftext|> between documents.

        Raises:
            ValueError: for a line that is not as above, or no document with text.
        """
        from modeling_gpt2scratch.data.sources.local_files import is_readable, read_documents

        source = cls.data.source(selection)
        path = Path(source)
        if path.suffix != ".jsonl" and path.is_file() and is_readable(path.name):
            texts = [text for _, text in read_documents(path)]
        else:
            rows = cls.data.rows(source, columns={"text": str}, limit=None)
            texts = [row["text"] for _, row in rows]
        texts = [text for text in texts if text.strip()][: selection.limit]
        if not texts:
            raise ValueError(f"{source}: expected at least one document with text, found none")
        documents = [Document(text, len(text.split()), len(text.encode())) for text in texts]
        return cls(documents, digest_of_rows(texts))

    @property
    def data_status(self) -> None:
        """None: of one's own documents there are no official ones."""
        return None


TASKS: dict[str, type[DocumentsTask]] = {"text": LocalTextTask}
