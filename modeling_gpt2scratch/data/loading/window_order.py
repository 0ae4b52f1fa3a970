"""Which window of which source stands in which row of a run: pure arithmetic on numbers.

Row g of the run (g = step * rows_per_step + row) belongs to one source, and there to the source's
row r; row r reads position r mod n_windows of epoch r // n_windows. Both maps depend on nothing but
the seed and the row number, and take the same time for any row: any number of processes, any
micro-batch size and any resumed run see the same rows in the same steps.

A source's windows are permuted as a whole, or in groups: then groups are visited one after another
in an order of their own in each epoch, and windows are permuted within their group, so that only
the files of one group need to be at hand.
"""

import functools
from collections.abc import Sequence

import numpy as np

FEISTEL_ROUNDS = 6
GOLDEN_RATIO = (5**0.5 - 1) / 2
# Goes up when rows read other tokens than before; 1 cut each epoch at the same places.
ORDER_VERSION = 2
PERIOD = 10_000  # rows of a mixture after which the shares are exact
# Streams of random numbers. The whole order of the first source is that of (seed, epoch) alone.
_WHOLE, _GROUPS, _MIXTURE = range(3)
_FIRST_GROUP = 3


class WindowOrder:
    """The order of one source's windows.

    Args:
        group_starts: first window of each group and the number of all windows, not decreasing;
            groups without windows are never visited.
        source: number of the source in the run; each has an order of its own.
    """

    def __init__(self, group_starts: Sequence[int], *, seed: int, source: int = 0):
        starts = np.asarray(group_starts, dtype=np.uint64)
        self.n_windows = int(starts[-1])
        self.groups = np.flatnonzero(np.diff(starts))  # numbers of those with windows
        self._starts = starts[self.groups]
        self._sizes = np.diff(starts)[self.groups]
        self._seed = seed
        self._source = source
        self._visits = functools.lru_cache(maxsize=4)(self._visits_of_epoch)

    def windows(self, rows: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """What the source's rows read, in the order of the visits to groups.

        Args:
            rows: ascending uint64 numbers, (R,).

        Returns:
            (visit, chosen, windows) for each visit: its running number for `group_of_visit`, which
            of the rows (indices) and the uint64 window of each.
        """
        epochs, positions = np.divmod(rows, np.uint64(self.n_windows))
        found = []
        # Rows may straddle the border between two epochs, or between two groups.
        for epoch in np.unique(epochs):
            in_epoch = np.flatnonzero(epochs == epoch)
            order, ends = self._visits(int(epoch))
            turns = np.searchsorted(ends, positions[in_epoch], side="right")
            for turn in np.unique(turns):
                chosen = in_epoch[turns == turn]
                group = int(order[turn])
                offsets = positions[chosen] - (ends[turn] - self._sizes[group])
                windows = self._starts[group] + shuffled(
                    offsets,
                    n=int(self._sizes[group]),
                    seed=self._seed,
                    epoch=int(epoch),
                    stream=self._stream(group),
                )
                found.append((int(epoch) * len(self.groups) + int(turn), chosen, windows))
        return found

    def epoch_of_visit(self, visit: int) -> int:
        """The epoch in which the `visit`-th visit to a group is made."""
        return visit // len(self.groups)

    def group_of_visit(self, visit: int) -> int:
        """The group, by its place in `group_starts`, that is visited `visit`-th, epochs on end."""
        epoch, turn = divmod(visit, len(self.groups))
        order, _ = self._visits(epoch)
        return int(self.groups[order[turn]])

    def _visits_of_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the groups in an epoch, and the position at which each visit ends."""
        order = shuffled(
            np.arange(len(self.groups), dtype=np.uint64),
            n=len(self.groups),
            seed=self._seed,
            epoch=epoch,
            stream=(self._source, _GROUPS),
        )
        return order, np.cumsum(self._sizes[order], dtype=np.uint64)

    def _stream(self, group: int) -> tuple[int, ...]:
        """The stream of random numbers that permutes a group."""
        if len(self.groups) > 1:
            return (self._source, _FIRST_GROUP + group)
        return (self._source, _WHOLE) if self._source else ()


class MixtureOrder:
    """Which source a row of the run belongs to.

    In every `PERIOD` rows each source has its share, rounded to whole rows, at permuted places.

    Args:
        weights: positive, one per source; only their ratios count.

    Raises:
        ValueError: if a source's share is less than one row in `PERIOD`.
    """

    def __init__(self, weights: Sequence[float], *, seed: int):
        self.quotas = largest_remainder(weights, PERIOD)
        if not all(self.quotas):
            smallest = min(weights) / sum(weights)
            raise ValueError(f"expected shares of at least 1 in {PERIOD:,}, found {smallest:.4g}")
        self._seed = seed
        self._periods = functools.lru_cache(maxsize=4)(self._period)

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source and row within the source of each row of the run.

        Args:
            rows: uint64 numbers, (R,).

        Returns:
            Two arrays (R,). A source's rows, in the order of the run, are 0, 1, 2 and so on.
        """
        periods, positions = np.divmod(rows, np.uint64(PERIOD))
        sources = np.empty(len(rows), dtype=np.int64)
        source_rows = np.empty(len(rows), dtype=np.uint64)
        for period in np.unique(periods):
            chosen = periods == period
            source_at, number_at = self._periods(int(period))
            sources[chosen] = source_at[positions[chosen]]
            source_rows[chosen] = number_at[positions[chosen]]
        quotas = np.asarray(self.quotas, dtype=np.uint64)
        return sources, periods * quotas[sources] + source_rows

    def _period(self, period: int) -> tuple[np.ndarray, np.ndarray]:
        """The source at each place of a period, and how many of that source stand before it."""
        slots = shuffled(
            np.arange(PERIOD, dtype=np.uint64),
            n=PERIOD,
            seed=self._seed,
            epoch=period,
            stream=(0, _MIXTURE),
        )
        sources = np.searchsorted(np.cumsum(self.quotas), slots, side="right")
        numbers = np.empty(PERIOD, dtype=np.uint64)
        for source, quota in enumerate(self.quotas):
            numbers[sources == source] = np.arange(quota, dtype=np.uint64)
        return sources, numbers


def window_shift(epoch: int, sequence_length: int) -> int:
    """How many tokens later than in epoch 0 a window begins; below `sequence_length`.

    Text that is read again is cut elsewhere, so that it is learnt less by heart. The shifts of any
    number of epochs lie evenly: they are the fractions of multiples of the golden ratio.

    Source: Knuth 1998, The Art of Computer Programming 3, section 6.4, theorem S.
    """
    return int(epoch * GOLDEN_RATIO % 1 * sequence_length)


def largest_remainder(weights: Sequence[float], total: int) -> list[int]:
    """`total` shared out in whole numbers, each within 1 of its weight's exact share."""
    exact = np.asarray(weights, dtype=np.float64) * (total / sum(weights))
    shares = np.floor(exact).astype(int)
    by_remainder = np.argsort(shares - exact, kind="stable")
    shares[by_remainder[: total - shares.sum()]] += 1
    return shares.tolist()


def shuffled(
    positions: np.ndarray, *, n: int, seed: int, epoch: int, stream: tuple[int, ...] = ()
) -> np.ndarray:
    """A random permutation of range(n), evaluated at `positions` alone.

    A balanced Feistel network permutes the smallest power of four that holds n; results beyond n
    are sent through it again until they fall inside. Neither memory nor time grows with n, and
    unlike numpy's generators the result never changes between versions.

    Args:
        positions: uint64 values below `n`.
        n: length of the permuted range.
        epoch: every epoch has a permutation of its own.
        stream: every stream has permutations of its own.

    Source: Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains" (cycle walking).
    """
    half_bits = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    permuted = positions.astype(np.uint64)
    outside = np.ones(len(permuted), dtype=bool)
    while outside.any():
        left, right = permuted[outside] >> half_bits, permuted[outside] & mask
        for key in _keys(seed, epoch, stream):
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        permuted[outside] = (left << half_bits) | right
        outside = permuted >= n
    return permuted


@functools.lru_cache(maxsize=1024)
def _keys(seed: int, epoch: int, stream: tuple[int, ...]) -> np.ndarray:
    """The keys of the rounds."""
    entropy = np.random.SeedSequence((seed, epoch), spawn_key=stream)
    return entropy.generate_state(FEISTEL_ROUNDS, np.uint64)


def _mixed(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 in which every output bit depends on every input bit.

    Source: the finaliser of SplitMix64, Steele, Lea and Flood 2014.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
