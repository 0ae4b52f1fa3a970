"""Adapters of PEFT: the model that one was trained on, and the adapter put on it."""

import difflib
import functools
import json
import os
import sys
from pathlib import Path

from huggingface_hub import constants
from transformers import PreTrainedModel
from transformers.utils import cached_file, is_peft_available

from modeling_gpt2scratch.checkpoints.weight_files import (
    ADAPTER_NAME,
    CONFIG_NAME,
    WeightsError,
    naming_damaged_files,
)
from modeling_gpt2scratch.common.addresses import redacted, split_revision
from modeling_gpt2scratch.common.console import tell
from modeling_gpt2scratch.common.errors import named

# Of a whole model. Of weights saved twice, transformers takes safetensors.
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
PROMPT_HINT = "leave it out: a prompt of trained vectors cannot be merged into a model"
PROMPT_KEY = "num_virtual_tokens"  # in the configurations of such prompts alone
MERGE_HINT = "merge the adapter into its model first (PeftModel.merge_and_unload)"


def adapter_config(name: str) -> Path | None:
    """The file that says that `name` is an adapter; None if it is a model or not there.

    Args:
        name: a directory, or a repository of the Hub, perhaps with @REVISION.
    """
    if os.path.exists(name):
        path = Path(name, ADAPTER_NAME)
        return path if path.is_file() else None
    return _adapter_config_of_hub(name)


def base_of_adapter(name: str) -> str | None:
    """The model that an adapter was trained on; None if `name` is no adapter.

    A path that leads nowhere from here is taken from the adapter's own directory.

    Raises:
        ValueError: if there is no such model, no peft to load the adapter, or a whole model beside
            it in a directory, on which transformers would put it, be it merged already or not.
    """
    path = adapter_config(name)
    if path is None:
        return None
    weights = sorted(file.name for kind in WEIGHTS for file in path.parent.glob(kind))
    if weights and Path(name).is_dir() and path.with_name(CONFIG_NAME).is_file():
        raise ValueError(
            f"{name}: expected a model or an adapter, found both; move {ADAPTER_NAME} away to take "
            f"the model, or {weights[0]} to take the adapter on its own model"
        )
    if not is_peft_available():
        raise ValueError(
            f"expected peft for the adapter {name}, found it not installed; pip install peft, or "
            f"{MERGE_HINT}"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        base, revision = str(config["base_model_name_or_path"]), config.get("revision")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected base_model_name_or_path, found {named(error)}; {MERGE_HINT}"
        ) from error
    for place in (Path(base), path.parent / base):
        if (place / CONFIG_NAME).is_file():
            return str(place)
    if base.startswith((".", "/", "~")):
        raise ValueError(
            f"{path}: expected the adapter's model in {base}, found none relative to the current "
            f"directory or to the adapter; correct the path, or {MERGE_HINT}"
        )
    return f"{base}@{revision}" if revision else base


def add_adapter(model: PreTrainedModel, name: str) -> None:
    """Puts an adapter on the model that it was trained on.

    Raises:
        ValueError: if it is damaged, or made for another model.
    """
    misfit = f"expected the adapter {name} to fit {type(model).__name__}, found"
    config = adapter_config(name)
    is_prompt = config is not None and PROMPT_KEY in config.read_text(encoding="utf-8")
    remedy = PROMPT_HINT if is_prompt else MERGE_HINT
    try:
        with naming_damaged_files(name):
            repository, revision = split_revision(name)
            options = {} if repository == name else {"adapter_kwargs": {"revision": revision}}
            report = model.load_adapter(repository, **options)
    except WeightsError:
        raise
    except Exception as error:  # of many kinds, from what peft finds in its files
        raise ValueError(f"{misfit} {named(error)}; {remedy}") from error
    if report.missing_keys or report.unexpected_keys:
        found = [*sorted(report.missing_keys)[:1], *sorted(report.unexpected_keys)[:1]]
        raise ValueError(f"{misfit} other tensors: {' and '.join(found)}; {remedy}")


@functools.cache  # each request may be made again for half a minute where there is no network
def _adapter_config_of_hub(name: str) -> Path | None:
    """As `adapter_config`, for a name that is no directory here."""
    parent = Path(name).parent
    if "/" in name and parent.is_dir():  # a directory whose name is mistyped?
        near = difflib.get_close_matches(Path(name).name, os.listdir(parent), n=1)
        hint = f" (did you mean {parent / near[0]}?)" if near else ""
        tell(
            f"{name}: no directory of this name{hint}; asking {redacted(constants.ENDPOINT)}",
            file=sys.stderr,
        )
    options = dict.fromkeys(
        (
            "_raise_exceptions_for_gated_repo",
            "_raise_exceptions_for_missing_entries",
            "_raise_exceptions_for_connection_errors",
        ),
        False,
    )
    try:
        repository, revision = split_revision(name)
        path = cached_file(repository, ADAPTER_NAME, revision=revision, **options)
    except (OSError, ValueError):  # no such repository; loading will say it
        return None
    return Path(path) if path else None
