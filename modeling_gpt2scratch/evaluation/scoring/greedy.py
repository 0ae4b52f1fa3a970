"""What a model writes after a text if it always takes the likeliest token."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch.distributed.fsdp import FSDPModule

from .scorer import CausalScorer


def greedy_continuations(
    scorer: CausalScorer,
    contexts: Sequence[list[int]],
    *,
    n_tokens: int,
    first_excluded: Sequence[int] = (),
    description: str,
) -> tuple[list[list[int]], int]:
    """The `n_tokens` ids that the model puts after each context, and how many contexts were cut.

    `generate` would take over what a checkpoint says of sampling and penalties. Contexts of one
    length make a batch, so none is padded. Several processes share the batches out.

    Args:
        contexts: token ids, at least one each; leftmost ones are dropped if all do not fit.
        n_tokens: to write after each, end-of-text tokens among them.
        first_excluded: ids that may not be the first one written.

    Raises:
        ValueError: for logits that are not finite, or a model sharded by FSDP2.
    """
    if isinstance(scorer.model, FSDPModule):  # whose forward passes must be as many everywhere
        raise ValueError("expected a whole model to write with, found one sharded by FSDP2")
    rows_by_length = defaultdict(list)
    n_kept = scorer.context_tokens - n_tokens + 1
    if n_kept < 1:
        raise ValueError(
            f"expected a context of at least {n_tokens} tokens, found {scorer.context_tokens}"
        )
    for index, context in enumerate(contexts):
        rows_by_length[min(len(context), n_kept)].append(index)
    batches = []
    for length, indices in sorted(rows_by_length.items(), reverse=True):
        n_rows = max(1, scorer.planned_tokens // (length + n_tokens))
        batches += [indices[start : start + n_rows] for start in range(0, len(indices), n_rows)]
    inputs = [context[-n_kept:] for context in contexts]
    write = partial(_write_rows, scorer, inputs, n_tokens, list(first_excluded))
    written: list[list[int]] = [[]] * len(contexts)
    for index, ids in scorer.compute_rows(
        batches, write, n_rows=len(contexts), description=description
    ):
        written[index] = ids
    return written, sum(len(context) > n_kept for context in contexts)


def _write_rows(
    scorer: CausalScorer,
    contexts: Sequence[list[int]],
    n_tokens: int,
    first_excluded: list[int],
    indices: Sequence[int],
) -> list[tuple[int, list[int]]]:
    """Each of `indices` with what is written after its context, all of one length.

    Fewer at a time where the device lacks the memory.
    """
    length = len(contexts[indices[0]])
    written = []
    while len(written) < len(indices):
        n_rows = max(1, scorer.batch_tokens // (length + n_tokens))
        batch = indices[len(written) : len(written) + n_rows]
        input_ids = torch.tensor([contexts[index] for index in batch])
        try:
            ids = _write_batch(scorer, input_ids, n_tokens, first_excluded)
        except RuntimeError as error:
            if len(batch) == 1 or not should_reduce_batch_size(error):
                raise
        else:
            written += zip(batch, ids.tolist(), strict=True)
            continue
        scorer.halve_batch_tokens()
    return written


# Shapes: B rows, T tokens of a context, N written tokens, V vocabulary entries.
@torch.no_grad()
def _write_batch(
    scorer: CausalScorer, context_ids: torch.Tensor, n_tokens: int, first_excluded: list[int]
) -> torch.Tensor:
    """(B, T) -> (B, N)."""
    row_ids = context_ids.to(scorer.model.device)
    cache = None
    for n_written in range(n_tokens):
        logits, cache = scorer.next_logits(row_ids, cache)  # (B, V)
        if not torch.isfinite(logits).all():
            raise ValueError("expected finite logits, found nan or infinity")
        if n_written == 0 and first_excluded:
            logits[:, first_excluded] = -torch.inf
        next_ids = logits.argmax(dim=-1, keepdim=True)
        row_ids = torch.cat([row_ids, next_ids], dim=1)
    return row_ids[:, context_ids.shape[1] :].cpu()
