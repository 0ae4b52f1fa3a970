"""Where the data of the tasks is, and whether it is the official file.

With `--data_dir DIR` each task's file is looked for in DIR and the folders below it, under its
official name; nothing is asked of the Hub then. An argument of the task's own, such as
`--lambada_data`, goes before.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model_files import file_sha256

# Argument -> the names that the file may have, the official one first; `val_data` is a directory.
NAMES: dict[str, tuple[str, ...]] = {
    "lambada_data": ("lambada_test.jsonl", "lambada_test_en.jsonl"),
    "lambada_standard_data": ("lambada_test_plain_text.txt",),
    "hellaswag_data": ("hellaswag_val.jsonl", "hellaswag_val_subset_official_format.jsonl"),
    "wikitext_data": ("wiki.test.raw",),
    "wikitext2_tokens_data": ("wiki.test.tokens",),
    "ptb_data": ("ptb.test.txt",),
    "one_billion_words_data": ("news.en.heldout-00000-of-00050",),
    "enwik8_data": ("enwik8",),
    "text8_data": ("text8",),
    "cbt_data": ("CBTest", "cbt"),
    "arc_easy_data": ("ARC-Easy-Test.jsonl",),
    "piqa_data": ("valid.jsonl", "piqa_valid.jsonl"),
    "val_data": ("val",),
}
# Checksums of whole official files, by their names.
OFFICIAL_SHA256 = {
    "lambada_test.jsonl": "4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
    "lambada_test_plain_text.txt": (
        "4ab6062b68422bf2e83653d367c9765d42404f7ec21b8b59b6518b45606aaef2"
    ),
    "wiki.test.raw": "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
}


@dataclass(frozen=True)
class DataFile:
    """A local file that a task was read from."""

    name: str
    sha256: str
    is_official: bool | None  # None where no official checksum is known


def find_data(argument: str, data_dir: str) -> str:
    """The path of an argument's data in a directory, or below it.

    Raises:
        FileNotFoundError: if it is not there.
    """
    root = Path(data_dir)
    for name in NAMES[argument]:
        if (root / name).exists():
            return str(root / name)
        if found := sorted(root.rglob(name)):
            return str(found[0])
    names = " or ".join(NAMES[argument])
    raise FileNotFoundError(f"--data_dir {data_dir}: expected {names} in it, found none")


def describe_file(source: str) -> DataFile | None:
    """What a source's file is, None for a data set of the Hub or a directory."""
    path = Path(source)
    if not path.is_file():
        return None
    sha256 = file_sha256(path)
    expected = OFFICIAL_SHA256.get(path.name)
    return DataFile(path.name, sha256, None if expected is None else sha256 == expected)
