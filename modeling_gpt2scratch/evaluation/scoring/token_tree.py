"""Rows that begin alike, laid out as one row in which their common tokens stand once.

    the cat sat         the cat sat slept
    the cat slept  ->    0   1   2    2     positions
                         4   4   3    4     ends

Each token sees what comes before it in its own rows, so its hidden state is that of a whole row.
Rows come one after the other, and so a token is seen from its place to the end of the last row that
it belongs to.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from modeling_gpt2scratch.loading_gpt2scratch import prepared_mask

NO_WINDOWS = ("max_window_layers", "_pattern")  # ends of the names of counts of layers
LAYER_KINDS = ("layer_types", "layers_block_type", "block_types")  # lists in configs
# In the name of a kind of layers that go from token to token and know of no mask.
NO_ATTENTION = "conv|recurrent|mamba|linear|hybrid"


class TokenTree:
    """Rows of token ids, neighbours of which may begin alike, as one row of T tokens.

    Args:
        rows: the ids of each, one at least.

    Attributes:
        token_ids: (T,) int64.
        positions: (T,) int64, the place of each token in its own rows.
        ends: (T,) int64, the first of the T places that does not see the token any more.
        paths: for each row, the places of its tokens among the T, (L,) int64.
    """

    def __init__(self, rows: Sequence[np.ndarray]) -> None:
        token_ids, positions = [], []
        self.paths: list[np.ndarray] = []
        self.ends = np.empty(sum(map(len, rows)), dtype=np.int64)  # longer than T for now
        n_tokens, path = 0, np.empty(0, dtype=np.int64)
        for number, row in enumerate(rows):
            n_shared = n_common_tokens(rows[number - 1], row) if number else 0
            self.ends[path[n_shared:]] = n_tokens
            new = np.arange(n_tokens, n_tokens + len(row) - n_shared)
            path = np.concatenate([path[:n_shared], new])
            self.paths.append(path)
            token_ids.append(row[n_shared:])
            positions.append(np.arange(n_shared, len(row)))
            n_tokens += len(new)
        self.ends[path] = n_tokens
        self.ends = self.ends[:n_tokens]
        self.token_ids = np.concatenate(token_ids).astype(np.int64)
        self.positions = np.concatenate(positions)

    def __len__(self) -> int:
        """Number of tokens, T."""
        return len(self.token_ids)


def tree_inputs(
    trees: Sequence[TokenTree], *, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """What a forward pass of B trees needs beside their (B, T) ids, padded on the right.

    Nothing if each is a single row: padding on the right needs no mask.

    Args:
        dtype: of the mask: bool for one that is True where a token is seen, or that of the scores
            of attention for one to add to them.

    Returns:
        "position_ids", (B, T), and "attention_mask", (B, 1, T, T).
    """
    if all(len(tree.paths) == 1 for tree in trees):
        return {}
    longest = max(map(len, trees))
    positions = np.zeros((len(trees), longest), dtype=np.int64)
    ends = np.full((len(trees), longest), longest)  # so that padding sees something, itself
    for number, tree in enumerate(trees):
        positions[number, : len(tree)] = tree.positions
        ends[number, : len(tree)] = tree.ends
    place = torch.arange(longest, device=device)[:, None]  # (T, 1), of who looks
    sees = (place >= place.T) & (place < torch.from_numpy(ends).to(device)[:, None, None, :])
    mask = prepared_mask(sees, None if dtype == torch.bool else dtype)
    return {"position_ids": torch.from_numpy(positions).to(device), "attention_mask": mask}


def n_common_tokens(first: np.ndarray, second: np.ndarray) -> int:
    """Leading ids that two rows have in common."""
    n_tokens = min(len(first), len(second))
    differs = first[:n_tokens] != second[:n_tokens]
    return int(differs.argmax()) if differs.any() else n_tokens


def smallest_window(config: PreTrainedConfig) -> int | None:
    """Tokens in the smallest window or chunk that attention is confined to, None if there is none.

    Every model has its own name for it (`sliding_window`, `window_size` of GPT-Neo,
    `attention_chunk_size` of Llama 4), so what only sounds like one counts too.
    """
    sizes = []
    for name, value in config.to_dict().items():
        if re.search("window|chunk|local_attention", name) and not name.endswith(NO_WINDOWS):
            values = value if isinstance(value, list | tuple) else [value]
            sizes += [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0]
    return min(sizes, default=None)


def layers_without_mask(config: PreTrainedConfig) -> str | None:
    """The first kind of layers that take tokens one after the other, None if there is none.

    Convolutions and state spaces beside attention let a branch of a tree see the one before it.
    """
    for name in LAYER_KINDS:
        kinds = getattr(config, name, None)
        for kind in kinds if isinstance(kinds, list | tuple) else ():
            if re.search(NO_ATTENTION, str(kind)):
                return str(kind)
    return None
