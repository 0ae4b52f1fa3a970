"""Batches for training and validation, cut from the token stream of a split.

The stream of N tokens is cut into windows: window i reads T + 1 tokens from token i * T, so every
token but the first is predicted once, and the shift by one between inputs and targets is made here
and nowhere else. Windows cross shard borders; a tail shorter than a window is not used. Each
further epoch cuts the stream in other places. In which order windows are read, see
`window_order.py`: the training state needs no position but the step.

Shapes: B rows of a micro-batch, T tokens.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modeling_gpt2scratch.data.shards.directory import shard_layout
from modeling_gpt2scratch.data.shards.format import ShardError, check_token_ids, first_stranger

from .store import LocalStore, RemoteStore
from .window_order import MixtureOrder, WindowOrder, window_shift


class TokenWindows:
    """The windows of one split of one data set.

    Args:
        store: where the shards come from, or a local data directory.
        split: "train" or "val".
        sequence_length: T.
        shuffle_shards: shards of a group in which windows are shuffled, 0 for all together. A
            window belongs to the shard of its first token.

    Raises:
        ShardError: if the split is missing, shorter than one window, or, where its shards are at
            hand, damaged. Ids are checked as they are read.
    """

    def __init__(
        self,
        store: LocalStore | RemoteStore | Path,
        split: str,
        *,
        sequence_length: int,
        shuffle_shards: int = 0,
    ):
        self._store = LocalStore(store) if isinstance(store, Path) else store
        manifest, self.name = self._store.manifest, self._store.name
        if split not in manifest.splits:
            raise ShardError(
                f"{self.name}: expected a split {split!r}, found {sorted(manifest.splits)}"
            )
        self._split = split
        self.entries = manifest.splits[split].shards
        self.vocab_size = manifest.vocab_size
        # Other programs' files may be of several types; ids are checked before they are narrowed.
        types = {shard_layout(entry, self.vocab_size).dtype for entry in self.entries}
        self._dtype = np.dtype(types.pop() if len(types) == 1 else np.int64)
        self.sequence_length = sequence_length
        # First token of each shard in the stream, and the end of the last.
        self._starts = np.cumsum([0, *(entry.n_tokens for entry in self.entries)])
        self.n_tokens = int(self._starts[-1])
        if len(self) == 0:
            raise ShardError(
                f"{self.name}: expected more than {sequence_length} tokens in split {split!r}, "
                f"found {self.n_tokens}; prepare more text{', hold more out' * (split == 'val')}, "
                f"or lower --sequence_length"
            )
        firsts = self._starts[: -1 : shuffle_shards or len(self.entries)]
        self.group_starts = np.append(
            np.minimum(-(-firsts // sequence_length), len(self)), len(self)
        )
        self._shards: list[np.ndarray | None] = [None] * len(self.entries)
        self._groups_at_hand: tuple[int, ...] = ()
        if not self._store.is_remote:
            self._shards = [self._store.open(entry) for entry in self.entries]

    def __getstate__(self) -> dict:
        """For another process, which opens the shards again: the tokens stay in their files."""
        return self.__dict__ | {"_shards": [None] * len(self.entries), "_groups_at_hand": ()}

    def __len__(self) -> int:
        """Number of whole windows."""
        return max(0, self.n_tokens - 1) // self.sequence_length

    def read(self, indices: np.ndarray, *, epoch: int = 0) -> np.ndarray:
        """The tokens of these windows, (B, T + 1), in the type of the shards.

        Args:
            indices: of the windows, (B,).
            epoch: how often the windows were all read before. In each epoch they begin elsewhere.

        Raises:
            ShardError: if an id is outside the vocabulary, or a shard does not come.
        """
        n_wanted = self.sequence_length + 1
        positions = self._first_tokens(indices, epoch)
        shards = np.searchsorted(self._starts, positions, side="right") - 1
        offsets = (positions - self._starts[shards]).tolist()
        tokens = np.empty((len(positions), n_wanted), dtype=self._dtype)
        for row, shard, offset in zip(tokens, shards.tolist(), offsets, strict=True):
            piece = self._shard(shard)[offset : offset + n_wanted]
            n_read = len(piece)
            row[:n_read] = piece
            while n_read < n_wanted:
                shard += 1
                piece = self._shard(shard)[: n_wanted - n_read]
                row[n_read : n_read + len(piece)] = piece
                n_read += len(piece)
        if (first := first_stranger(tokens, self.vocab_size)) is not None:
            row, column = divmod(first, n_wanted)
            self._refuse_id(positions[row] + column)
        return tokens

    def locate(self, indices: np.ndarray, *, epoch: int = 0) -> list[tuple[str, int]]:
        """Where these windows begin: the shard's file, and the token's place in it."""
        positions = self._first_tokens(indices, epoch)
        shards = np.searchsorted(self._starts, positions, side="right") - 1
        offsets = positions - self._starts[shards]
        return [
            (self.entries[shard].file, offset)
            for shard, offset in zip(shards.tolist(), offsets.tolist(), strict=True)
        ]

    def enter(self, group: int, next_group: int) -> None:
        """Waits for the shards of a group of windows, and orders those of the next in advance.

        Local shards are always at hand.
        """
        if not self._store.is_remote or self._groups_at_hand == (group, next_group):
            return
        current, following = self.shards_of_group(group), self.shards_of_group(next_group)
        wanted = [*current, *(number for number in following if number not in current)]
        self._store.want(self._split, [self.entries[number] for number in wanted])
        # Open files stay readable, even if another process makes room in the cache.
        for number in range(len(self._shards)):
            self._shards[number] = self._shard(number) if number in current else None
        self._groups_at_hand = (group, next_group)

    def keep(self, n_windows: int) -> None:
        """Orders the shards of the first windows, which stay at hand."""
        if self._store.is_remote:
            shards = self._shards_of_windows(0, n_windows)
            self._store.want(self._split, [self.entries[number] for number in shards])

    def bytes_at_hand(self) -> int:
        """The most that two groups of windows need of the cache; nothing for local shards."""
        groups = range(len(self.group_starts) - 1)
        sizes = sorted(self._bytes_of(self.shards_of_group(group)) for group in groups)
        return sum(sizes[-2:])

    def bytes_of_first(self, n_windows: int) -> int:
        """What the first windows need of the cache; nothing for local shards."""
        return self._bytes_of(self._shards_of_windows(0, n_windows))

    def shards_of_group(self, group: int) -> range:
        """Numbers of the shards that a group's windows reach into."""
        return self._shards_of_windows(self.group_starts[group], self.group_starts[group + 1])

    def verify(self, rank: int = 0, world_size: int = 1) -> None:
        """Reads this process's part of the shards and compares checksums and ids.

        Raises:
            ShardError: at the first shard that differs.
        """
        for entry in self.entries[rank::world_size]:
            self._store.verify(entry)

    def _first_tokens(self, indices: np.ndarray, epoch: int) -> np.ndarray:
        """Where these windows begin in the stream, (B,).

        The last window of a group never moves, so that a group needs the same shards in each epoch.
        """
        indices = np.asarray(indices, dtype=np.int64)
        group_ends = self.group_starts[np.searchsorted(self.group_starts, indices, side="right")]
        starts = indices * self.sequence_length + window_shift(epoch, self.sequence_length)
        return np.minimum(starts, (group_ends - 1) * self.sequence_length)

    def _shards_of_windows(self, first: int, stop: int) -> range:
        """Numbers of the shards that windows `first` to `stop - 1` reach into."""
        ends = np.array([first, stop]) * self.sequence_length
        begin, end = np.searchsorted(self._starts, ends, side="right") - 1
        return range(int(begin), int(end) + 1)

    def _bytes_of(self, shards: range) -> int:
        """Size of these shards in the cache."""
        if not self._store.is_remote:
            return 0
        return sum(self._store.bytes_of(self.entries[number]) for number in shards)

    def _shard(self, number: int) -> np.ndarray:
        """The tokens of a shard, opened on first use."""
        if self._shards[number] is None:
            self._shards[number] = self._store.open(self.entries[number])
        return self._shards[number]

    def _refuse_id(self, position: int) -> None:
        """Says which shard holds an id that is outside the vocabulary."""
        shard = int(np.searchsorted(self._starts, position, side="right")) - 1
        label = self._store.label(self.entries[shard])
        check_token_ids(label, self._shard(shard), vocab_size=self.vocab_size)


class ShardLoader:
    """Training batches of one process.

    Args:
        windows: of the training split, or of several sources that share a vocabulary.
        rows_per_step: rows of one optimizer step, all processes and micro-steps together.
        micro_batch_size: B, rows per process and micro-step.
        world_size: number of processes.
        weights: shares of several sources; by their numbers of windows if None.
        document_start: id with which documents begin, if they are to be kept apart.

    Raises:
        ValueError: unless `0 <= rank < world_size`, and `micro_batch_size * world_size` divides
            `rows_per_step`; if a source's share is below one row in 10,000.
    """

    def __init__(
        self,
        windows: TokenWindows | Sequence[TokenWindows],
        *,
        rows_per_step: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        weights: Sequence[float] | None = None,
        document_start: int | None = None,
    ):
        if not 0 <= rank < world_size:
            raise ValueError(f"expected 0 <= rank < world_size={world_size}, found rank={rank}")
        if rows_per_step % (micro_batch_size * world_size):
            raise ValueError(
                f"expected rows_per_step divisible by micro_batch_size x processes = "
                f"{micro_batch_size} x {world_size}, found {rows_per_step}"
            )
        self.sources = [windows] if isinstance(windows, TokenWindows) else list(windows)
        self.rows_per_step = rows_per_step
        self.micro_batch_size = micro_batch_size
        self.micro_steps = rows_per_step // (micro_batch_size * world_size)
        self._rank = rank
        self._world_size = world_size
        self._document_start = document_start
        self._mixture = None
        if len(self.sources) > 1:
            weights = weights or [len(source) for source in self.sources]
            self._mixture = MixtureOrder(weights, seed=seed)
        self._orders = [
            WindowOrder(source.group_starts, seed=seed, source=number)
            for number, source in enumerate(self.sources)
        ]

    def epochs(self, n_steps: int) -> list[float]:
        """How often each source has been read after so many optimizer steps."""
        shares = np.array(self._mixture.quotas if self._mixture else [1])
        rows = n_steps * self.rows_per_step * (shares / shares.sum())
        return [float(n / len(source)) for n, source in zip(rows, self.sources, strict=True)]

    def batch(self, step: int, micro_step: int) -> dict[str, Tensor]:
        """The model's arguments for this micro-step; takes the same time for any step.

        Returns:
            "input_ids" and "shift_labels", int64 tensors of shape (B, T), and "position_ids" if
            documents are kept apart.

        Raises:
            ShardError: if a shard is damaged or does not come.
        """
        return model_inputs(
            self._read(self.rows(step, micro_step)), document_start=self._document_start
        )

    def locate(self, step: int, micro_step: int, rank: int) -> list[tuple[str, str, int]]:
        """Where the rows of a process's micro-batch come from: data set, shard's file, token."""
        rows = self.rows(step, micro_step, rank)
        places: list[tuple[str, str, int]] = [("", "", 0)] * len(rows)
        for number, visit, chosen, windows in self._windows(rows):
            source, epoch = self.sources[number], self._orders[number].epoch_of_visit(visit)
            found = source.locate(windows, epoch=epoch)
            for place, (file, offset) in zip(chosen, found, strict=True):
                places[place] = (source.name, file, offset)
        return places

    def rows(self, step: int, micro_step: int, rank: int | None = None) -> np.ndarray:
        """Numbers of the run's rows (B,) that a process, this one if None, reads."""
        rank = self._rank if rank is None else rank
        rows_of_all = self.micro_batch_size * self._world_size
        first = step * self.rows_per_step + micro_step * rows_of_all
        first += rank * self.micro_batch_size
        return np.arange(first, first + self.micro_batch_size, dtype=np.uint64)

    def _windows(self, rows: np.ndarray) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """Where rows of the run (B,) are read: (source, visit, which of the rows, windows)."""
        numbers, source_rows = np.zeros(len(rows), dtype=np.int64), rows
        if self._mixture:
            numbers, source_rows = self._mixture.locate(rows)
        for number in np.unique(numbers).tolist():
            own = np.flatnonzero(numbers == number)
            for visit, chosen, windows in self._orders[number].windows(source_rows[own]):
                yield number, visit, own[chosen], windows

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """The tokens (B, T + 1) of these rows of the run."""
        tokens = None
        for number, visit, chosen, windows in self._windows(rows):
            source, order = self.sources[number], self._orders[number]
            source.enter(order.group_of_visit(visit), order.group_of_visit(visit + 1))
            found = source.read(windows, epoch=order.epoch_of_visit(visit))
            if len(found) == len(rows):
                return found
            if tokens is None:
                tokens = np.empty((len(rows), found.shape[1]), dtype=found.dtype)
            tokens[chosen] = found
        return tokens


def model_inputs(tokens: np.ndarray, *, document_start: int | None = None) -> dict[str, Tensor]:
    """Windows as arguments of the model.

    Args:
        tokens: (B, T + 1).
        document_start: id with which documents begin; None lets attention cross their borders.

    Returns:
        "input_ids" and "shift_labels", int64 tensors (B, T); with `document_start` also
        "position_ids", which restart at 0 where a document begins.
    """
    batch = {"input_ids": tokens[:, :-1], "shift_labels": tokens[:, 1:]}
    if document_start is not None:
        begins = tokens[:, :-1] == document_start
        begins[:, 0] = True
        firsts = np.flatnonzero(begins)
        lengths = np.diff(firsts, append=begins.size)
        positions = np.arange(begins.size) - np.repeat(firsts, lengths)
        batch["position_ids"] = positions.reshape(begins.shape)
    return {name: torch.from_numpy(ids.astype(np.int64)) for name, ids in batch.items()}
