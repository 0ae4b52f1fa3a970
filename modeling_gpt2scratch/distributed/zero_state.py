"""Weights and moments of a model under DeepSpeed's ZeRO-2, whole for checkpoints and back again.

ZeRO-2 leaves every process a whole model, in bfloat16 if so asked, and gives it a slice of the
float32 weights and of the moments: one flat tensor for each parameter group, which stands in the
place of the group's parameters. What is read and written here are whole float32 tensors, one
parameter at a time, so that a checkpoint is that of a replicated run, for any number of processes.

DeepSpeed is an optional package: it is imported only where a model is found to be under it.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.optim import Optimizer

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


def is_zero(model: nn.Module) -> bool:
    """Whether DeepSpeed's ZeRO keeps the float32 weights of this model, in slices."""
    return any(_is_sliced(parameter) for parameter in model.parameters())


def prepare_for_training(
    accelerator: Accelerator, model: nn.Module, optimizer: Optimizer
) -> tuple[nn.Module, Any]:
    """What `accelerator.prepare` makes of the two, without loss of the weights' precision.

    DeepSpeed takes its float32 weights from the model after it has made that bfloat16.
    """
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return accelerator.prepare(model, optimizer)
    weights = [parameter.detach() for parameter in model.parameters()]
    prepared = accelerator.prepare(model, optimizer)
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        set_weight(parameter, weight)
    return prepared


def whole_weight(tensor: Tensor) -> Tensor:
    """The float32 weight behind a parameter; a tensor that ZeRO does not keep is its own.

    All processes must call this together.
    """
    if not _is_sliced(tensor):
        return tensor
    from deepspeed.utils import safe_get_full_fp32_param

    return safe_get_full_fp32_param(tensor)


def set_weight(tensor: Tensor, weight: Tensor) -> None:
    """Makes this the float32 weight behind a parameter, if ZeRO keeps one.

    Args:
        tensor: the parameter, which itself has to be given the same weight.
        weight: whole, on any device.
    """
    if _is_sliced(tensor):
        from deepspeed.utils import safe_set_full_fp32_param

        safe_set_full_fp32_param(tensor, weight)


def whole_state(optimizer: Optimizer) -> Iterator[tuple[Tensor, str, Tensor]]:
    """Parameter, what it is (`exp_avg`, `step`), and the whole tensor; nothing before a step.

    All processes must go through this together.

    Args:
        optimizer: DeepSpeed's own, around torch's.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    _link_moments(optimizer)
    for parameters, flat in _groups(optimizer):
        for parameter in parameters:
            for name, tensor in optimizer.state.get(flat, {}).items():
                if name in MOMENTS:
                    yield parameter, name, safe_get_full_optimizer_state(parameter, name)
                else:
                    # One for the whole group, and safetensors wants each tensor to be its own.
                    yield parameter, name, tensor.clone()


def load_whole_state(optimizer: Optimizer, state: Iterable[tuple[Tensor, str, Tensor]]) -> None:
    """Reads back what `whole_state` gave, or the same from a run without DeepSpeed.

    Args:
        optimizer: DeepSpeed's own, around torch's.
        state: parameter, name and whole tensor, which may be on the CPU. A parameter that is left
            out keeps what it has.

    Raises:
        ValueError: at a tensor that AdamW does not have.
    """
    from deepspeed.utils import safe_set_full_optimizer_state

    for _, flat in _groups(optimizer):
        if not optimizer.state.get(flat):
            # What fused AdamW makes at its first step.
            optimizer.state[flat] = {"step": torch.zeros((), device=flat.device)}
            optimizer.state[flat] |= {name: torch.zeros_like(flat) for name in MOMENTS}
    _link_moments(optimizer)
    flat_of = {p: flat for parameters, flat in _groups(optimizer) for p in parameters}
    for parameter, name, tensor in state:
        if name == "step":
            optimizer.state[flat_of[parameter]]["step"].copy_(tensor)
        elif name in MOMENTS:
            safe_set_full_optimizer_state(parameter, tensor, name)
        else:
            raise ValueError(f"expected moments of AdamW under DeepSpeed, found {name}")


def optimized_parameters(optimizer: Optimizer) -> list[list[Tensor]]:
    """The model's parameters in each group of an optimizer, which ZeRO keeps elsewhere."""
    groups = [group["params"] for group in optimizer.param_groups]
    return getattr(optimizer, "bit16_groups", groups)


def _is_sliced(tensor: Tensor) -> bool:
    """Whether this is a parameter with a float32 weight in slices; the mark is DeepSpeed's."""
    return hasattr(tensor, "_hp_mapping")


def _groups(optimizer: Optimizer) -> list[tuple[list[Tensor], Tensor]]:
    """The parameters of each group, and this process's slice of them."""
    flats = optimizer.single_partition_of_fp32_groups
    return list(zip(optimizer.bit16_groups, flats, strict=True))


def _link_moments(optimizer: Optimizer) -> None:
    """Tells the parameters where their moments are.

    DeepSpeed does so after the step of the first group, when the others have no moments yet.
    """
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    for parameters, flat in _groups(optimizer):
        if optimizer.state.get(flat):
            lazy_init_hp_params_optimizer_state(parameters, flat, optimizer.state)
