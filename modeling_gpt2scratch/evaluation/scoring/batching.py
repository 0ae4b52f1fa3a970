"""Batches of rows for a forward pass: by a budget of padded tokens, what rows share computed once.

Rows that begin alike (the endings of one scene, the candidates of one blank) are a group. What
their inputs have in common passes through the model once; each row then needs only its own tokens,
on top of the keys and values of the common ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# Fewer common tokens than this are cheaper to repeat than to compute in a pass of their own.
MIN_SHARED_TOKENS = 16
# What a forward pass costs before its first token, as a part of the budget. On a CPU it reads the
# weights, and that takes as long as the arithmetic of some 64 tokens.
PASS_COST = 1 / 16
# A cached token costs a row its key and value in one layer at a time, 2 C numbers; a token that
# passes through a layer of C channels costs 16 C.
CACHED_TOKENS_PER_TOKEN = 8


@dataclass(frozen=True)
class Batch:
    """Rows that pass through the model together.

    Attributes:
        groups: the indices of the rows of each group; a row that shares nothing is its own group.
        n_shared: leading tokens of each group that pass once for all its rows; 0 for all or none.
        n_tokens: padded tokens of the first pass.
    """

    groups: list[list[int]]
    n_shared: list[int]
    n_tokens: int

    @property
    def rows(self) -> list[int]:
        """The indices of all rows."""
        return [row for group in self.groups for row in group]

    def halves(self) -> tuple[Batch, Batch]:
        """The first and the second half of the groups."""
        middle = len(self.groups) // 2
        longest = self.n_tokens // len(self.groups)
        return (
            Batch(self.groups[:middle], self.n_shared[:middle], longest * middle),
            Batch(self.groups[middle:], self.n_shared[middle:], self.n_tokens - longest * middle),
        )


def pack_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of rows, longest first, in batches of at most `batch_tokens` padded tokens.

    Longest first, so that a batch too large for the device fails at once and not hours later.
    Rows of equal length keep their order; a row longer than the budget is alone. Among all ways to
    cut that order the cheapest is taken, where a batch costs its padded tokens and `PASS_COST`.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    counts = np.arange(1, len(order) + 1)
    # By the first row of a batch: the rows it has, and the cost of it and all that come after.
    n_rows = np.ones(len(order), dtype=np.int64)
    costs = np.zeros(len(order) + 1)
    for first in reversed(range(len(order))):
        longest = lengths[order[first]]
        n_most = max(1, min(batch_tokens // longest, len(order) - first))
        options = longest * counts[:n_most] + costs[first + 1 : first + n_most + 1]
        n_rows[first] = options.argmin() + 1
        costs[first] = options[n_rows[first] - 1] + PASS_COST * batch_tokens
    first = 0
    while first < len(order):
        yield order[first : first + n_rows[first]]
        first += n_rows[first]


def plan_batches(
    lengths: Sequence[int],
    groups: Sequence[Sequence[int]],
    n_shared: Sequence[int],
    batch_tokens: int,
    *,
    is_equal: bool = False,
) -> Iterator[Batch]:
    """Batches that hold each row once: those that share, most shared tokens first, then the others.

    Args:
        lengths: input tokens of each row.
        groups: the indices of the rows of each group; each row is in one of them.
        n_shared: leading tokens that the rows of each group may share; each row needs one more.
        batch_tokens: padded tokens of the first forward pass of a batch, unless one is longer.
        is_equal: whether the groups of a batch must share equally many.
    """
    sharing: dict[int, list[int]] = {}
    alone = []
    for index, (group, n) in enumerate(zip(groups, n_shared, strict=True)):
        if len(group) > 1 and n >= MIN_SHARED_TOKENS:
            sharing.setdefault(n if is_equal else 0, []).append(index)
        else:
            alone += group
    for indices in sharing.values():
        for batch in pack_batches([n_shared[index] for index in indices], batch_tokens):
            own = [indices[position] for position in batch]
            n_own = [n_shared[index] for index in own]
            yield Batch([list(groups[index]) for index in own], n_own, n_own[0] * len(own))
    for batch in pack_batches([lengths[row] for row in alone], batch_tokens):
        rows = [alone[position] for position in batch]
        yield Batch([[row] for row in rows], [0] * len(rows), lengths[rows[0]] * len(rows))


def n_common_tokens(
    rows: Sequence[np.ndarray], n_scored: Sequence[int], group: Sequence[int]
) -> int:
    """Leading ids that all rows of a group have in common, before the first that is scored.

    Args:
        rows: token ids; the last `n_scored` of each are scored.
        n_scored: of each row.
        group: the indices of the rows.
    """
    first = rows[group[0]]
    common = min(len(rows[index]) - n_scored[index] for index in group)
    for index in group:
        differs = first[:common] != rows[index][:common]
        common = int(differs.argmax()) if differs.any() else common
    return common


def pack_endings(lengths: Sequence[int], n_shared: int, batch_tokens: int) -> Iterator[list[int]]:
    """Indices of rows of a batch, longest first, each on top of `n_shared` cached tokens.

    Args:
        lengths: input tokens of each row without the shared ones.
        n_shared: tokens whose keys and values are in the cache.
        batch_tokens: as in `plan_batches`; a cached token counts as part of one.
    """
    cached = n_shared // CACHED_TOKENS_PER_TOKEN
    return pack_batches([length + cached for length in lengths], batch_tokens)
