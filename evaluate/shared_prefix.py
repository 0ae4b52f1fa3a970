"""Keys and values of a beginning that several rows share, for the rest of each row."""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer


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


def shared_cache(cache: Cache, owners: torch.Tensor) -> Cache:
    """A cache for rows of which row b continues beginning `owners[b]` of `cache`.

    Args:
        cache: what the model made of the G beginnings, all of one length; of `DynamicLayer`s.
        owners: (B,) int64 below G.
    """
    return Cache(layers=[SharedLayer(layer, owners) for layer in cache.layers])
