"""Where the windows of each epoch begin. Streams here count up: a token is its own place."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.counting_shards import write_stream

from modeling_gpt2scratch.data.loading.loader import TokenWindows
from modeling_gpt2scratch.data.loading.window_order import window_shift


@settings(max_examples=40, deadline=None)  # few, because every shard is flushed to the disk
@given(
    n_windows=st.integers(1, 40),
    sequence_length=st.integers(1, 12),
    shard_tokens=st.integers(1, 50),
    shuffle_shards=st.integers(0, 4),
    epoch=st.integers(0, 1000),
)
def test_each_epoch_cuts_the_stream_elsewhere_and_needs_the_same_shards(
    tmp_path_factory, n_windows, sequence_length, shard_tokens, shuffle_shards, epoch
):
    directory = tmp_path_factory.mktemp("data")
    write_stream(directory, n_windows * sequence_length + 1, shard_tokens=shard_tokens)
    windows = TokenWindows(
        directory, "train", sequence_length=sequence_length, shuffle_shards=shuffle_shards
    )
    shift = window_shift(epoch, sequence_length)
    for group, (first, stop) in enumerate(itertools.pairwise(windows.group_starts.tolist())):
        rows = windows.read(np.arange(first, stop), epoch=epoch)
        starts = [number * sequence_length + shift for number in range(first, stop)]
        starts[-1:] = [(stop - 1) * sequence_length] * (stop > first)  # the last never moves
        assert rows.tolist() == [
            list(range(start, start + sequence_length + 1)) for start in starts
        ]
        if stop > first:
            ends = np.cumsum([entry.n_tokens for entry in windows.entries])
            shards = np.searchsorted(ends, rows.ravel(), side="right")
            assert set(shards.tolist()) <= set(windows.shards_of_group(group))


def test_the_cuts_of_many_epochs_lie_evenly():
    assert window_shift(0, 1024) == 0
    for n_epochs in (2, 5, 20, 100):
        shifts = sorted(window_shift(epoch, 1024) for epoch in range(n_epochs))
        gaps = np.diff([*shifts, 1024])
        # By the three-distance theorem; shifts by chance would lie close together.
        assert 0.4 * 1024 / n_epochs < gaps.min() <= gaps.max() < 1.9 * 1024 / n_epochs + 1
