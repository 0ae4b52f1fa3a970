"""A GPT-2 as single-file training scripts have it: plain modules, all logits, one cross-entropy.

Shapes: B sequences, T tokens, H heads, D head size, C = H * D channels, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Causal attention and MLP, each on normalized input and added to the residual stream."""

    def __init__(self, n_embd: int, n_head: int):
        super().__init__()
        self.n_head = n_head
        self.attention_norm, self.mlp_norm = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.qkv = nn.Linear(n_embd, 3 * n_embd)
        self.attention_out = nn.Linear(n_embd, n_embd)
        self.mlp_in = nn.Linear(n_embd, 4 * n_embd)
        self.mlp_out = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        n_rows, n_tokens, n_embd = x.shape
        query, key, value = (
            part.view(n_rows, n_tokens, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
            for part in self.qkv(self.attention_norm(x)).split(n_embd, dim=2)
        )
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        attended = attended.transpose(1, 2).reshape(n_rows, n_tokens, n_embd)
        x = x + self.attention_out(attended)
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x)), approximate="tanh"))


class PlainGPT(nn.Module):
    """Embeddings, blocks, the final norm and a head tied to the token embedding."""

    def __init__(
        self, *, vocab_size: int, n_positions: int, n_embd: int, n_layer: int, n_head: int
    ):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, n_embd)
        self.positions = nn.Embedding(n_positions, n_embd)
        self.blocks = nn.ModuleList(Block(n_embd, n_head) for _ in range(n_layer))
        self.norm = nn.LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size, bias=False)
        self.head.weight = self.tokens.weight
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of (B, T) tokens and the (B, T) that follow them."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.tokens(input_ids) + self.positions(positions)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))  # (B, T, V)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))
