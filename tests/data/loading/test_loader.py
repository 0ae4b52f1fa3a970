"""The order of training rows: every window once an epoch, the same for any number of processes.

The streams here count upward from 0, so that the first token of a row says where it was cut.
Shapes: B rows of a micro-batch, T tokens.
"""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.counting_shards import VOCAB_SIZE, write_stream
from support.token_directories import write_shard

from modeling_gpt2scratch.data.loading.loader import ShardLoader, TokenWindows, model_inputs
from modeling_gpt2scratch.data.loading.window_order import MixtureOrder, WindowOrder, shuffled
from modeling_gpt2scratch.data.shards.format import HEADER_BYTES, ShardError
from modeling_gpt2scratch.data.shards.manifest import Manifest

# Few examples, because every shard is flushed to the disk.
few_examples = settings(max_examples=40, deadline=None)
sequence_lengths = st.integers(1, 12)
world_sizes = st.integers(1, 4)
micro_batch_sizes = st.integers(1, 4)


def open_windows(directory, n_windows, sequence_length, *, shard_tokens, shuffle_shards=0):
    """Windows over a fresh stream that holds just so many of them and a tail of no use."""
    n_tokens = n_windows * sequence_length + 1 + sequence_length // 2
    write_stream(directory, n_tokens, shard_tokens=shard_tokens)
    windows = TokenWindows(
        directory, "train", sequence_length=sequence_length, shuffle_shards=shuffle_shards
    )
    assert len(windows) == n_windows
    return windows


def rows_in_order(windows, n_steps, *, world_size, **keywords):
    """Window of each row of the first steps, in the order of g: micro-steps, then ranks."""
    loaders = [
        ShardLoader(windows, rank=rank, world_size=world_size, **keywords)
        for rank in range(world_size)
    ]
    rows = []
    for step in range(n_steps):
        for micro_step in range(loaders[0].micro_steps):
            for loader in loaders:
                inputs, targets = loader.batch(step, micro_step).values()
                assert inputs.shape == (loader.micro_batch_size, windows.sequence_length)
                assert torch.equal(targets, inputs + 1)
                rows += (inputs[:, 0] // windows.sequence_length).tolist()
    return rows


@few_examples
@given(
    n_windows=st.integers(1, 40),
    sequence_length=sequence_lengths,
    shard_tokens=st.integers(1, 50),
    shuffle_shards=st.integers(0, 4),
    world_size=world_sizes,
    micro_batch_size=micro_batch_sizes,
    micro_steps=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_all_ranks_together_read_every_window_once_in_each_epoch(
    tmp_path_factory,
    n_windows,
    sequence_length,
    shard_tokens,
    shuffle_shards,
    world_size,
    micro_batch_size,
    micro_steps,
    seed,
):
    windows = open_windows(
        tmp_path_factory.mktemp("data"),
        n_windows,
        sequence_length,
        shard_tokens=shard_tokens,
        shuffle_shards=shuffle_shards,
    )
    rows_per_step = micro_steps * micro_batch_size * world_size
    rows = rows_in_order(
        windows,
        n_steps=-(-2 * n_windows // rows_per_step),
        rows_per_step=rows_per_step,
        micro_batch_size=micro_batch_size,
        world_size=world_size,
        seed=seed,
    )
    # A window that two ranks read, or one rank reads twice, would stand here twice.
    assert sorted(rows[:n_windows]) == list(range(n_windows))
    assert sorted(rows[n_windows : 2 * n_windows]) == list(range(n_windows))


@few_examples
@given(
    n_windows=st.integers(1, 40),
    sequence_length=sequence_lengths,
    first=st.tuples(world_sizes, micro_batch_sizes),
    second=st.tuples(world_sizes, micro_batch_sizes),
    shuffle_shards=st.integers(0, 3),
    seed=st.integers(0, 2**32),
)
def test_a_row_of_the_run_depends_on_neither_world_size_nor_micro_batch_size(
    tmp_path_factory, n_windows, sequence_length, first, second, shuffle_shards, seed
):
    windows = open_windows(
        tmp_path_factory.mktemp("data"),
        n_windows,
        sequence_length,
        shard_tokens=37,
        shuffle_shards=shuffle_shards,
    )
    rows_per_step = int(np.lcm(first[0] * first[1], second[0] * second[1]))
    orders = [
        rows_in_order(
            windows,
            n_steps=2,
            rows_per_step=rows_per_step,
            micro_batch_size=micro_batch_size,
            world_size=world_size,
            seed=seed,
        )
        for world_size, micro_batch_size in (first, second)
    ]
    assert len(orders[0]) == 2 * rows_per_step
    assert orders[0] == orders[1]


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(30, 60), min_size=2, max_size=3),
    shares=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    ways=st.lists(st.tuples(world_sizes, micro_batch_sizes), min_size=2, max_size=2),
    shuffle_shards=st.integers(0, 3),
    resume_step=st.integers(0, 2000),
    seed=st.integers(0, 2**32),
)
def test_sources_of_a_mixture_keep_their_shares_and_orders_on_any_ranks_from_any_step(
    tmp_path_factory, sizes, shares, ways, shuffle_shards, resume_step, seed
):
    sources = [
        open_windows(
            tmp_path_factory.mktemp("data"), size, 3, shard_tokens=37, shuffle_shards=shuffle_shards
        )
        for size in sizes
    ]
    weights = shares[: len(sizes)]
    rows_per_step = int(np.lcm(*(world_size * micro_batch for world_size, micro_batch in ways)))
    read = [[], []]  # first token of each row, for both ways
    n_steps = -(-3 * max(sizes) // rows_per_step)
    for rows, (world_size, micro_batch_size) in zip(read, ways, strict=True):
        loaders = [
            ShardLoader(
                sources,
                rows_per_step=rows_per_step,
                micro_batch_size=micro_batch_size,
                world_size=world_size,
                rank=rank,
                seed=seed,
                weights=weights,
            )
            for rank in range(world_size)
        ]
        for step in range(resume_step, resume_step + n_steps):
            for micro_step in range(loaders[0].micro_steps):
                for loader in loaders:
                    rows += loader.batch(step, micro_step)["input_ids"][:, 0].tolist()
    assert read[0] == read[1]

    # The definition, row by row: whose turn it is, and what that source reads in its next row.
    mixture = MixtureOrder(weights, seed=seed)
    orders = [
        WindowOrder(source.group_starts, seed=seed, source=number)
        for number, source in enumerate(sources)
    ]
    first = resume_step * rows_per_step
    numbers = np.arange(first, first + len(read[0]), dtype=np.uint64)
    for token, source, row in zip(read[0], *mixture.locate(numbers), strict=True):
        ((visit, _, windows),) = orders[source].windows(np.array([row], dtype=np.uint64))
        epoch = orders[source].epoch_of_visit(visit)
        assert token == sources[source].read(windows, epoch=epoch)[0, 0]


@few_examples
@given(
    n_tokens=st.integers(2, 300),
    sequence_length=sequence_lengths,
    shard_tokens=st.integers(1, 50),
    data=st.data(),
)
def test_inputs_and_targets_are_slices_of_the_stream_across_shard_borders(
    tmp_path_factory, n_tokens, sequence_length, shard_tokens, data
):
    n_windows = (n_tokens - 1) // sequence_length
    assume(n_windows > 0)
    directory = tmp_path_factory.mktemp("data")
    write_stream(directory, n_tokens, shard_tokens=shard_tokens)
    windows = TokenWindows(directory, "train", sequence_length=sequence_length)
    assert (windows.n_tokens, len(windows)) == (n_tokens, n_windows)

    indices = data.draw(st.lists(st.integers(0, n_windows - 1), min_size=1, max_size=8))
    inputs, targets = model_inputs(windows.read(np.array(indices))).values()
    assert inputs.dtype == targets.dtype == torch.int64
    stream = list(range(n_tokens))
    for row, index in enumerate(indices):
        start, stop = index * sequence_length, (index + 1) * sequence_length
        assert inputs[row].tolist() == stream[start:stop]
        assert targets[row].tolist() == stream[start + 1 : stop + 1]


def test_windows_share_only_the_token_that_one_predicts_and_the_next_begins_with(tmp_path):
    # 11 tokens, T = 4: two windows, and a tail of 2 tokens that is not used.
    windows = TokenWindows(write_stream(tmp_path, 11, shard_tokens=3), "train", sequence_length=4)
    inputs, targets = model_inputs(windows.read(np.arange(2))).values()
    assert inputs.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert targets.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_a_batch_may_be_changed_without_harm_to_the_data(tmp_path):
    windows = open_windows(tmp_path, 4, 3, shard_tokens=5)
    loader = ShardLoader(windows, rows_per_step=2, micro_batch_size=2)
    inputs, targets = loader.batch(0, 0).values()
    before = inputs.clone(), targets.clone()
    inputs.zero_()
    assert torch.equal(targets, before[1])
    assert torch.equal(loader.batch(0, 0)["input_ids"], before[0])


def test_a_step_far_away_is_read_at_once(tmp_path):
    windows = open_windows(tmp_path, n_windows=7, sequence_length=3, shard_tokens=5)
    loader = ShardLoader(windows, rows_per_step=6, micro_batch_size=3, rank=0, seed=11)
    inputs = loader.batch(10**9, 1)["input_ids"]
    # Rows g = 6 * 10**9 + 3, 4, 5. As 6 * 10**9 = 7 * 857142857 + 1, they are the positions 4, 5
    # and 6 of epoch 857142857. Had the loader to pass what lies before, this would take days.
    expected = shuffled(np.array([4, 5, 6], np.uint64), n=7, seed=11, epoch=857142857)
    assert (inputs[:, 0] // 3).tolist() == expected.tolist()


def test_a_batch_may_straddle_two_epochs(tmp_path):
    windows = open_windows(tmp_path, n_windows=5, sequence_length=3, shard_tokens=4)
    loader = ShardLoader(windows, rows_per_step=4, micro_batch_size=4, seed=2)
    inputs = loader.batch(1, 0)[
        "input_ids"
    ]  # rows 4, 5, 6, 7: the last of epoch 0, three of epoch 1
    epoch_0, epoch_1 = (
        shuffled(np.arange(5, dtype=np.uint64), n=5, seed=2, epoch=epoch).tolist()
        for epoch in (0, 1)
    )
    assert (inputs[:, 0] // 3).tolist() == [epoch_0[4], *epoch_1[:3]]


def test_a_batch_may_hold_more_than_one_epoch(tmp_path):
    windows = open_windows(tmp_path, n_windows=2, sequence_length=3, shard_tokens=4)
    loader = ShardLoader(windows, rows_per_step=8, micro_batch_size=8)
    rows = (loader.batch(0, 0)["input_ids"][:, 0] // 3).reshape(4, 2)
    assert rows.sort(dim=1).values.tolist() == [[0, 1]] * 4


def test_the_loader_says_how_long_an_epoch_and_a_step_are(tmp_path):
    windows = open_windows(tmp_path, n_windows=30, sequence_length=3, shard_tokens=50)
    loader = ShardLoader(windows, rows_per_step=12, micro_batch_size=2, world_size=3, rank=2)
    assert loader.epochs(5) == [2]
    assert loader.micro_steps == 2


def test_rows_that_do_not_divide_into_micro_batches_are_refused(tmp_path):
    windows = open_windows(tmp_path, n_windows=5, sequence_length=3, shard_tokens=50)
    with pytest.raises(ValueError, match=r"micro_batch_size x processes = 2 x 3, found 8"):
        ShardLoader(windows, rows_per_step=8, micro_batch_size=2, world_size=3)


@pytest.mark.parametrize("rank", [-1, 2, 3])
def test_a_rank_outside_the_world_is_refused(tmp_path, rank):
    windows = open_windows(tmp_path, n_windows=5, sequence_length=3, shard_tokens=50)
    with pytest.raises(ValueError, match=rf"0 <= rank < world_size=2, found rank={rank}"):
        ShardLoader(windows, rows_per_step=2, micro_batch_size=1, rank=rank, world_size=2)


def test_a_split_that_is_not_there_is_refused(tmp_path):
    write_stream(tmp_path, 20, shard_tokens=50)
    with pytest.raises(ShardError, match=r"expected a split 'val', found \['train'\]") as caught:
        TokenWindows(tmp_path, "val", sequence_length=4)
    assert str(caught.value).startswith(f"{tmp_path}: ")


@pytest.mark.parametrize("n_tokens", [0, 1, 4])
def test_a_split_shorter_than_a_window_is_refused(tmp_path, n_tokens):
    write_stream(tmp_path, n_tokens, shard_tokens=50)
    expected = rf"more than 4 tokens in split 'train', found {n_tokens};"
    with pytest.raises(ShardError, match=expected) as caught:
        TokenWindows(tmp_path, "train", sequence_length=4)
    assert str(caught.value).startswith(f"{tmp_path}: ")


def test_a_split_of_just_one_window_is_read(tmp_path):
    write_stream(tmp_path, 5, shard_tokens=50)
    assert len(TokenWindows(tmp_path, "train", sequence_length=4)) == 1


def test_a_shard_that_is_missing_is_refused_before_the_first_batch(tmp_path):
    write_stream(tmp_path, 20, shard_tokens=8)
    (tmp_path / "train_000001.bin").unlink()
    message = r"train_000001\.bin: expected .* found no such file; copy the rest of the data set"
    with pytest.raises(ShardError, match=message):
        TokenWindows(tmp_path, "train", sequence_length=4)


def test_a_bad_id_is_found_by_the_rank_that_verifies_its_shard(tmp_path):
    write_stream(tmp_path, 20, shard_tokens=8, vocab_size=20)
    write_shard(tmp_path / "train_000001.bin", np.full(8, 20), vocab_size=20)
    windows = TokenWindows(tmp_path, "train", sequence_length=4)
    for rank, world_size in ((0, 1), (1, 2), (1, 3)):
        with pytest.raises(ShardError, match=r"train_000001\.bin: expected ids below 20, found 20"):
            windows.verify(rank, world_size)
    # Together the ranks of a run read each shard once, so the others have not seen it.
    windows.verify(0, 2)
    windows.verify(2, 3)


def test_a_bad_id_that_nobody_looked_for_is_refused_in_its_batch(tmp_path):
    write_stream(tmp_path, 21, shard_tokens=8, vocab_size=21)
    write_shard(tmp_path / "train_000001.bin", [8, 9, 10, 11, 12, 13, 21, 15], vocab_size=21)
    windows = TokenWindows(tmp_path, "train", sequence_length=4)
    assert windows.read(np.array([0, 1, 2]))[2].tolist() == [8, 9, 10, 11, 12]
    message = r"train_000001\.bin: expected ids below 21, found 21 at token 6"
    for indices in ([3], [0, 3], [0, 1, 2, 3]):
        with pytest.raises(ShardError, match=message):
            windows.read(np.array(indices))


def test_a_byte_that_changed_within_the_vocabulary_is_found_by_its_checksum(tmp_path):
    write_stream(tmp_path, 20, shard_tokens=8)
    write_shard(tmp_path / "train_000001.bin", np.arange(9, 17), vocab_size=VOCAB_SIZE)
    windows = TokenWindows(tmp_path, "train", sequence_length=4)
    with pytest.raises(ShardError, match=r"train_000001\.bin: expected sha256 .*; the file"):
        windows.verify()


@pytest.mark.parametrize("content", [b"", b"too short for a header"])
def test_an_empty_or_foreign_shard_is_refused_by_name(tmp_path, content):
    write_stream(tmp_path, 20, shard_tokens=8)
    (tmp_path / "train_000001.bin").write_bytes(content)
    expected = ".* with magic" if content else "tokens, found none"
    with pytest.raises(ShardError, match=rf"train_000001\.bin: expected {expected}"):
        TokenWindows(tmp_path, "train", sequence_length=4)


def test_a_shard_without_tokens_is_refused(tmp_path):
    manifest = Manifest.load(write_stream(tmp_path, 20, shard_tokens=8))
    (first, *rest) = manifest.splits["train"].shards
    shards = (dataclasses.replace(first, n_tokens=0), *rest)
    split = dataclasses.replace(manifest.splits["train"], shards=shards)
    dataclasses.replace(manifest, splits={"train": split}).save(tmp_path)
    write_shard(tmp_path / first.file, [], vocab_size=VOCAB_SIZE)
    with pytest.raises(ShardError, match="expected n_tokens of train_000000.bin from 1 to"):
        TokenWindows(tmp_path, "train", sequence_length=4)


def test_the_places_of_a_micro_batch_are_where_its_rows_begin(tmp_path):
    for name, n_tokens, shard_tokens in (("a", 40, 8), ("b", 60, 16)):
        (tmp_path / name).mkdir()
        write_stream(tmp_path / name, n_tokens, shard_tokens=shard_tokens)
    sources = [TokenWindows(tmp_path / name, "train", sequence_length=4) for name in ("a", "b")]
    options = {"rows_per_step": 8, "micro_batch_size": 2, "world_size": 2, "seed": 1}
    for rank in (0, 1):
        loader = ShardLoader(sources, rank=rank, **options)
        for step, micro_step in ((0, 0), (0, 1), (5, 1)):
            batch = loader.batch(step, micro_step)["input_ids"]
            places = ShardLoader(sources, **options).locate(step, micro_step, rank)
            for row, (name, file, offset) in zip(batch, places, strict=True):
                path = tmp_path / name.rpartition("/")[2] / file
                shard = np.fromfile(path, dtype="<u2", offset=HEADER_BYTES)
                assert shard[offset] == row[0]
