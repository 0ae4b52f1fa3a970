"""Checkpoints: a model directory for everybody, plus the optimizer's state for going on.

`OUTPUT_DIR/checkpoint-N/` is what `save_pretrained` writes, with two more files. It appears under
its name only when it is complete. Nothing is pickled. The state of the data order, of the learning
rate and of dropout is not saved, because all three are functions of the step.
"""

import json
import os
from collections import defaultdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file
from torch import nn

from .atomic_files import new_directory, new_files, write_json
from .tokenization import save_tokenizer

CHECKPOINT_PREFIX = "checkpoint-"
STATE_NAME = "training_state.json"
OPTIMIZER_NAME = "optimizer.safetensors"
WEIGHTS_NAME = "model.safetensors"


class CheckpointError(ValueError):
    """A checkpoint that is missing or does not fit this run."""


def save_model(model: nn.Module, tokenizer, directory: Path) -> None:
    """Model and tokenizer as `from_pretrained` reads them, each file complete or not there."""
    with new_files(directory) as partial:
        _save_pretrained(model, tokenizer, partial)
        open_to_readers(partial)


def save_checkpoint(
    output_dir: Path,
    *,
    model: nn.Module,
    tokenizer,
    optimizer: torch.optim.Optimizer,
    state: dict,
) -> Path:
    """Writes `checkpoint-N` for N = state["step"] in one step and returns its path.

    Args:
        output_dir: of the run.
        model: without any wrapper.
        tokenizer: of the data.
        optimizer: the torch optimizer itself.
        state: JSON values that a resumed run needs or checks.

    Raises:
        OSError: if the disk is full; older checkpoints are untouched.
    """
    path = output_dir / f"{CHECKPOINT_PREFIX}{state['step']}"
    with new_directory(path) as directory:
        _save_pretrained(model, tokenizer, directory)
        try:
            save_file(_optimizer_tensors(model, optimizer), directory / OPTIMIZER_NAME)
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from error
        write_json(directory / STATE_NAME, state)
        open_to_readers(directory)
    return path


def find_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint of a run, or `directory` itself if it is one."""
    if (directory / STATE_NAME).is_file():
        return directory
    steps = [
        int(path.name.removeprefix(CHECKPOINT_PREFIX))
        for path in directory.glob(f"{CHECKPOINT_PREFIX}*")
        if path.name.removeprefix(CHECKPOINT_PREFIX).isdecimal() and (path / STATE_NAME).is_file()
    ]
    return directory / f"{CHECKPOINT_PREFIX}{max(steps)}" if steps else None


def load_state(checkpoint: Path, *, expected: dict) -> dict:
    """The saved state, after checking that it continues the same run.

    Args:
        checkpoint: from `find_checkpoint`.
        expected: what must not have changed since; a part of the state.

    Raises:
        CheckpointError: if it cannot be read, or at the first value that differs.
    """
    path = checkpoint / STATE_NAME
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be loaded: {error}") from error
    for key, value in expected.items():
        if state.get(key) != value:
            raise CheckpointError(
                f"{checkpoint}: expected {key} = {value} as asked for now, found "
                f"{state.get(key)}; resume with the same, or start a new run"
            )
    return state


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Reads the weights into a model without any wrapper."""
    try:
        load_model(model, checkpoint / WEIGHTS_NAME)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint / WEIGHTS_NAME}: cannot be loaded: {error}") from error


def load_optimizer(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Reads the moments back; learning rate and decay stay as the optimizer was made."""
    path = checkpoint / OPTIMIZER_NAME
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be loaded: {error}") from error
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    number_of = {parameter: number for number, parameter in enumerate(parameters)}
    named = dict(model.named_parameters())
    state: dict[int, dict] = defaultdict(dict)
    for key, tensor in tensors.items():
        name, _, moment = key.rpartition(".")
        state[number_of[named[name]]][moment] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": dict(state), "param_groups": groups})


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """The optimizer's tensors by name: parameter, a dot, and what it is (`exp_avg`, `step`)."""
    return {
        f"{name}.{moment}": tensor
        for name, parameter in model.named_parameters()
        for moment, tensor in optimizer.state[parameter].items()
    }


def _save_pretrained(model: nn.Module, tokenizer, directory: Path) -> None:
    """`save_pretrained` of both."""
    try:
        model.save_pretrained(directory)
    except SafetensorError as error:
        raise OSError(f"{directory}: {error}") from error
    save_tokenizer(tokenizer, directory)


def open_to_readers(directory: Path) -> None:
    """Gives files the modes of the user's umask; safetensors lets nobody but the owner read."""
    umask = os.umask(0)
    os.umask(umask)
    for file in directory.iterdir():
        file.chmod(0o666 & ~umask)
