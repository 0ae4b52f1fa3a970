"""Rows of a benchmark: from a local .jsonl file, or from a data set of the Hub."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path


def read_rows(
    source: str, *, columns: dict[str, type], split: str, limit: int | None, revision: str | None
) -> Iterator[tuple[str, dict]]:
    """Each of the first `limit` rows, after the name of its place, for an error message.

    Args:
        source: a .jsonl file, or the name of a Hub data set.
        columns: what a row must have, with its type; a file may have others beside them.
        split: of the Hub data set.
        limit: rows to read, None for all.
        revision: commit of the Hub data set, None for the newest.

    Raises:
        ValueError: for a line or a row that is not as above.
    """
    path = Path(source)
    is_file = path.suffix == ".jsonl" or path.is_file()
    rows = _read_jsonl(path, limit) if is_file else _read_hub(source, split, limit, revision)
    for place, row in rows:
        if not isinstance(row, dict):
            raise ValueError(
                f"{place}: expected an object with {', '.join(columns)}, found {type(row).__name__}"
            )
        for name, kind in columns.items():
            if not isinstance(row.get(name), kind):
                raise ValueError(
                    f"{place}: expected an object with a {kind.__name__} `{name}`, "
                    f"found {sorted(row)}"
                )
        yield place, row


def _read_jsonl(path: Path, limit: int | None) -> Iterator[tuple[str, object]]:
    """What is in the first `limit` lines."""
    with path.open("rb") as lines:
        for number, line in enumerate(islice(lines, limit), start=1):
            place = f"{path}, line {number}"
            try:
                yield place, json.loads(line)
            except ValueError as error:
                raise ValueError(f"{place}: expected JSON: {error}") from error


def _read_hub(
    name: str, split: str, limit: int | None, revision: str | None
) -> Iterator[tuple[str, object]]:
    """The first `limit` rows of a data set."""
    from datasets import load_dataset  # takes a second, which a local file need not pay

    rows = load_dataset(name, split=split, revision=revision)
    for number, row in enumerate(islice(rows, limit), start=1):
        yield f"{name}, row {number}", row
