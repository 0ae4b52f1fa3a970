"""Batches for a forward pass: what rows share computed once, within a budget of padded tokens.

Rows that begin alike (the endings of one scene, the candidates of one blank, the sentences of a
pair) are joined into a tree. It passes through the model as one row, see `token_tree.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .token_tree import n_common_tokens

# What a forward pass costs before its first token, as a part of the budget. On a CPU it reads the
# weights, and that takes as long as the arithmetic of some 64 tokens.
PASS_COST = 1 / 16
# A token costs a block 24 C^2 multiplications, and 4 C more for each token of its row, which with
# a mask take about three times as long. So it costs as much as looking at 2 C tokens.
TOKENS_LOOKED_AT_PER_CHANNEL = 2


@dataclass(frozen=True)
class RowBatch:
    """Rows that pass through the model together.

    Attributes:
        trees: the indices of the rows of each tree; a row that shares nothing is its own tree.
    """

    trees: list[list[int]]

    @property
    def rows(self) -> list[int]:
        """The indices of all rows."""
        return [row for tree in self.trees for row in tree]

    def halves(self) -> "tuple[RowBatch, RowBatch]":
        """The first and the second half of the trees, or of the rows of the only tree."""
        if len(self.trees) > 1:
            middle = len(self.trees) // 2
            return RowBatch(self.trees[:middle]), RowBatch(self.trees[middle:])
        (tree,) = self.trees
        middle = len(tree) // 2
        return RowBatch([tree[:middle]]), RowBatch([tree[middle:]])


def join_rows(
    rows: Sequence[np.ndarray], *, most_tokens: int, n_channels: int
) -> tuple[list[list[int]], list[int]]:
    """Trees of rows that begin alike, where that is cheaper than a pass of each row.

    Args:
        rows: input ids of each.
        most_tokens: of a tree; a longer row is its own tree.
        n_channels: C, of the model.

    Returns:
        The indices of the rows of each tree, in the order of their ids, and its tokens.
    """
    # As bytes with the highest first, ids sort as numbers do, and rows that begin alike meet.
    order = sorted(range(len(rows)), key=lambda index: rows[index].astype(">u4").tobytes())
    trees: list[list[int]] = []
    lengths: list[int] = []
    for place, index in enumerate(order):
        length = len(rows[index])
        if place > 0:
            n_shared = n_common_tokens(rows[order[place - 1]], rows[index])
            joined = lengths[-1] + length - n_shared
            more_to_look_at = joined**2 - lengths[-1] ** 2 - length**2
            saved = n_shared * n_channels * TOKENS_LOOKED_AT_PER_CHANNEL
            if joined <= most_tokens and more_to_look_at < saved:
                trees[-1].append(index)
                lengths[-1] = joined
                continue
        trees.append([index])
        lengths.append(length)
    return trees, lengths


def plan_batches(
    trees: Sequence[list[int]], lengths: Sequence[int], batch_tokens: int
) -> Iterator[RowBatch]:
    """Batches that hold each tree once: those of several rows first, then the others.

    Args:
        trees: the indices of the rows of each.
        lengths: tokens of each tree.
        batch_tokens: padded tokens of a batch, unless one tree is longer.
    """
    for is_joined in (True, False):
        chosen = [number for number, tree in enumerate(trees) if (len(tree) > 1) == is_joined]
        for batch in pack_batches([lengths[number] for number in chosen], batch_tokens):
            yield RowBatch([trees[chosen[place]] for place in batch])


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
