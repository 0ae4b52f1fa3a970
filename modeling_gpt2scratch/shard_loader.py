"""Batches for training and validation, cut from the token stream of a split.

The stream of N tokens is cut into windows: window i reads T + 1 tokens from token i * T, so every
token but the first is predicted once, and the shift by one between inputs and targets is made here
and nowhere else. Windows cross shard borders; a tail shorter than a window is not used.

Row g of the run (g = step * rows_per_step + row) reads window `permutation(g mod n_windows)` of
epoch `g // n_windows`. That depends on nothing but the seed and g: any number of processes, any
micro-batch size and any resumed run see the same rows in the same steps, and the training state
needs no position beyond the step.

Shapes: B rows of a micro-batch, T tokens.
"""

from pathlib import Path

import numpy as np
import torch

from .token_shards import Manifest, ShardError, check_token_ids, read_shard

FEISTEL_ROUNDS = 6


class TokenWindows:
    """The windows of one split.

    Args:
        directory: what `prepare_data.py` made.
        split: "train" or "val".
        sequence_length: T.
        rank: of this process; the processes share the work of checking the ids.
        world_size: number of processes.

    Raises:
        ShardError: if the split is missing, damaged or shorter than one window.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        *,
        sequence_length: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        manifest = Manifest.load(directory)
        if split not in manifest.splits:
            raise ShardError(
                f"{directory}: expected a split {split!r}, found {sorted(manifest.splits)}"
            )
        entries = manifest.splits[split].shards
        vocab_size = manifest.vocab_size
        self._shards = [
            read_shard(directory / entry.file, n_tokens=entry.n_tokens, vocab_size=vocab_size)
            for entry in entries
        ]
        for entry, tokens in list(zip(entries, self._shards, strict=True))[rank::world_size]:
            check_token_ids(directory / entry.file, tokens, vocab_size=vocab_size)
        # First token of each shard in the stream, and the end of the last.
        self._starts = np.cumsum([0, *(len(tokens) for tokens in self._shards)])
        self.n_tokens = int(self._starts[-1])
        self.sequence_length = sequence_length
        if len(self) == 0:
            raise ShardError(
                f"{directory}: expected more than {sequence_length} tokens in split {split!r}, "
                f"found {self.n_tokens}; prepare more text or lower the sequence length"
            )

    def __len__(self) -> int:
        """Number of whole windows."""
        return max(0, self.n_tokens - 1) // self.sequence_length

    def read(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of these windows, two int64 tensors of shape (B, T)."""
        rows = np.empty((len(indices), self.sequence_length + 1), dtype=np.int64)
        for row, index in zip(rows, indices, strict=True):
            self._read_stream(int(index) * self.sequence_length, row)
        tokens = torch.from_numpy(rows)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def _read_stream(self, position: int, out: np.ndarray) -> None:
        """Fills `out` with the tokens from `position` on, from as many shards as it takes."""
        n_read = 0
        shard = int(np.searchsorted(self._starts, position, side="right")) - 1
        while n_read < len(out):
            offset = position + n_read - int(self._starts[shard])
            piece = self._shards[shard][offset : offset + len(out) - n_read]
            out[n_read : n_read + len(piece)] = piece
            n_read += len(piece)
            shard += 1


class ShardLoader:
    """Training batches of one process; see the head of this file for the order.

    Args:
        windows: of the training split.
        rows_per_step: rows of one optimizer step, all processes and micro-steps together.
        micro_batch_size: B, rows per process and micro-step.
        rank: of this process.
        world_size: number of processes.
        seed: of the shuffle.

    Raises:
        ValueError: unless `micro_batch_size * world_size` divides `rows_per_step`.
    """

    def __init__(
        self,
        windows: TokenWindows,
        *,
        rows_per_step: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
    ):
        if not 0 <= rank < world_size:
            raise ValueError(f"expected 0 <= rank < world_size={world_size}, found rank={rank}")
        if rows_per_step % (micro_batch_size * world_size):
            raise ValueError(
                f"expected rows_per_step divisible by micro_batch_size x processes = "
                f"{micro_batch_size} x {world_size}, found {rows_per_step}"
            )
        self.windows = windows
        self.rows_per_step = rows_per_step
        self.micro_batch_size = micro_batch_size
        self.micro_steps = rows_per_step // (micro_batch_size * world_size)
        self._rank = rank
        self._world_size = world_size
        self._seed = seed

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps after which every window has been read once."""
        return len(self.windows) / self.rows_per_step

    def batch(self, step: int, micro_step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, two int64 tensors of shape (B, T), in constant time for any step."""
        return self.windows.read(self.window_indices(step, micro_step))

    def window_indices(self, step: int, micro_step: int) -> np.ndarray:
        """Which windows (B,) this process reads in this micro-step."""
        rows_of_all = self.micro_batch_size * self._world_size
        first = step * self.rows_per_step + micro_step * rows_of_all
        first += self._rank * self.micro_batch_size
        rows = np.arange(first, first + self.micro_batch_size, dtype=np.uint64)
        epochs, positions = np.divmod(rows, np.uint64(len(self.windows)))
        # A micro-batch may straddle the border between two epochs, which are shuffled differently.
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            positions[chosen] = shuffled(
                positions[chosen], n=len(self.windows), seed=self._seed, epoch=int(epoch)
            )
        return positions


def shuffled(positions: np.ndarray, *, n: int, seed: int, epoch: int) -> np.ndarray:
    """A random permutation of range(n), evaluated at `positions` alone.

    A balanced Feistel network permutes the smallest power of four that holds n; results beyond n
    are sent through it again until they fall inside. Neither memory nor time grows with n, and
    unlike numpy's generators the result never changes between versions.

    Args:
        positions: uint64 values below `n`.
        n: length of the permuted range.
        seed: of the run.
        epoch: every epoch has a permutation of its own.

    Source: Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains" (cycle walking).
    """
    half_bits = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    keys = np.random.SeedSequence((seed, epoch)).generate_state(FEISTEL_ROUNDS, np.uint64)
    permuted = positions.astype(np.uint64)
    outside = np.ones(len(permuted), dtype=bool)
    while outside.any():
        left, right = permuted[outside] >> half_bits, permuted[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        permuted[outside] = (left << half_bits) | right
        outside = permuted >= n
    return permuted


def _mixed(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 in which every output bit depends on every input bit.

    Source: the finaliser of SplitMix64, Steele, Lea and Flood 2014.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
