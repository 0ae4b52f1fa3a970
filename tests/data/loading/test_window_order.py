"""The order of rows as arithmetic: permutations, groups of shards, and shares of a mixture."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_gpt2scratch.data.loading.window_order import (
    PERIOD,
    MixtureOrder,
    WindowOrder,
    largest_remainder,
    shuffled,
)

group_sizes = st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(any)


def starts_of(sizes):
    """Group borders, as `WindowOrder` takes them."""
    return np.cumsum([0, *sizes]).tolist()


def in_order(order, rows):
    """(group, window) of each row."""
    found = [None] * len(rows)
    for visit, chosen, windows in order.windows(np.array(rows, dtype=np.uint64)):
        for index, window in zip(chosen.tolist(), windows.tolist(), strict=True):
            found[index] = (order.group_of_visit(visit), window)
    return found


@settings(deadline=None)
@given(n=st.integers(1, 2000), seed=st.integers(0, 2**40), epoch=st.integers(0, 2**20))
def test_shuffled_is_a_permutation(n, seed, epoch):
    positions = np.arange(n, dtype=np.uint64)
    assert sorted(shuffled(positions, n=n, seed=seed, epoch=epoch)) == list(range(n))


@pytest.mark.parametrize("n", [2**k + d for k in (2, 6, 10) for d in (-1, 0, 1)])
def test_shuffled_is_a_permutation_around_powers_of_two(n):
    permuted = shuffled(np.arange(n, dtype=np.uint64), n=n, seed=0, epoch=0)
    assert sorted(permuted) == list(range(n))


@given(
    n=st.integers(2**31, 2**48),
    fractions=st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=30, unique=True),
)
def test_shuffled_keeps_positions_apart_in_ranges_too_large_to_list(n, fractions):
    positions = np.unique(np.array([int(fraction * n) for fraction in fractions], np.uint64))
    permuted = shuffled(positions, n=n, seed=0, epoch=0)
    assert len(np.unique(permuted)) == len(positions)
    assert permuted.max() < n


@given(n=st.integers(1, 500), data=st.data())
def test_shuffled_of_one_position_is_what_it_is_among_all(n, data):
    position = data.draw(st.integers(0, n - 1))
    everything = shuffled(np.arange(n, dtype=np.uint64), n=n, seed=3, epoch=1)
    alone = shuffled(np.array([position], dtype=np.uint64), n=n, seed=3, epoch=1)
    assert alone.tolist() == [everything[position]]


@pytest.mark.parametrize(
    ("n", "seed", "epoch", "expected"),
    [
        (8, 0, 0, [0, 5, 3, 7, 6, 1, 2, 4]),
        (8, 0, 1, [6, 0, 7, 5, 3, 2, 1, 4]),
        (8, 1, 0, [1, 6, 5, 3, 2, 7, 4, 0]),
        (10, 1337, 3, [4, 7, 2, 0, 5, 3, 9, 8, 1, 6]),
    ],
)
def test_the_order_never_changes_between_versions(n, seed, epoch, expected):
    # A run that is resumed after an upgrade must go on in the order in which it began.
    permuted = shuffled(np.arange(n, dtype=np.uint64), n=n, seed=seed, epoch=epoch)
    assert permuted.tolist() == expected


def test_epochs_and_seeds_have_orders_of_their_own():
    positions = np.arange(1000, dtype=np.uint64)
    orders = {
        tuple(shuffled(positions, n=1000, seed=seed, epoch=epoch).tolist())
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(orders) == 25


@pytest.mark.parametrize("epoch", range(3))
def test_the_order_is_far_from_the_order_of_the_stream(epoch):
    n = 3000
    permuted = shuffled(np.arange(n, dtype=np.uint64), n=n, seed=0, epoch=epoch).astype(int)
    # Of a random permutation: mean distance n / 3, about two pairs of neighbours left, and one
    # element in its old place. The bounds are several standard deviations away.
    assert abs(np.abs(permuted - np.arange(n)).mean() - n / 3) < n / 30
    assert (np.abs(np.diff(permuted)) == 1).sum() < 20
    assert (permuted == np.arange(n)).sum() < 10


@settings(deadline=None)
@given(sizes=group_sizes, seed=st.integers(0, 2**40), source=st.integers(0, 3))
def test_every_epoch_reads_each_window_once_one_group_after_another(sizes, seed, source):
    starts, n_windows = starts_of(sizes), sum(sizes)
    order = WindowOrder(starts, seed=seed, source=source)
    found = in_order(order, range(3 * n_windows))
    for epoch in range(3):
        part = found[epoch * n_windows : (epoch + 1) * n_windows]
        assert sorted(window for _, window in part) == list(range(n_windows))
        for group, window in part:
            assert starts[group] <= window < starts[group + 1]
        groups = [group for group, _ in part]
        changes = sum(left != right for left, right in zip(groups, groups[1:], strict=False))
        assert changes == len(set(groups)) - 1  # a group that was left is not visited again
        visits = [
            order.group_of_visit(epoch * len(order.groups) + turn)
            for turn in range(len(order.groups))
        ]
        assert list(dict.fromkeys(groups)) == visits


@settings(deadline=None)
@given(sizes=group_sizes, data=st.data())
def test_any_rows_alone_are_what_they_are_among_all(sizes, data):
    order = WindowOrder(starts_of(sizes), seed=5)
    everything = in_order(order, range(3 * sum(sizes)))
    numbers = st.integers(0, len(everything) - 1)
    rows = sorted(data.draw(st.sets(numbers, min_size=1, max_size=10)))
    fresh = WindowOrder(starts_of(sizes), seed=5)
    assert in_order(fresh, rows) == [everything[row] for row in rows]


def test_one_group_of_the_first_source_is_in_the_order_of_earlier_versions():
    order = WindowOrder([0, 10], seed=1337)
    windows = [window for _, window in in_order(order, range(30, 40))]
    assert windows == [4, 7, 2, 0, 5, 3, 9, 8, 1, 6]  # epoch 3


def test_the_grouped_order_never_changes_between_versions():
    order = WindowOrder([0, 4, 8, 10], seed=1)
    windows = [window for _, window in in_order(order, range(20))]
    assert windows[:10] == [9, 8, 1, 0, 3, 2, 5, 4, 6, 7]
    assert windows[10:] == [9, 8, 1, 0, 3, 2, 6, 7, 4, 5]
    other = WindowOrder([0, 8], seed=0, source=1)
    assert [window for _, window in in_order(other, range(8))] == [3, 1, 2, 5, 0, 4, 7, 6]


def test_groups_epochs_seeds_and_sources_have_orders_of_their_own():
    orders = {
        tuple(window % 50 for _, window in in_order(order, range(first, first + 50)))
        for seed in range(3)
        for source in range(3)
        for order in [WindowOrder([0, 50, 100, 150], seed=seed, source=source)]
        for first in range(0, 450, 50)  # three epochs of three groups
    }
    assert len(orders) == 81


@given(weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=6), total=st.integers(1, 100_000))
def test_shares_are_whole_and_within_one_of_exact(weights, total):
    shares = largest_remainder(weights, total)
    assert sum(shares) == total
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - total * weight / sum(weights)) < 1 + 1e-6


@settings(deadline=None, max_examples=20)
@given(
    weights=st.lists(st.floats(0.01, 1), min_size=2, max_size=5),
    period=st.integers(0, 10**9),
    seed=st.integers(0, 2**40),
)
def test_each_period_of_a_mixture_holds_exact_shares_and_loses_no_row(weights, period, seed):
    order = MixtureOrder(weights, seed=seed)
    rows = np.arange(period * PERIOD, (period + 1) * PERIOD, dtype=np.uint64)
    sources, numbers = order.locate(rows)
    assert Counter(sources.tolist()) == dict(enumerate(order.quotas))
    for source, quota in enumerate(order.quotas):
        # In ascending order, so that a source never returns to a group of shards it has left.
        expected = range(period * quota, (period + 1) * quota)
        assert numbers[sources == source].tolist() == list(expected)


@settings(deadline=None, max_examples=20)
@given(
    rows=st.lists(st.integers(0, 5 * PERIOD), min_size=1, max_size=20), seed=st.integers(0, 2**40)
)
def test_a_row_of_a_mixture_alone_is_what_it_is_among_others(rows, seed):
    weights = [0.7, 0.2, 0.1]
    sources, numbers = MixtureOrder(weights, seed=seed).locate(np.array(rows, dtype=np.uint64))
    fresh = MixtureOrder(weights, seed=seed)
    for row, source, number in zip(rows, sources, numbers, strict=True):
        alone = fresh.locate(np.array([row], dtype=np.uint64))
        assert (alone[0][0], alone[1][0]) == (source, number)


def test_a_mixture_is_mixed_within_a_period():
    sources, _ = MixtureOrder([0.7, 0.3], seed=0).locate(np.arange(PERIOD, dtype=np.uint64))
    per_hundred = sources.reshape(100, 100).sum(axis=1)
    # Drawn without replacement: 30 on average, with a standard deviation of 4.6.
    assert per_hundred.min() > 10 and per_hundred.max() < 50


def test_the_order_of_a_mixture_never_changes_between_versions():
    sources, numbers = MixtureOrder([0.7, 0.3], seed=0).locate(
        np.arange(9_995, 10_005, dtype=np.uint64)
    )
    assert sources.tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert numbers.tolist() == [6995, 6996, 6997, 6998, 6999, 7000, 7001, 7002, 7003, 7004]


def test_a_share_of_no_row_in_a_period_is_refused():
    with pytest.raises(ValueError, match="shares of at least 1 in 10,000, found 1e-05"):
        MixtureOrder([1, 0.00001], seed=0)
