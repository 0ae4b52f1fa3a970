"""The optimizer, its parameter groups and their learning rates."""

from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from modeling_gpt2scratch.distributed.device import has_fused_adamw
from modeling_gpt2scratch.distributed.zero_state import optimized_parameters

from .muon import MuonAdamW

ADAM_BETAS = (0.9, 0.95)
ADAM_EPSILON = 1e-8


def make_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    name: Literal["adamw", "muon"] = "adamw",
    muon_learning_rate: float | None = None,
    device: torch.device | None = None,
) -> Optimizer:
    """The optimizer for a model; make it before Accelerate or FSDP2 wraps the two.

    Args:
        model: with its blocks in `model.base_model.h`.
        learning_rate: peak of AdamW.
        weight_decay: of matrices and embeddings.
        name: "adamw" for everything, or "muon" for the matrices of the blocks and AdamW for the
            rest.
        muon_learning_rate: peak of Muon, on the same scale, see `update_scale`; AdamW's if None.
        device: on which it will step; the model's if None.

    Source: Brown et al. 2020 (GPT-3), appendix B, for AdamW's betas.
    """
    groups = parameter_groups(model, name=name, weight_decay=weight_decay)
    for group in groups:
        is_muon = group["rule"] == "muon" and muon_learning_rate is not None
        peak = muon_learning_rate if is_muon else learning_rate
        group["lr"] = group["initial_lr"] = peak
    fused = has_fused_adamw(device or next(model.parameters()).device)
    optimizer = MuonAdamW if name == "muon" else torch.optim.AdamW
    return optimizer(groups, lr=learning_rate, betas=ADAM_BETAS, eps=ADAM_EPSILON, fused=fused)


def skips_by_itself(optimizer: Optimizer, device: torch.device) -> bool:
    """Whether `found_inf` is enough to make a step change nothing.

    torch's AdamW looks at it in one kernel or not at all; on MPS no kernel before torch 2.13 does
    (pytorch/pytorch#186360).
    """
    options = getattr(optimizer, "defaults", {"fused": True})  # DeepSpeed's has none
    return bool(options["fused"]) and device.type != "mps"


def parameter_groups(
    model: nn.Module, *, name: Literal["adamw", "muon"] = "adamw", weight_decay: float
) -> list[dict]:
    """Groups of all trainable parameters, each with its `rule`, `what` it holds and its decay.

    Query, key and value are one parameter and three matrices. Muon takes them apart: they have
    nothing in common but their input, and their gradients differ in size, which the smaller ones
    would suffer from if all three were made orthogonal as one.
    """
    trainable = {p: key for key, p in model.named_parameters() if p.requires_grad}
    matrices = {p: key for p, key in trainable.items() if p.dim() >= 2}
    vectors = [p for p in trainable if p.dim() < 2]
    hidden = {p for p in model.base_model.h.parameters() if p.dim() == 2} if name == "muon" else ()
    stacked = [p for p, key in matrices.items() if p in hidden and "qkv_proj" in key]
    single = [p for p, key in matrices.items() if p in hidden and "qkv_proj" not in key]
    others = [p for p in matrices if p not in hidden]
    decayed = {"weight_decay": weight_decay}
    what = "embeddings" if name == "muon" else "matrices and embeddings"
    groups = [
        {"params": stacked, "rule": "muon", "what": "query, key, value", "parts": 3} | decayed,
        {"params": single, "rule": "muon", "what": "other matrices of blocks"} | decayed,
        {"params": others, "rule": "adamw", "what": what} | decayed,
        {"params": vectors, "rule": "adamw", "what": "biases and norms", "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def set_learning_rate(optimizer: Optimizer, fraction: float) -> None:
    """Sets the rate of every group to this fraction of the group's own peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * fraction


def describe_groups(model: nn.Module, optimizer: Optimizer) -> list[dict]:
    """A row for each group of an optimizer that `make_optimizer` made, and one for frozen weights.

    Returns:
        Rows for `tabulate(rows, headers="keys")`.
    """
    rows = [
        {
            "rule": group["rule"],
            "what": group["what"],
            "tensors": len(parameters),
            "parameters": sum(parameter.numel() for parameter in parameters),
            "peak rate": group["initial_lr"],
            "decay": group["weight_decay"],
        }
        for group, parameters in zip(
            optimizer.param_groups, optimized_parameters(optimizer), strict=True
        )
    ]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    if frozen:
        n_frozen = sum(parameter.numel() for parameter in frozen)
        row = {"rule": "none", "what": "frozen", "tensors": len(frozen), "parameters": n_frozen}
        rows.append(row | {"peak rate": 0.0, "decay": 0.0})
    return rows
