"""Keys and values of a beginning that several rows share, for the rest of each row."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

NO_WINDOWS = ("max_window_layers", "sliding_window_pattern")  # counts of layers


class SharedLayer(DynamicLayer):
    """One layer's keys and values of G beginnings, seen by rows that each continue one of them.

    A row's copy of its beginning lives for one layer at a time: nothing is added to this cache, and
    nothing kept of what an attention layer has seen.
    """

    def __init__(self, layer: CacheLayerMixin, owners: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = layer.keys, layer.values  # (G, H, P, D)
        self.dtype, self.device = self.keys.dtype, self.keys.device
        self.owners = owners.to(self.device)  # (B,), the beginning of each row
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of whole rows: (B, H, T, D) -> (B, H, P + T, D)."""
        return self._extend(self.keys, key_states), self._extend(self.values, value_states)

    def _extend(self, shared: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        n_rows = len(self.owners)
        if len(shared) == 1:
            beginnings = shared.expand(n_rows, -1, -1, -1)  # no copy but that of `cat`
        else:
            beginnings = shared.index_select(0, self.owners)
        return torch.cat([beginnings, states], dim=-2)


class SharedPrefix:
    """Keys and values of G beginnings, and how a model continues from them.

    Args:
        cache: what the model made of the beginnings, padded on the right to P tokens.
        lengths: (G,) int64, tokens of each beginning.
        context_tokens: positions that the model has.
    """

    def __init__(self, cache: Cache, lengths: torch.Tensor, context_tokens: int) -> None:
        self.cache = cache
        self.context_tokens = context_tokens
        self.lengths = lengths

    def inputs(self, owners: torch.Tensor, n_tokens: int) -> dict[str, Any]:
        """What a forward pass needs beside its (B, `n_tokens`) input ids.

        Args:
            owners: (B,) int64 below G, the beginning of each row.
            n_tokens: input ids of a row.
        """
        cache = Cache(layers=[SharedLayer(layer, owners) for layer in self.cache.layers])
        inputs: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        n_cached = int(self.lengths.max())
        if (self.lengths == n_cached).all():
            return inputs
        device = cache.layers[0].device
        lengths = self.lengths[owners].to(device)[:, None]  # (B, 1)
        is_token = torch.arange(n_cached, device=device) < lengths  # (B, P)
        is_own = torch.ones(len(owners), n_tokens, dtype=torch.bool, device=device)
        inputs["attention_mask"] = torch.cat([is_token, is_own], dim=1).long()
        positions = lengths + torch.arange(n_tokens, device=device)
        # Only padding can be beyond what the model has a position for.
        inputs["position_ids"] = positions.clamp(max=self.context_tokens - 1)
        return inputs


def smallest_window(config: PreTrainedConfig) -> int | None:
    """Tokens in the smallest window or chunk that attention is confined to, None if there is none.

    Every model has its own name for it (`sliding_window`, `window_size` of GPT-Neo,
    `attention_chunk_size` of Llama 4), so what only sounds like one counts too.
    """
    sizes = []
    for name, value in config.to_dict().items():
        if re.search("window|chunk|local_attention", name) and name not in NO_WINDOWS:
            values = value if isinstance(value, list | tuple) else [value]
            sizes += [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0]
    return min(sizes, default=None)
