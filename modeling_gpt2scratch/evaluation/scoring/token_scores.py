"""What the language-model head says of single tokens, and rows as the model takes them."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

# Positions that pass through the head together. On a CPU 128 rows of 50,257 float32 logits are 26
# MB, which malloc can reuse; for arrays above 32 MB glibc asks the kernel for fresh pages every
# time. Elsewhere few large kernels are better than many small ones.
HEAD_ROWS = {"cpu": 128}
DEFAULT_HEAD_ROWS = 2048
CACHE_LINE = 16  # float32 numbers


def score_tokens(
    head: Callable[[torch.Tensor], torch.Tensor],
    hidden_states: torch.Tensor,
    sources: torch.Tensor,
    targets: torch.Tensor,
) -> tuple[np.ndarray, np.ndarray]:
    """Nats (float32) of each of M targets, and whether it is the argmax.

    Args:
        head: (N, C) -> (N, V) logits in an array of their own, which is overwritten.
        hidden_states: (N, C).
        sources: (M,), the state that each target is predicted from, ascending.
        targets: (M,) token ids.

    Raises:
        ValueError: for log-probs that are not finite.
    """
    all_nats, greedy = [], []
    n_rows = HEAD_ROWS.get(hidden_states.device.type, DEFAULT_HEAD_ROWS)
    firsts = torch.arange(0, len(hidden_states) + n_rows, n_rows, device=sources.device)
    sizes = torch.searchsorted(sources, firsts).diff().tolist()
    for chunk, rows, own_targets in zip(
        hidden_states.split(n_rows), sources.split(sizes), targets.split(sizes), strict=True
    ):
        logits = head(chunk).float()  # (up to n_rows, V)
        rows = rows % n_rows
        largest, likeliest = logits.max(dim=-1)
        own = logits[rows, own_targets]
        # Cross-entropy in place: a second array of this size costs more than the arithmetic.
        sums = logits.sub_(largest[:, None]).exp_().sum(dim=-1)
        all_nats.append(largest[rows] - own + sums.log()[rows])
        greedy.append(likeliest[rows] == own_targets)
    nats = torch.cat(all_nats).cpu().numpy()
    if not np.isfinite(nats).all():
        raise ValueError(f"{(~np.isfinite(nats)).sum()} of {len(nats)} log-probs are not finite")
    return nats, torch.cat(greedy).cpu().numpy()


def head_product(head: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    """`head(hidden_states)` where no gradient is wanted: (N, C) -> (N, V).

    A float32 product on a CPU is made into rows that begin at whole cache lines. Where V is odd,
    as GPT-2's is, AVX-512 takes longer for rows without gaps.
    """
    is_float32 = hidden_states.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if not (_is_plain_linear(head) and is_float32 and hidden_states.device.type == "cpu"):
        return head(hidden_states)
    n_vocab = len(head.weight)
    places = hidden_states.new_empty(len(hidden_states), n_vocab + -n_vocab % CACHE_LINE)
    return torch.mm(hidden_states, head.weight.t(), out=places[:, :n_vocab])


def _is_plain_linear(head: nn.Module) -> bool:
    """Whether a module is a float32 matrix and nothing else: no subclass, hook or other forward."""
    return (
        type(head) is nn.Linear
        and head.bias is None
        and type(head.weight) is nn.Parameter
        and head.weight.dtype == torch.float32
        and not (head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head))
    )
