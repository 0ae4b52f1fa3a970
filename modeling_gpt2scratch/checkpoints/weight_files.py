"""Files of tensors: the one place that knows how reading them goes wrong.

safetensors, torch and transformers each raise errors of their own at a file that is cut, empty, a
Git-LFS pointer or something else, and few of them name it. Here they become one line that does, and
says what to do.
"""

import contextlib
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.utils import cached_file

from modeling_gpt2scratch.common.addresses import split_revision
from modeling_gpt2scratch.common.errors import (
    MendableError,
    content_instead,
    json_problem,
    named,
    one_line,
)

CONFIG_NAME, ADAPTER_NAME = "config.json", "adapter_config.json"
CLEAR = (CONFIG_NAME, "trust_remote_code")  # an error that says so needs no more
CUSTOM_CODE = "contains custom code"  # of transformers, which says so in three sentences
NOT_OF_A_FILE = (OSError, MemoryError, torch.OutOfMemoryError)
TENSOR_FILES = ("*.safetensors", "*.bin")  # of a model's directory


class WeightsError(MendableError, ValueError):
    """Tensors that cannot be read; the message names the file."""


def open_tensors(path: Path, *, framework: str = "pt"):
    """An open safetensors file, as `safe_open` returns it; its header is read and checked.

    Raises:
        OSError: if there is no such file.
        WeightsError: if it is anything but a whole safetensors file.
    """
    try:
        return safe_open(path, framework=framework)
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        found = content_instead(path) or f"{reason}; copy or download it again"
        raise WeightsError(f"{path}: expected a safetensors file, found {found}") from error


def conversion_of(path: Path) -> str:
    """The command that makes a model of another program's checkpoint; empty for anything else.

    Args:
        path: the checkpoint, or the directory that it is in.
    """
    found = [path] if path.is_file() else sorted(path.glob("*.pt"))
    directions = {".pt": "from-nanogpt", ".bin": "from-llmc"}
    if not found or found[0].suffix not in directions:
        return ""
    return f"`gpt2scratch convert {directions[found[0].suffix]} {found[0]} OUT` makes one"


@contextlib.contextmanager
def naming_damaged_files(name: str | Path) -> Iterator[None]:
    """Says which file of a model is damaged, if that is why the block raises.

    Where the tensors can be read and a library refuses the model, it is its configuration.

    Args:
        name: from which the block loads the model, a directory or a repository of the Hub.

    Raises:
        WeightsError: in the place of the error of a library.
    """
    try:
        yield
    except Exception as error:  # transformers passes on whatever its readers raise
        if problem := _damage(name, error):
            raise WeightsError(problem) from error
        raise


def not_finite(model: nn.Module) -> str | None:
    """The name of the first parameter, or part of one here, with a number that is not finite."""
    for name, parameter in model.named_parameters():
        part = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if not torch.isfinite(part).all():
            return name
    return None


def unpickling_problem(error: Exception) -> str:
    """In words, why `torch.load` did not take a file without executing code of it."""
    if pickled := re.search(r"GLOBAL (\S+)", str(error)):
        return f"a pickled {pickled[1]}, which could execute code"
    # Before its reason stands a page that advises to execute the code.
    reason = re.search(r"WeightsUnpickler error:\s*(.*)", str(error))
    return f"what torch cannot read: {reason[1].strip()}" if reason else named(error)


def cut_archive(path: Path) -> str | None:
    """What is wrong with a file that begins as a zip archive, as those of torch do."""
    with open(path, "rb") as file:
        is_cut = file.read(2) == b"PK" and not zipfile.is_zipfile(file)
    return "a zip archive without its end; copy or download it again" if is_cut else None


def _damage(name: str | Path, error: Exception) -> str | None:
    """What is wrong with the first damaged file of a model; None if all of them can be opened."""
    directory = Path(name)
    if not directory.is_dir():
        try:
            repository, revision = split_revision(str(name))
            path = cached_file(repository, CONFIG_NAME, revision=revision, local_files_only=True)
            directory = Path(path).parent
        except Exception:  # of many kinds; then there are no files that could be damaged
            return None
    files = sorted(path for kind in TENSOR_FILES for path in directory.glob(kind))
    for path in files:
        try:
            if path.suffix == ".safetensors":
                open_tensors(path)
            elif found := content_instead(path) or cut_archive(path):
                return f"{path}: expected tensors, found {found}"
        except WeightsError as damage:
            return str(damage)
        except OSError as damage:
            return f"{path}: cannot be read: {one_line(damage)}"
    for cause in (error, error.__cause__):
        if files and isinstance(cause, pickle.UnpicklingError):
            found = unpickling_problem(cause)
            return f"{files[0]}: expected tensors and plain values, found {found}"
    return _config_problem(directory / CONFIG_NAME, error)


def _config_problem(path: Path, error: Exception) -> str | None:
    """Names the configuration, of which libraries speak without its name; None for other errors."""
    message = str(error)
    if CUSTOM_CODE in message and path.is_file():
        return (
            f"{path}: expected a model that transformers knows, found one with code of its own; to "
            f"run it, name this model and add --trust_remote_code"
        )
    if isinstance(error, ImportError):  # of a quantization, whose message says what to install
        return f"{path}: {one_line(error)}"
    is_clear = message.startswith("expected ") or any(word in message for word in CLEAR)
    if is_clear or isinstance(error, NOT_OF_A_FILE) or not path.is_file():
        return None
    found = json_problem(path) or named(error)
    return f"{path}: expected the configuration of a model that fits its weights, found {found}"
