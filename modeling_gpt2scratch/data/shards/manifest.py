"""The manifest of a data directory: which shards it holds, and how they were made.

`manifest.json` is written last; a directory without one is not a data set.
"""

import contextlib
import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

from modeling_gpt2scratch.common.atomic_files import write_json
from modeling_gpt2scratch.common.json_lines import unique_keys
from modeling_gpt2scratch.common.output_directory import Marker
from modeling_gpt2scratch.data.tokens.ids import token_dtype

from .format import HEADER_BYTES, SUFFIXES, ShardError
from .manifest_checks import (
    ADOPTED_FORMAT,
    AGAIN,
    OWN_FORMAT,
    VERSION,
    ManifestError,
    check_content,
)

PART_PATTERN = "manifest.part-*.json"  # of the tasks of a pipeline, until they are merged
MANIFEST_NAME = "manifest.json"
# Of a directory that may be replaced; one that was adopted holds other programs' files.
DATA_MARKER = Marker(MANIFEST_NAME, OWN_FORMAT, VERSION)
MAX_METADATA_BYTES = 2**26  # of a manifest, and of a tokenizer; the largest known have half of it


@dataclasses.dataclass(frozen=True)
class FileLayout:
    """Where the tokens of another program's file stand."""

    format: str  # as in `token_files.py`
    dtype: str  # of the tokens, as numpy calls it
    header_bytes: int  # before the first token


@dataclasses.dataclass(frozen=True)
class ShardEntry:
    """One shard file of a split."""

    file: str  # name inside the data directory
    n_tokens: int
    sha256: str  # of the whole file
    layout: FileLayout | None = None  # None for our own format

    @classmethod
    def from_json(cls, entry: dict) -> "ShardEntry":
        """The shard of an entry in a manifest."""
        names = [field.name for field in dataclasses.fields(FileLayout)]
        layout = FileLayout(*(entry[name] for name in names)) if "format" in entry else None
        return cls(entry["file"], entry["n_tokens"], entry["sha256"], layout)

    def content(self) -> dict:
        """What stands in a manifest, as JSON values."""
        entry = {"file": self.file, "n_tokens": self.n_tokens, "sha256": self.sha256}
        return entry | (dataclasses.asdict(self.layout) if self.layout else {})


@dataclasses.dataclass(frozen=True)
class Split:
    """One split: its totals and its shards, in reading order."""

    n_tokens: int  # <|endoftext|> included
    n_documents: int
    n_bytes: int  # UTF-8 bytes of the documents
    shards: tuple[ShardEntry, ...]

    @classmethod
    def from_json(cls, entry: dict) -> "Split":
        """The split of an entry in a manifest, or in the progress of its preparation."""
        shards = tuple(ShardEntry.from_json(shard) for shard in entry["shards"])
        return cls(entry["n_tokens"], entry["n_documents"], entry["n_bytes"], shards)

    def content(self) -> dict:
        """What stands in a manifest, as JSON values."""
        return dataclasses.asdict(self) | {"shards": [shard.content() for shard in self.shards]}


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a data directory holds and how it was made."""

    vocab_size: int
    end_of_text_id: int
    tokenizer: dict[str, str]  # "name" and "fingerprint"
    splits: dict[str, Split]  # "train", and "val" unless nothing was held out
    arguments: dict  # of the preparation
    sources: list[dict] = dataclasses.field(default_factory=list)  # what was read
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)  # documents, by reason
    held_out: dict = dataclasses.field(default_factory=dict)  # "split": "documents" or "tail"

    @property
    def shards(self) -> list[ShardEntry]:
        """Those of all splits."""
        return [shard for split in self.splits.values() for shard in split.shards]

    @property
    def vocabulary(self) -> tuple[int, int, str]:
        """What decides which token an id stands for, as `vocabulary_of` says it of a tokenizer."""
        return self.vocab_size, self.end_of_text_id, self.tokenizer["fingerprint"]

    @property
    def is_adopted(self) -> bool:
        """Whether the shards are other programs' files, each with its layout."""
        return any(shard.layout for shard in self.shards)

    def content(self) -> dict:
        """What stands in `manifest.json`, as JSON values."""
        layout = {"dtype": token_dtype(self.vocab_size), "header_bytes": HEADER_BYTES}
        return {
            "format": ADOPTED_FORMAT if self.is_adopted else OWN_FORMAT,
            "version": VERSION,
            **({} if self.is_adopted else layout),
            **dataclasses.asdict(self),
            "splits": {name: split.content() for name, split in self.splits.items()},
        }

    def save(self, directory: Path) -> None:
        """Writes `manifest.json` in one step."""
        write_json(directory / MANIFEST_NAME, self.content())

    @classmethod
    def load(cls, directory: Path, name: str = MANIFEST_NAME) -> "Manifest":
        """Reads `manifest.json`, or a copy of it under another name; nobody reads it otherwise.

        Raises:
            ManifestError: if its content cannot be true.
            ShardError: if it is missing, cannot be read or is not the only one.
        """
        path = directory / name
        others = _other_manifests(directory) if name == MANIFEST_NAME else []
        try:
            content = _read_json(path)
        except FileNotFoundError:
            raise ShardError(_without_manifest(directory, name, others)) from None
        except PermissionError:
            raise ShardError(
                f"{path}: expected permission to read it, found none; ask its owner or "
                f"change the modes of the directory and its files"
            ) from None
        except NotADirectoryError:
            raise ShardError(
                f"{directory}: expected a directory of shards, found a file; prepare_data.py makes "
                f"the directory"
            ) from None
        except (ValueError, OSError, RecursionError) as error:
            raise ShardError(f"{path}: expected a JSON manifest, found {error}; {AGAIN}") from None
        if others:
            raise ShardError(
                f"{directory}: expected one manifest, found {name} and {', '.join(others)}; "
                f"merge the parts, or move what belongs to another data set elsewhere"
            )
        found = (content.get("format"), content.get("version")) if isinstance(content, dict) else ()
        if found not in [(OWN_FORMAT, VERSION), (ADOPTED_FORMAT, VERSION)]:
            raise ManifestError(
                f"{path}: expected {OWN_FORMAT} version {VERSION}, found {found}; prepare the data "
                f"again"
            )
        try:
            check_content(content)
        except ManifestError as error:
            raise ManifestError(f"{path}: {error}") from None
        known = {field.name for field in dataclasses.fields(cls)} & {*content}
        splits = {name: Split.from_json(entry) for name, entry in content["splits"].items()}
        return cls(**{key: content[key] for key in known} | {"splits": splits})


def _without_manifest(directory: Path, name: str, others: list[str]) -> str:
    """What to do about a directory that has no manifest."""
    found, advice = "none", "make one with prepare_data.py"
    files = [path for suffix in SUFFIXES for path in directory.glob(f"*{suffix}")]
    if others:
        found, advice = ", ".join(others), "merge the parts of this data set first"
    elif files:
        found = f"{min(files).name} and others" if len(files) > 1 else files[0].name
        found += " without it"
        advice = f"`gpt2scratch shards adopt {shlex.quote(str(directory))} --tokenizer gpt2` writes"
        advice += " it, if GPT-2's tokenizer made these files"
    return f"{directory}: expected a directory with {name}, found {found}; {advice}"


def _other_manifests(directory: Path) -> list[str]:
    """Names of files that describe shards, too."""
    names = []
    for path in sorted(directory.glob("manifest*.json")):
        with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
            is_ours = _read_json(path).get("format") in (OWN_FORMAT, ADOPTED_FORMAT)
            if is_ours and path.name != MANIFEST_NAME:
                names.append(path.name)
    return names


def _read_json(path: Path) -> Any:
    """The content of a regular file of a sensible size, in which no key stands twice."""
    if path.stat() and not path.is_file():
        raise ValueError("something that is not a file")
    if path.stat().st_size > MAX_METADATA_BYTES:
        raise ValueError(f"{path.stat().st_size:,} bytes, more than {MAX_METADATA_BYTES:,}")
    content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique_keys)
    json.dumps(content, ensure_ascii=False).encode()  # fails at half a surrogate pair
    return content
