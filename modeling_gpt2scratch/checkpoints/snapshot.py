"""What a checkpoint holds, copied out of the way of the training, and written from there."""

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_gpt2scratch.common.atomic_files import fsync, new_files
from modeling_gpt2scratch.common.checksums import checksum, drop_from_cache
from modeling_gpt2scratch.distributed.device import has_pinned_memory
from modeling_gpt2scratch.distributed.zero_state import is_zero, whole_state, whole_weight

from .checkpoint import (
    OPTIMIZER_FOLDER,
    WEIGHTS_NAME,
    named_tensors,
    open_to_readers,
    save_pretrained,
)
from .retention import STATE_NAME
from .sliced_tensors import is_first_copy, own_slice, write_slices
from .weight_files import WeightsError, open_tensors


class HostCopies:
    """Copies of tensors in the memory of the host, which the next copies reuse.

    Args:
        is_aliasing: whether tensors that are there already may stand for their copies, because
            nothing changes them before they are written.
    """

    def __init__(self, *, is_aliasing: bool):
        self._is_aliasing = is_aliasing
        self._buffers: dict[str, Tensor] = {}

    def copy(self, key: str, tensor: Tensor) -> Tensor:
        """The copy, which is complete after `finish`."""
        if self._is_aliasing and tensor.device.type == "cpu":
            return tensor.contiguous()
        is_pinned = has_pinned_memory(tensor.device)
        buffer = self._buffers.get(key)
        if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
            # Only into pinned memory can a GPU copy while the host goes on.
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=is_pinned)
            self._buffers[key] = buffer
        return buffer.copy_(tensor, non_blocking=is_pinned)

    def finish(self) -> None:
        """Waits for the copies."""
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()


@dataclass(frozen=True)
class Snapshot:
    """What this rank writes of a checkpoint.

    Attributes:
        skeleton: a model without weights, for its configuration and its code.
        tokenizer: of the data.
        state: JSON text.
        weights: whole, under all of their names; None on ranks that do not write them.
        optimizer: this rank's slices by name, None if it writes none.
        optimizer_name: of their file, in the checkpoint's folder for them.
        slices: shape and offset of each, None if they are whole.
    """

    skeleton: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    state: str
    weights: dict[str, Tensor] | None
    optimizer: dict[str, Tensor] | None
    optimizer_name: str
    slices: dict[str, dict] | None

    def write(self, directory: Path) -> dict[str, dict]:
        """Writes the files, reads them back, and returns their checksums by name.

        Raises:
            OSError: if they cannot be written, or are not on the disk as they should be.
        """
        names = set()
        try:
            if self.optimizer is not None:
                path = directory / OPTIMIZER_FOLDER / self.optimizer_name
                path.parent.mkdir(exist_ok=True)  # the first rank to come makes it
                write_slices(path, self.optimizer, self.slices)
                open_to_readers([path])
                _read_back(path, self.optimizer)
                names.add(f"{OPTIMIZER_FOLDER}/{path.name}")
            if self.weights is not None:
                names |= self._write_model(directory)
        except (SafetensorError, WeightsError) as error:
            raise OSError(f"{directory}: {error}") from error
        return {name: checksum(directory / name) for name in sorted(names)}

    def _write_model(self, directory: Path) -> set[str]:
        """What `save_pretrained` writes, and the state of the run; the names of these files."""
        with new_files(directory) as own:  # for other ranks are writing into this one
            save_pretrained(self.skeleton, self.tokenizer, own, weights=dict(self.weights))
            (own / STATE_NAME).write_text(self.state, encoding="utf-8")
            _read_back(own / WEIGHTS_NAME, self.weights)
            return {file.name for file in own.iterdir()}


def take_snapshot(
    copies: HostCopies,
    *,
    model: nn.Module,
    skeleton: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: torch.optim.Optimizer | None,
    state: dict,
) -> Snapshot:
    """Copies what this rank will write. All ranks take part in gathering what they share.

    Args:
        copies: where they go.
        model: without any wrapper, plain, sharded by FSDP2 or trained by DeepSpeed's ZeRO-2.
        optimizer: the torch optimizer itself or DeepSpeed's, None for the model alone.
        state: JSON values.
    """
    is_main = not dist.is_initialized() or dist.get_rank() == 0
    n_shards = count_shards(model)
    sharded = n_shards is not None
    weights = _copy_weights(copies, model, is_main=is_main)
    tensors, slices = {}, {}
    for name, tensor in optimizer_tensors(model, optimizer):
        if is_first_copy(tensor):
            own, offset = own_slice(tensor.detach())
            tensors[name] = copies.copy(f"optimizer.{name}", own)
            slices[name] = {"shape": list(tensor.shape), "offset": list(offset)}
    copies.finish()
    name = "state.safetensors"
    if sharded:  # of copies of the shards, the first ranks have the first
        name = f"state-{dist.get_rank():05d}-of-{n_shards:05d}.safetensors"
    return Snapshot(
        skeleton=skeleton,
        tokenizer=tokenizer,
        state=json.dumps(state, indent=2) + "\n",
        weights=weights if is_main else None,
        # Before the first step there are none; safetensors cannot read a file of slices of nothing.
        optimizer=tensors if tensors and (is_main or sharded) else None,
        optimizer_name=name,
        slices=slices if sharded else None,
    )


def make_skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """A model like this one, of the class it had before FSDP2, without memory for its weights.

    It is saved in the place of the real one, which another thread is training.
    """
    cls = next(cls for cls in type(model).__mro__ if not issubclass(cls, FSDPModule))
    with torch.device("meta"):
        skeleton = cls(copy.deepcopy(model.config))
    skeleton.generation_config = copy.deepcopy(model.generation_config)
    return skeleton.to(torch.float32 if is_zero(model) else model.dtype)


def count_shards(model: nn.Module) -> int | None:
    """Among how many ranks the parameters are sharded, None if each has all; others hold copies."""
    for _, tensor in named_tensors(model):
        if isinstance(tensor, DTensor):
            sizes = zip(tensor.device_mesh.shape, tensor.placements, strict=True)
            return math.prod(size for size, placement in sizes if not placement.is_replicate())
    return None


def optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> Iterator[tuple[str, Tensor]]:
    """The optimizer's tensors with names: parameter, a dot, and what it is (`exp_avg`, `step`).

    Under ZeRO-2 all ranks must go through them together, and one at a time is whole.
    """
    if optimizer is None:
        return
    name_of = {parameter: names[0] for names, parameter in named_tensors(model)}
    if is_zero(model):
        state = whole_state(optimizer)
    else:
        state = (
            (parameter, moment, tensor)
            for parameter in name_of
            for moment, tensor in optimizer.state.get(parameter, {}).items()
        )
    for parameter, moment, tensor in state:
        yield f"{name_of[parameter]}.{moment}", tensor


def _copy_weights(copies: HostCopies, model: nn.Module, *, is_main: bool) -> dict[str, Tensor]:
    """The whole weights on the main rank; one at a time is whole on the others."""
    weights = {}
    for names, tensor in named_tensors(model):
        # Both are collectives.
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else whole_weight(tensor)
        if is_main:
            weights |= dict.fromkeys(names, copies.copy(f"model.{names[0]}", tensor.detach()))
    return weights


def _read_back(path: Path, tensors: dict[str, Tensor]) -> None:
    """Compares what the disk has of a file with the memory that it was written from.

    Raises:
        OSError: if a bit differs.
    """
    fsync(path)
    drop_from_cache(path)
    with open_tensors(path) as file:
        found = set(file.keys())
        n_expected = len({tensor.data_ptr() for tensor in tensors.values()} - {0})
        for name in found:
            left, right = file.get_tensor(name), tensors[name]
            # Bytes, because not even a lost number equals itself.
            if not torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (left, right))):
                raise OSError(f"{path}: expected {name} as it was written, found other bits")
    if len(found) < n_expected:
        raise OSError(f"{path}: expected {n_expected} tensors, found {len(found)}")
