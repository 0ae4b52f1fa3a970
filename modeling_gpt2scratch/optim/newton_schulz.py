"""Orthogonalized matrices by the Newton-Schulz iteration, as Muon takes them."""

import torch
from torch import Tensor

from modeling_gpt2scratch.distributed.device import has_bf16

# Of the quintic a*x + b*x^3 + c*x^5, which takes singular values to about 1 in few steps. It
# overshoots on purpose: they end between 0.7 and 1.2, which trains as well as exactly 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
N_ITERATIONS = 5
EPSILON = 1e-7


def iteration_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it faster than float32, which is used elsewhere."""
    return torch.bfloat16 if has_bf16(device) else torch.float32


def orthogonalize(matrix: Tensor, *, parts: int = 1) -> Tensor:
    """Each part's nearest orthogonal matrix, roughly: all its singular values are about 1.

    Args:
        matrix: (rows, columns), in the precision to compute in; left as it is.
        parts: equally many rows each, orthogonalized one by one.

    Returns:
        As `matrix`.

    Source: Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks.
    """
    if parts == 1:
        return _orthogonalize_part(matrix)
    return torch.cat([_orthogonalize_part(part) for part in matrix.chunk(parts)])


def update_scale(shape: torch.Size, *, parts: int = 1) -> float:
    """The factor that gives an orthogonal matrix entries with a root mean square of 0.2.

    An orthogonal matrix has entries of 1 / sqrt(longer side). At 0.2 it is about as large as an
    update of AdamW, and can share its learning rate and weight decay.

    Source: Liu et al. 2025, Muon is scalable for LLM training, section 2.2.
    """
    return 0.2 * max(shape[0] // parts, shape[1]) ** 0.5


def iteration_cost(shape: torch.Size, *, parts: int = 1) -> int:
    """Multiplications of one iteration for all parts."""
    short, long = sorted((shape[0] // parts, shape[1]))
    return parts * (2 * short * short * long + short**3)


def _orthogonalize_part(matrix: Tensor) -> Tensor:
    """The iteration itself, on the side that makes the smaller product."""
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if is_tall else matrix
    x = x / x.norm().clamp(min=EPSILON)  # singular values of at most 1
    for _ in range(N_ITERATIONS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
