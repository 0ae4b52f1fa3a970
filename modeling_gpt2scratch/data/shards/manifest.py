"""The manifest of a data directory: which shards it holds, and how they were made.

`manifest.json` is written last; a directory without one is not a data set.
"""

import contextlib
import dataclasses
import json
from pathlib import Path

from modeling_gpt2scratch.common.atomic_files import write_json
from modeling_gpt2scratch.data.tokens.ids import token_dtype

from .format import HEADER_BYTES, ShardError

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = "gpt2scratch-shards"
MANIFEST_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ShardEntry:
    """One shard file of a split."""

    file: str  # name inside the data directory
    n_tokens: int
    sha256: str  # of the whole file


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
        shards = tuple(ShardEntry(**shard) for shard in entry["shards"])
        return cls(entry["n_tokens"], entry["n_documents"], entry["n_bytes"], shards)


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

    def content(self) -> dict:
        """What stands in `manifest.json`, as JSON values."""
        layout = {
            "format": MANIFEST_FORMAT,
            "version": MANIFEST_VERSION,
            "dtype": token_dtype(self.vocab_size),
            "header_bytes": HEADER_BYTES,
        }
        return layout | dataclasses.asdict(self)

    def save(self, directory: Path) -> None:
        """Writes `manifest.json` in one step."""
        write_json(directory / MANIFEST_NAME, self.content())

    @classmethod
    def load(cls, directory: Path, name: str = MANIFEST_NAME) -> "Manifest":
        """Reads `manifest.json`, or a copy of it under another name.

        Raises:
            ShardError: if it is missing, of another format, incomplete or not the only one.
        """
        path = directory / name
        others = cls._other_manifests(directory) if name == MANIFEST_NAME else []
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            found, advice = "none", "make one with prepare_data.py"
            if others:
                found, advice = ", ".join(others), "merge the parts of this data set first"
            elif any(directory.glob("*.bin")):
                found = "*.bin without it"
                advice = "gpt2scratch shards convert makes one"
            raise ShardError(
                f"{directory}: expected a directory with {name}, found {found}; {advice}"
            ) from None
        except PermissionError:
            raise ShardError(
                f"{path}: expected a file that you may read, found no right to; ask its owner or "
                f"change the modes of the directory and its files"
            ) from None
        except NotADirectoryError:
            raise ShardError(
                f"{directory}: expected a directory of shards, found a file; prepare_data.py makes "
                f"the directory"
            ) from None
        except (ValueError, OSError) as error:
            raise ShardError(f"{path}: expected a JSON manifest, found {error}") from None
        if others:
            raise ShardError(
                f"{directory}: expected one manifest, found {name} and {', '.join(others)}; "
                f"merge the parts, or move what belongs to another data set elsewhere"
            )
        found = (content.get("format"), content.get("version")) if isinstance(content, dict) else ()
        if found != (MANIFEST_FORMAT, MANIFEST_VERSION):
            raise ShardError(
                f"{path}: expected {MANIFEST_FORMAT} version {MANIFEST_VERSION}, found {found}; "
                f"prepare the data again"
            )
        try:
            splits = {name: Split.from_json(entry) for name, entry in content["splits"].items()}
            if "train" not in splits:
                raise KeyError("train")
            names = ("vocab_size", "end_of_text_id", "tokenizer", "arguments")
            required = {name: content[name] for name in names}
            optional = {name: content[name] for name in ("sources", "left_out") if name in content}
            return cls(splits=splits, **required, **optional)
        except (KeyError, TypeError, AttributeError) as error:
            raise ShardError(f"{path}: incomplete manifest: {error!r}") from None

    @staticmethod
    def _other_manifests(directory: Path) -> list[str]:
        """Names of files that describe shards, too."""
        names = []
        for path in sorted(directory.glob("*manifest*.json")):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                content = json.loads(path.read_text(encoding="utf-8"))
                if path.name != MANIFEST_NAME and content.get("format") == MANIFEST_FORMAT:
                    names.append(path.name)
        return names
