"""Which files a model consists of, by their checksums."""

from __future__ import annotations

import hashlib
from pathlib import Path

from transformers.utils import cached_file

# What decides a model's scores. Of weights saved twice, transformers takes safetensors.
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
OTHERS = ("config.json", "*.py", "tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json")
OTHERS += ("added_tokens.json", "model*.index.json", "pytorch_model*.index.json")


def checksums_of(name: str) -> dict[str, str]:
    """The sha256 of each file of a model's weights, config, code and tokenizer, by file name.

    Args:
        name: a directory, or a model of the Hub, of which the files that are in the local cache
            count: the newest commit's, if the Hub can be reached.

    Raises:
        OSError: if there is no such model, or it has no weights here.
    """
    directory = Path(name)
    if not directory.is_dir():
        directory = Path(cached_file(name, "config.json")).parent
    weights = next((found for kind in WEIGHTS if (found := sorted(directory.glob(kind)))), [])
    if not weights:
        raise FileNotFoundError(f"{name}: expected {' or '.join(WEIGHTS)}, found none")
    others = {path for kind in OTHERS for path in directory.glob(kind) if path.is_file()}
    return {path.name: file_sha256(path) for path in [*weights, *sorted(others)]}


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, as sha256sum prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
