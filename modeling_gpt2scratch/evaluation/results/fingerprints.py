"""Which code computes a score, by its checksum: results of other code are not looked up."""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig

FOLDER = Path(__file__).parent


@cache
def evaluation_code() -> str:
    """The sha256 of every Python file beside this one: any change of them counts."""
    return _sha256(sorted(FOLDER.glob("*.py")))


def model_code(name: str, options: dict[str, Any]) -> str | None:
    """The sha256 of the files with the model's class, if they are not those of transformers.

    These are `configuration_TYPE.py`, `modeling_TYPE.py` and others of the type's name, in the
    package that registered it, or in the cache of code that came with a checkpoint. Libraries are
    known by their versions instead.

    Args:
        name: a directory, or a model of the Hub.
        options: of `from_pretrained`.

    Returns:
        None for a class of transformers, and for a model that is not there.
    """
    try:
        config = AutoConfig.from_pretrained(name, **options)
    except Exception:  # of many kinds; loading the model will say it
        return None
    module = sys.modules[type(config).__module__]
    if module.__name__.partition(".")[0] == "transformers":
        return None
    return _sha256(sorted(Path(module.__file__).parent.glob(f"*_{config.model_type}.py")))


def _sha256(paths: list[Path]) -> str:
    """Of names and contents."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
