"""What optimizer steps found, left on the device until something is to be logged.

Shapes: A micro-steps of a step, W processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class StepOutcome:
    """One optimizer step; reading a number from here makes the device finish first."""

    step: int  # optimizer updates made after it
    data_step: int  # the step whose data it read
    loss: Tensor  # () float32, nats per token, mean of all processes
    grad_norm: Tensor  # () float32, before clipping, of the whole gradient
    micro_losses: Tensor  # (A,) float32, of this process


def read_outcomes(outcomes: Sequence[StepOutcome]) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step, in one transfer from the device."""
    numbers = [torch.stack((outcome.loss, outcome.grad_norm)) for outcome in outcomes]
    return [(loss, grad_norm) for loss, grad_norm in torch.stack(numbers).tolist()]


def worst_micro_batch(outcome: StepOutcome, accelerator: Accelerator) -> tuple[int, int]:
    """Rank and micro-step with the highest loss of a step; what is no number is higher than any.

    All processes must call this together.
    """
    losses = accelerator.gather(outcome.micro_losses[None])  # (W, A)
    worst = int(losses.nan_to_num(nan=torch.inf).argmax())
    return divmod(worst, losses.shape[1])


def clip_gradients(model: nn.Module, accelerator: Accelerator, max_norm: float) -> Tensor:
    """Clips, and returns the norm of the whole gradient before it, () on the device."""
    norm = accelerator.clip_grad_norm_(model.parameters(), max_norm)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    return torch.as_tensor(norm, dtype=torch.float32, device=accelerator.device)


def skip_unless_finite(optimizer: torch.optim.Optimizer, loss: Tensor, grad_norm: Tensor) -> bool:
    """Lets the optimizer's next step change nothing unless both are finite.

    The optimizer itself looks at the flag, on its device, so that nothing waits for the number.
    Loss and norm are the same on all processes, and so is the decision. DeepSpeed has stepped by
    now, unless it found the gradient not finite itself, and does not look at the flag.

    Returns:
        False where the step must not be made at all: on MPS, whose kernels before torch 2.13 do
        not look at the flag either (pytorch/pytorch#186360), the number is waited for.
    """
    is_finite = torch.isfinite(loss) & torch.isfinite(grad_norm)
    optimizer.grad_scale = None
    optimizer.found_inf = (~is_finite).to(torch.float32)
    return loss.device.type != "mps" or bool(is_finite)
