"""Checksums of what a score depends on: the model's files, its code, and ours."""

import hashlib
import json
import sys
from functools import cache
from pathlib import Path

from transformers import AutoConfig
from transformers.utils import cached_file

from modeling_gpt2scratch.common.addresses import split_revision
from modeling_gpt2scratch.common.checksums import file_sha256
from modeling_gpt2scratch.common.errors import named
from modeling_gpt2scratch.evaluation.scoring.adapters import (
    WEIGHTS,
    adapter_config,
    base_of_adapter,
)

# What decides a model's scores beside its weights.
OTHERS = (
    *("config.json", "*.py", "tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json"),
    *("added_tokens.json", "model*.index.json", "pytorch_model*.index.json"),
    *("adapter_config.json", "adapter_model*"),
    # Vocabularies of tokenizers whose files have names of their own.
    *("*.model", "*.codes", "tekken.json", "dict.txt", "emoji.json"),
)


FOLDER = Path(__file__).parents[1]  # the whole evaluation


@cache
def evaluation_code() -> str:
    """The sha256 of every Python file of the evaluation: any change of them counts."""
    return _sha256(sorted(FOLDER.rglob("*.py")))


def task_code(kind: type) -> str | None:
    """The sha256 of what a task that is not among ours may depend on, None for one of ours.

    That is the files of its class and of those that it inherits from, with all beside them.
    """
    names = {base.__module__ for base in kind.__mro__}
    libraries = sys.stdlib_module_names
    paths = [Path(sys.modules[n].__file__) for n in names if n.partition(".")[0] not in libraries]
    others = [path for path in paths if not path.is_relative_to(FOLDER)]
    beside = {file for path in others for file in path.parent.glob("*.py") if file.is_file()}
    return _sha256(sorted(beside)) if others else None


def model_code(name: str, *, trust_remote_code: bool) -> str | None:
    """The sha256 of the files beside the model's class, if they are not those of transformers.

    These are all Python files of the folder that registered it: of a package, of `--include_path`,
    or of the cache of code that came with a checkpoint; of this package, the model's four, which
    import only each other. Libraries are known by their versions instead.

    Args:
        name: a directory, or a model of the Hub.
        trust_remote_code: whether code that comes with the model may run.

    Returns:
        None for a class of transformers, and for a model that is not there.
    """
    try:
        base = base_of_adapter(name)
        repository, revision = split_revision(base or name)
        config = AutoConfig.from_pretrained(
            repository, revision=revision, trust_remote_code=trust_remote_code and base is None
        )
    except Exception:  # of many kinds; loading the model will say it
        return None
    module = sys.modules[type(config).__module__]
    package = module.__name__.partition(".")[0]
    if package == "transformers":
        return None
    pattern = f"*_{config.model_type}.py" if package == __name__.partition(".")[0] else "*.py"
    return _sha256(sorted(Path(module.__file__).parent.glob(pattern)))


def checksums_of(name: str) -> dict[str, str]:
    """The sha256 of each file of a model's weights, config, code and tokenizer, by file name.

    Of an adapter, also those of its model, as "base/NAME".

    Args:
        name: a directory, or a model of the Hub, of which the files that are in the local cache
            count: the newest commit's, if the Hub can be reached.

    Raises:
        OSError: if there is no such model, or it has no weights here.
        ValueError: if it is an adapter that cannot be loaded.
    """
    directory = _directory_of(name)
    if (base := base_of_adapter(name)) is not None:
        own = sorted({path for kind in OTHERS for path in directory.glob(kind) if path.is_file()})
        of_base = {f"base/{file}": digest for file, digest in checksums_of(base).items()}
        return {path.name: file_sha256(path) for path in own} | of_base
    weights = _weights_in(directory)
    if not weights:
        raise FileNotFoundError(f"{name}: expected {' or '.join(WEIGHTS)}, found none")
    others = {path for kind in OTHERS for path in directory.glob(kind) if path.is_file()}
    files = [*weights, *sorted(others)]
    return {str(path.relative_to(directory)): file_sha256(path) for path in files}


def hub_commit(name: str) -> str | None:
    """The commit of the Hub that a model's files in the local cache are of, None of a directory."""
    directory = _directory_of(name)
    return directory.name if directory.parent.name == "snapshots" else None


def _sha256(paths: list[Path]) -> str:
    """Of names and contents."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _weights_in(directory: Path) -> list[Path]:
    """The files of a model's weights, those that its index names among them."""
    for kind in WEIGHTS:
        found = {*directory.glob(kind)}
        for index in directory.glob(f"{kind}.index.json"):
            try:
                names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
                # An older index may lie beside a file that is whole, and is not read then.
                found |= {path for name in names if (path := directory / name).is_file()}
            except (KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(f"{index}: expected a weight_map, found {named(error)}") from error
        if found:
            return sorted(found)
    return []


def _directory_of(name: str) -> Path:
    """Where the files of a model or an adapter are, in the local cache if it is the Hub's."""
    if base_of_adapter(name) is not None:
        return adapter_config(name).parent
    if Path(name).is_dir():
        return Path(name)
    repository, revision = split_revision(name)
    return Path(cached_file(repository, "config.json", revision=revision)).parent
