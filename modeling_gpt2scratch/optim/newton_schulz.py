"""Orthogonalized matrices by the Newton-Schulz iteration, as Muon takes them."""

import itertools
import sys
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from modeling_gpt2scratch.distributed.device import has_bf16

# Of the quintic a*x + b*x^3 + c*x^5, which takes singular values to about 1 in few steps. It
# overshoots on purpose: they end between 0.7 and 1.2, which trains as well as exactly 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
N_ITERATIONS = 5
EPSILON = 1e-7

# Of the matrices that share a product on a CPU: more would leave its cache. Elsewhere the number of
# launches counts, and whoever calls bounds the memory.
BATCH_BYTES_ON_CPU = 2**20


def iteration_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it faster than float32, which is used elsewhere."""
    return torch.bfloat16 if has_bf16(device) else torch.float32


def orthogonalize(matrices: Tensor) -> Tensor:
    """Each matrix's nearest orthogonal one, roughly: all its singular values are about 1.

    Args:
        matrices: (rows, columns) or (n, rows, columns), in the precision to compute in; left as
            they are.

    Returns:
        As `matrices`.

    Source: Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks.
    """
    a, b, c = COEFFICIENTS
    add_product = torch.addmm if matrices.dim() == 2 else torch.baddbmm
    # The iteration works on the side that makes the smaller product.
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPSILON)  # singular values of at most 1
    for _ in range(N_ITERATIONS):
        gram = x @ x.mT
        x = add_product(x, add_product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def orthogonalize_all(matrices: Sequence[Tensor], *, parts: Sequence[int]) -> list[Tensor]:
    """The same for matrices of different shapes. Those of one shape share their products.

    Args:
        matrices: (rows, columns) each, all in one precision.
        parts: for each matrix, into how many of equally many rows it is cut before.
    """
    pieces = [piece for matrix, n in zip(matrices, parts, strict=True) for piece in matrix.chunk(n)]
    alike = defaultdict(list)
    for number, piece in enumerate(pieces):
        alike[piece.shape].append(number)
    for numbers in alike.values():
        n_together = _n_together(pieces[numbers[0]])
        for start in range(0, len(numbers), n_together):
            batch = numbers[start : start + n_together]
            if len(batch) == 1:  # a product of a batch of one is slower than a plain one
                orthogonal = [orthogonalize(pieces[batch[0]])]
            else:
                orthogonal = orthogonalize(torch.stack([pieces[n] for n in batch])).unbind()
            for number, piece in zip(batch, orthogonal, strict=True):
                pieces[number] = piece
    remaining = iter(pieces)
    whole = [list(itertools.islice(remaining, n)) for n in parts]
    return [torch.cat(rows) if len(rows) > 1 else rows[0] for rows in whole]


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


def _n_together(matrix: Tensor) -> int:
    """How many matrices like this one share a product."""
    if matrix.device.type != "cpu":
        return sys.maxsize
    return max(1, BATCH_BYTES_ON_CPU // matrix.nbytes)
