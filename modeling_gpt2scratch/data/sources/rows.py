"""Rows of any format: which of them are documents, and what becomes of those that are damaged.

A reader yields the number of rows so far and the text of those that satisfy the conditions. What is
wrong with a single row is yielded in the place of its text, so that reading can go on behind it.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from modeling_gpt2scratch.common.console import tell
from modeling_gpt2scratch.common.errors import SourceError

from .filters import Condition, shown_columns

# Rows so far, and the last one's text or what is wrong with it.
Rows = Iterator[tuple[int, str | SourceError]]
CHUNK_BYTES = 1 << 20  # read from a file, or turned into Python's strings, at a time
MAX_ROW_BYTES = 1 << 27  # of a line or a cell; where only characters can be counted, characters
MAX_TEXT_BYTES = 1 << 30  # of a plain text between two marks, or of joined rows
N_SHOWN = 5  # rows that are named before they are only counted


@dataclass(frozen=True, kw_only=True)
class RowRules:
    """Which rows of a table are documents, and where their text is."""

    text_column: str
    where: tuple[Condition, ...] = ()

    def document(
        self, row: object, place: str, *, seen_as: Mapping[str, object] | None = None
    ) -> str | SourceError | None:
        """The row's text, or what is wrong with the row; None if a condition leaves it out.

        Args:
            row: values by column.
            place: file and row, for messages.
            seen_as: the row as the conditions see it, if that differs.
        """
        try:
            # What has no columns has no text, either, and that is what the message says.
            if self.where and isinstance(row, dict):
                seen_as = row if seen_as is None else seen_as
                if not all(condition.holds(seen_as, place) for condition in self.where):
                    return None
            return self._text_of(row, place)
        except SourceError as error:
            return error

    def no_text(self, place: str, found: str) -> SourceError:
        """The error for a row or a file without the text column."""
        return SourceError(
            f"{place}: expected text in column {self.text_column!r}, found {found}; "
            "see --text_column"
        )

    def other_type(self, place: str, found: str) -> SourceError:
        """The error for a text column that holds something else."""
        return SourceError(
            f"{place}: expected text in column {self.text_column!r}, found {found} there; write "
            f"one text per row first, or name another --text_column"
        )

    def _text_of(self, row: object, place: str) -> str:
        """The row's text; SourceError if there is none."""
        text = row.get(self.text_column) if isinstance(row, dict) else None
        if isinstance(text, str):
            return text
        if not isinstance(row, dict):
            raise SourceError(
                f"{place}: expected one JSON object per line, found a value of type "
                f"{type(row).__name__}"
            )
        if self.text_column not in row:
            raise self.no_text(place, shown_columns(row))
        if text is None:
            raise SourceError(
                f"{place}: expected text in column {self.text_column!r}, found null; "
                f'--where "{self.text_column} != null" leaves such rows out'
            )
        raise self.other_type(place, f"a value of type {type(text).__name__}")


@dataclass(frozen=True, kw_only=True)
class Reading(RowRules):
    """What is asked of a reader; `name` stands for the file in messages."""

    path: Path
    name: str
    skip_rows: int = 0
    by_lines: bool = False


class BadRows:
    """What `--on_bad_row` says of rows that cannot be read: the first stops, or all are counted.

    Args:
        policy: "stop" or "skip".
        count: of rows that were left out before.
        named: messages that were shown in another pass over the text, to which new ones are added.
    """

    def __init__(self, policy: str = "stop", count: int = 0, named: set[str] | None = None):
        self._named = set() if named is None else named
        self._stops = policy == "stop"
        self._n_shown = 0
        self.count = count

    def take(self, error: SourceError) -> None:
        """Raises the error, or counts its row, of which the first few are named on the screen."""
        if self._stops:
            raise error
        self.count += 1
        self._n_shown += 1
        if self._n_shown <= N_SHOWN and str(error) not in self._named:
            self._named.add(str(error))
            more = "; further ones are only counted" if self._n_shown == N_SHOWN else ""
            tell(f"left out: {error}{more}", file=sys.stderr)


def behind(n_rows: int) -> str:
    """Where in a file an error came up, for the end of a sentence; nothing at its beginning."""
    return f" (behind row {n_rows})" if n_rows else ""


def not_utf8(place: str, byte: int) -> SourceError:
    """The error for a byte that no UTF-8 has at its place."""
    return SourceError(f"{place}: expected UTF-8, found byte {byte:#04x}; convert the file first")


def too_long(place: str, limit: int = MAX_ROW_BYTES, hint: str = "") -> SourceError:
    """The error for a row or a text that would fill the memory."""
    return SourceError(
        f"{place}: expected at most {limit >> 20} MiB, found more; {hint}make several documents "
        f"of it"
    )
