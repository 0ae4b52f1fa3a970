"""The optimizer and its learning rate."""

import math

import torch
from torch import nn

ADAM_BETAS = (0.9, 0.95)
ADAM_EPSILON = 1e-8


def learning_rate_at(
    step: int, *, peak: float, floor: float, warmup_steps: int, max_steps: int
) -> float:
    """Learning rate for `step`: linear warmup to `peak`, then half a cosine down to `floor`.

    A pure function of the step: there is no scheduler to save, and none that a launcher could
    advance once per process.

    Args:
        step: optimizer updates already made, from 0.
        peak: highest rate, reached on the last warmup step.
        floor: rate from `max_steps` onward.
        warmup_steps: optimizer updates spent warming up.
        max_steps: optimizer updates in the whole run.

    Raises:
        ValueError: unless `0 <= warmup_steps < max_steps`.

    Source: Brown et al. 2020 (GPT-3), appendix B.
    """
    if not 0 <= warmup_steps < max_steps:
        raise ValueError(f"expected 0 <= warmup_steps < {max_steps}, found {warmup_steps}")
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / (max_steps - warmup_steps))
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict]:
    """Two groups: matrices and embeddings, which decay, and biases and norms, which do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def adamw(model: nn.Module, *, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with GPT-3's betas, one fused kernel per step.

    Source: Brown et al. 2020 (GPT-3), appendix B; Loshchilov and Hutter 2019.
    """
    return torch.optim.AdamW(
        parameter_groups(model, weight_decay=weight_decay),
        lr=learning_rate,
        betas=ADAM_BETAS,
        eps=ADAM_EPSILON,
        fused=True,
    )
