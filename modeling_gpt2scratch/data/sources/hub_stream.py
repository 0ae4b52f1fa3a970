"""A data set of the Hub whose files only the `datasets` library can read, streamed."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.common.hub_requests import unreadable
from modeling_gpt2scratch.data.tokens.text import well_formed

from .filters import Condition
from .rows import BadRows, RowRules, behind


@dataclass(frozen=True)
class HubStream:
    """A data set in the place of a file; nothing of it is stored."""

    repository: str
    subset: str | None
    text_column: str
    revision: str | None = None
    n_bytes: int = 0  # unknown, and never on the disk

    @property
    def name(self) -> str:
        """In messages and records."""
        return f"{self.repository}/{self.subset}" if self.subset else self.repository

    def fetch(self, directory: Path) -> Path:
        """Nothing is downloaded."""
        return directory

    def documents(
        self,
        where: Sequence[Condition] = (),
        *,
        skip_rows: int = 0,
        bad_rows: BadRows | None = None,
    ) -> Iterator[tuple[int, str]]:
        """Streams the documents of the split `train`.

        Args:
            where: conditions on the rows, checked before their text is looked at.
            skip_rows: rows at the beginning to leave out, such as an earlier call has counted.
            bad_rows: what becomes of rows without text; without it, the first is an error.

        Yields:
            How many rows are behind, the skipped ones included, and the document. Empty documents
            are counted and left out.

        Raises:
            SourceError: if the data set or the column is not there, or reading fails.
        """
        # Only this source needs the library, which takes a second to import.
        import datasets

        rules = RowRules(text_column=self.text_column, where=tuple(where))
        bad_rows = bad_rows or BadRows()
        n_rows = skip_rows
        # Never a local directory of that name, nor what an earlier download left in a cache.
        source, empty = f"hf://datasets/{self.repository}", tempfile.TemporaryDirectory()
        options = {"split": "train", "streaming": True, "revision": self.revision}
        try:
            rows = datasets.load_dataset(source, self.subset, cache_dir=empty.name, **options)
            # An iterator that is only dropped may leave threads that keep the process from ending.
            with contextlib.closing(iter(rows.skip(skip_rows))) as iterator:
                for n_rows, row in enumerate(iterator, start=skip_rows + 1):
                    text = rules.document(row, f"{self.repository}: row {n_rows}")
                    if isinstance(text, SourceError):
                        bad_rows.take(text)
                    elif text:
                        yield n_rows, well_formed(text)
        except SourceError:
            raise
        except Exception as error:  # of the network, the file system, or any file format
            raise unreadable(f"{self.repository}{behind(n_rows)}", error) from error
        finally:
            empty.cleanup()
