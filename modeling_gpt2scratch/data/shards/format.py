"""Token shards: a data set as files of token ids, and the manifest that describes them.

A shard is a header of 256 little-endian int32 and then its tokens, little-endian:

    header[0] = 20240520   magic       header[2] = tokens in this file
    header[1] = 1          version     header[3] = vocabulary size, 0 if unknown

Tokens are uint16; a vocabulary of more than 65,536 entries takes uint32, magic 20240801, version 7.
The first three words and the token types are llm.c's, so llm.c and modded-nanogpt read our shards.
A document may run from one shard into the next: a split is one long stream of tokens in which
`<|endoftext|>` stands before each document. `manifest.json` is written last; a directory without
one is not a data set.

    python -m modeling_gpt2scratch.data.shards.format inspect|verify|convert|merge

looks at shards, checks them and exchanges them with other programs; see `shard_tools.py`.
"""

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np

from modeling_gpt2scratch.common.atomic_files import write_file, write_json

# Magic and version by the type of the tokens: those of llm.c for GPT-2 and for Llama 3.
LAYOUTS = {"<u2": (20240520, 1), "<u4": (20240801, 7)}
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
MAX_SHARD_TOKENS = 2**31 - 1  # what the header can say
MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = "gpt2scratch-shards"
MANIFEST_VERSION = 1


class ShardError(ValueError):
    """A shard or manifest that must not be trained on; the message names the file and the fault."""


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
                advice = "see python -m modeling_gpt2scratch.data.shards.format convert"
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


def token_dtype(vocab_size: int) -> str:
    """The type of a shard's tokens: uint16 for up to 65,536 entries, uint32 beyond."""
    return "<u2" if vocab_size <= 2**16 else "<u4"


def shard_header(n_tokens: int, vocab_size: int) -> np.ndarray:
    """The first 1,024 bytes of a shard, as 256 little-endian int32."""
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:4] = *LAYOUTS[token_dtype(vocab_size)], n_tokens, vocab_size
    return header


def write_shard(path: Path, tokens: np.ndarray, *, vocab_size: int) -> str:
    """Writes one shard in one step and returns the sha256 of the file."""
    tokens = np.ascontiguousarray(tokens, dtype=token_dtype(vocab_size))
    chunks = [shard_header(len(tokens), vocab_size).data, tokens.data]
    write_file(path, *chunks)
    sha256 = hashlib.sha256()
    for chunk in chunks:
        sha256.update(chunk)
    return sha256.hexdigest()


def read_shard(path: Path, *, n_tokens: int, vocab_size: int) -> np.ndarray:
    """The tokens of a shard: read-only, memory-mapped, uint16 or uint32, of shape (n_tokens,).

    Args:
        path: the shard.
        n_tokens: what the manifest says it holds.
        vocab_size: what the manifest says its ids stay below.

    Raises:
        ShardError: if the file is missing, truncated, of another format, or if header and manifest
            disagree. The ids themselves are not read; see `check_token_ids`.
    """
    try:
        header = np.fromfile(path, dtype="<i4", count=HEADER_INTS)
        n_bytes = path.stat().st_size
    except OSError as error:
        raise ShardError(f"{path}: expected a shard, found {error.strerror}") from None
    dtype = np.dtype(token_dtype(vocab_size))
    magic, version = LAYOUTS[dtype.str]
    if len(header) < HEADER_INTS or tuple(header[:2]) != (magic, version):
        raise ShardError(
            f"{path}: expected a shard with magic {magic} version {version}, "
            f"found {header[:2].tolist()}; prepare the data again"
        )
    expected_bytes = HEADER_BYTES + n_tokens * dtype.itemsize
    if n_bytes != expected_bytes:
        raise ShardError(
            f"{path}: expected {expected_bytes} bytes for {n_tokens} tokens, found {n_bytes}; "
            f"the file is truncated or was replaced, prepare the data again"
        )
    if header[2] != n_tokens or header[3] not in (0, vocab_size):
        raise ShardError(
            f"{path}: expected {n_tokens} tokens of a vocabulary of {vocab_size}, "
            f"found {header[2]} of {header[3]}; prepare the data again"
        )
    # A plain view: slicing np.memmap objects costs several times as much.
    return np.memmap(path, dtype=dtype, mode="r", offset=HEADER_BYTES).view(np.ndarray)


def check_token_ids(path: Path, tokens: np.ndarray, *, vocab_size: int) -> None:
    """Reads a whole shard once and refuses ids that the model has no embedding for.

    Raises:
        ShardError: at the first id that is not below `vocab_size`.
    """
    largest = int(tokens.max(initial=0))
    if largest >= vocab_size:
        position = int(np.argmax(tokens >= vocab_size))
        raise ShardError(
            f"{path}: expected ids below {vocab_size}, found {tokens[position]} at token "
            f"{position}; prepare the data again"
        )


if __name__ == "__main__":
    from modeling_gpt2scratch.commands.shards import main

    main()
