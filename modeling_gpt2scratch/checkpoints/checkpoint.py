"""Checkpoints: a model directory for everybody, plus the optimizer's state for going on.

`OUTPUT_DIR/checkpoint-N/` is what `save_pretrained` writes, with the optimizer's tensors in the
folder `optimizer`, the state of the run as JSON, and the checksums of all of it. It appears under
its name only when it is complete (see `writer`), and `OUTPUT_DIR/latest` names the one written
last. Nothing is pickled. The state of the data order, of the learning rate and of dropout is not
saved, because all three are functions of the step.

Weights are whole, in one file, however many processes shared them. The optimizer's tensors are in
one file if every process had all of them, or if DeepSpeed kept them, and otherwise in one file per
process, of slices. Any number of processes reads either. They have a folder of their own because
programs that serve models take every `*.safetensors` beside a `config.json` for weights.
"""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from modeling_gpt2scratch.common.atomic_files import new_files
from modeling_gpt2scratch.common.checksums import CHECKSUMS_NAME, damage
from modeling_gpt2scratch.common.console import warn
from modeling_gpt2scratch.common.errors import MendableError
from modeling_gpt2scratch.data.tokens.tokenizer import save_tokenizer
from modeling_gpt2scratch.distributed.zero_state import (
    is_zero,
    load_whole_state,
    optimized_parameters,
    set_weight,
)

from .retention import STATE_NAME, checkpoints_by_step, latest_step
from .sliced_tensors import SlicedTensors, own_slice
from .weight_files import WeightsError, open_tensors

OPTIMIZER_FOLDER = "optimizer"
WEIGHTS_NAME = "model.safetensors"
SHOWN_CHARACTERS = 200  # of a value that differs
# What a state leaves out where a run is as usual.
USUAL = {
    **{"optimizer": "adamw", "document_mask": False, "shuffle_shards": 0},
    **{"mixture": "none", "init_from": "none"},
}


class CheckpointError(MendableError, ValueError):
    """A checkpoint that is missing, is damaged or does not fit this run."""


def find_checkpoints(directory: Path) -> list[Path]:
    """The complete checkpoints of a run, newest first, or `directory` itself if it is one.

    Newest is the one that `latest` names, then those before it. What lies beyond it belongs to a
    continuation that was left by resuming an earlier one, and comes last.
    """
    if (directory / STATE_NAME).is_file():
        return [directory]
    checkpoints, latest = checkpoints_by_step(directory), latest_step(directory)
    steps = sorted(checkpoints, reverse=True)
    if latest is not None:
        steps.sort(key=lambda step: step > latest)  # stable: both parts stay in order
    return [checkpoints[step] for step in steps]


def find_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint of a run, or `directory` itself if it is one."""
    return next(iter(find_checkpoints(directory)), None)


def find_model(directory: Path) -> Path:
    """`directory` if a model is in it, else the newest complete checkpoint of the run in it.

    Without either, it is `directory`, in which whoever loads it will find nothing.
    """
    if (directory / "config.json").is_file():
        return directory
    return find_checkpoint(directory) or directory


def verify_checkpoint(checkpoint: Path) -> None:
    """Reads every file again, and compares size and sha256 with what was written.

    Processes of a group share the files out and must all call it. Of checkpoints without checksums
    only the headers are read, which is said in one line.

    Raises:
        CheckpointError: on all of them alike, naming the files that are damaged.
    """
    state = PartialState()
    optimizer_files = sorted((checkpoint / OPTIMIZER_FOLDER).glob("*.safetensors"))
    written = [WEIGHTS_NAME, STATE_NAME]
    written += [f"{OPTIMIZER_FOLDER}/{file.name}" for file in optimizer_files]
    own = list(
        damage(checkpoint, listed=written, part=state.process_index, n_parts=state.num_processes)
    )
    if state.is_main_process and checkpoint.is_dir() and not (checkpoint / CHECKSUMS_NAME).exists():
        warn(
            f"{checkpoint}: expected {CHECKSUMS_NAME}, found none; "
            f"damage to its files would not be seen"
        )
        own += _damaged_headers(checkpoint)
    if found := dict.fromkeys(gather_object(own)):
        raise CheckpointError("; ".join(found))


def load_state(checkpoint: Path, *, expected: dict) -> dict:
    """The saved state, after checking that it continues the same run.

    Args:
        expected: what must not have changed since; a part of the state.

    Raises:
        CheckpointError: if it cannot be read, or naming every value that differs.
    """
    path = checkpoint / STATE_NAME
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(state, dict) or type(state.get("step")) is not int or state["step"] < 0:
            raise ValueError(f"expected the state of a run with its step, found {_shown(state)}")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be loaded: {error}") from error
    # What is compared went through JSON, which knows no tuples.
    expected = json.loads(json.dumps(expected))
    found = {key: state.get(key) for key in expected}
    if differences := list(_differences(expected, found)):
        config = state.get("config", {})
        if found.get("init_from") and not expected.get("init_from"):  # sizes differ only by this
            differences = [f"expected --init_from {config.get('init_from')}, found none"]
        elif config.get("data") and found.get("data") != expected.get("data"):
            differences.append(f"its --data was {config['data']}")  # digests tell nothing
        is_source = all(found.get(key) == expected.get(key) for key in ("model", "tokenizer"))
        new = "a new run" + " from these weights with --init_from" * is_source
        raise CheckpointError(
            f"{checkpoint}: {'; '.join(differences)}; resume with the same, or start {new}"
        )
    return state


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Reads the weights into a model without any wrapper, whose parameters may be sharded.

    Under DeepSpeed they become the float32 weights behind the model's own as well.

    Raises:
        CheckpointError: if they cannot be read or are another model's.
    """
    path = checkpoint / WEIGHTS_NAME
    try:
        stored = SlicedTensors([path])
        known = set()
        for names, tensor in named_tensors(model):
            name = next((name for name in names if name in stored.shapes), names[0])
            known.update(names)
            _require_shape(name, stored, tensor)
            own, offset = own_slice(tensor.detach())
            weight = stored.read(name, offset=offset, shape=tuple(own.shape))
            own.copy_(weight)
            set_weight(tensor, weight)
        if unknown := sorted(stored.shapes.keys() - known):
            raise ValueError(f"expected tensors of {type(model).__name__}, found {unknown[0]}")
    except WeightsError as error:
        raise CheckpointError(str(error)) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be loaded: {error}") from error


def load_optimizer(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Reads the moments back; learning rate and decay stay as the optimizer was made.

    Args:
        checkpoint: written by any number of processes, sharded or not.
        model: whose parameters the optimizer holds. A sharded one gets its own slices only.
        optimizer: the torch optimizer itself, or DeepSpeed's.

    Raises:
        CheckpointError: if they cannot be read or are another model's.
    """
    parameters = itertools.chain.from_iterable(optimized_parameters(optimizer))
    number_of = {parameter: number for number, parameter in enumerate(parameters)}
    named = {name: tensor for names, tensor in named_tensors(model) for name in names}
    state: dict[int, dict] = defaultdict(dict)
    path = checkpoint / OPTIMIZER_FOLDER
    try:
        stored = SlicedTensors(_optimizer_files(checkpoint))
        owners = {key: named.get(key.rpartition(".")[0]) for key in stored.shapes}
        for key, parameter in owners.items():
            if parameter not in number_of:
                raise ValueError(f"expected parameters of this optimizer, found {key}")
        moments = (
            (parameter, key.rpartition(".")[2], _read_moment(stored, key, parameter))
            for key, parameter in owners.items()
        )
        if is_zero(model):
            load_whole_state(optimizer, moments)
            return
        for parameter, moment, tensor in moments:
            state[number_of[parameter]][moment] = tensor
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": dict(state), "param_groups": groups})
    except WeightsError as error:
        raise CheckpointError(str(error)) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be loaded: {error}") from error


def named_tensors(model: nn.Module) -> Iterator[tuple[list[str], Tensor]]:
    """Each parameter and saved buffer of a model once, with all of its names.

    They are the very ones that the model has, sharded if it is: to ask for the state is what makes
    FSDP give up a gathered copy.
    """
    names, tensors = defaultdict(list), {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names[id(tensor)].append(name)
        tensors[id(tensor)] = tensor
    for key, tensor in tensors.items():
        yield names[key], tensor


def save_model(
    model: PreTrainedModel, tokenizer, directory: Path, *, weights: dict[str, Tensor] | None = None
) -> None:
    """Model and tokenizer as `from_pretrained` reads them, each file complete or not there."""
    with new_files(directory) as partial:
        save_pretrained(model, tokenizer, partial, weights=weights)


def save_pretrained(
    model: PreTrainedModel, tokenizer, directory: Path, *, weights: dict[str, Tensor] | None = None
) -> None:
    """`save_pretrained` of both, with these weights instead of the model's if given.

    Raises:
        OSError: if they cannot be written.
    """
    try:
        model.save_pretrained(directory, state_dict=weights)
        save_tokenizer(tokenizer, directory)
    except SafetensorError as error:
        raise OSError(f"{directory}: {error}") from error
    except OSError as error:  # which may name the file of code that was to be copied
        raise OSError(error.errno, error.strerror or str(error), str(directory)) from error
    open_to_readers(directory.iterdir())


def open_to_readers(files: Iterable[Path]) -> None:
    """Gives files of one directory the mode of any new file; safetensors lets only the owner read.

    The mode is seen on a new file: to ask for the umask is to change it, for all threads.
    """
    files = list(files)
    probe = files[0].with_name(f".{files[0].name}.mode")
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in files:
        file.chmod(mode)


def _damaged_headers(checkpoint: Path) -> list[str]:
    """What is wrong with its files of tensors, as far as their headers say."""
    try:
        for path in (checkpoint / WEIGHTS_NAME, *_optimizer_files(checkpoint)):
            open_tensors(path)
    except (OSError, ValueError) as error:
        return [str(error)]
    return []


def _optimizer_files(checkpoint: Path) -> list[Path]:
    """The files of the optimizer's tensors, all of them."""
    files = sorted((checkpoint / OPTIMIZER_FOLDER).glob("*.safetensors"))
    n_expected = int(files[0].stem.rpartition("-")[2]) if files and "-of-" in files[0].stem else 1
    if len(files) != n_expected:
        raise ValueError(
            f"{checkpoint}: expected {n_expected} files of the optimizer, found {len(files)}"
        )
    return files


def _read_moment(stored: SlicedTensors, key: str, parameter: Tensor) -> Tensor:
    """One of the optimizer's tensors, sharded as its parameter is if it has the same shape."""
    shape = stored.shapes[key]
    if shape != tuple(parameter.shape) or not isinstance(parameter, DTensor):
        # Numbers such as the count of steps are the same everywhere.
        if shape:
            _require_shape(key, stored, parameter)
        return stored.read(key, offset=(0,) * len(shape), shape=shape)
    own, offset = own_slice(parameter.detach())
    return DTensor.from_local(
        stored.read(key, offset=offset, shape=tuple(own.shape)).to(own.device),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _require_shape(name: str, stored: SlicedTensors, tensor: Tensor) -> None:
    """Refuses a tensor of another shape."""
    found = stored.shapes.get(name)
    if found != tuple(tensor.shape):
        raise ValueError(f"expected {name} of shape {tuple(tensor.shape)}, found {found}")


def _differences(expected: dict, found: dict, prefix: str = "") -> Iterator[str]:
    """What differs, each value by its path of keys."""
    for key in expected | found:
        left, right = expected.get(key), found.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            yield from _differences(left, right, f"{prefix}{key}.")
        elif left != right:
            name, usual = f"{prefix}{key}", USUAL.get(key)
            left, right = (usual if value is None else value for value in (left, right))
            yield f"expected {name} = {_shown(left)} as asked for now, found {_shown(right)}"


def _shown(value) -> str:
    """A value, cut where it is long."""
    text = str(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
