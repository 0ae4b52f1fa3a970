"""Rows that begin alike as one row: what a token of it sees, and which rows are joined."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma2Config,
    GPTNeoConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from modeling_gpt2scratch.evaluation.scoring.batching import RowBatch, join_rows, plan_batches
from modeling_gpt2scratch.evaluation.scoring.token_tree import (
    TokenTree,
    smallest_window,
    tree_inputs,
)

row_ids = st.lists(st.integers(0, 2), min_size=1, max_size=12)


@given(st.lists(row_ids, max_size=30), st.integers(1, 60), st.integers(1, 64))
@settings(deadline=None)
def test_the_plan_holds_each_row_once_within_the_budget(ids, batch_tokens, n_channels):
    rows = [np.array(row) for row in ids]
    trees, lengths = join_rows(rows, most_tokens=batch_tokens, n_channels=n_channels)
    for tree, length in zip(trees, lengths, strict=True):
        assert len(TokenTree([rows[index] for index in tree])) == length
        assert length <= batch_tokens or len(tree) == 1
    batches = list(plan_batches(trees, lengths, batch_tokens))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(rows)))
    longest = {tuple(tree): length for tree, length in zip(trees, lengths, strict=True)}
    for batch in batches:
        padded = len(batch.trees) * max(longest[tuple(tree)] for tree in batch.trees)
        assert padded <= batch_tokens or len(batch.trees) == 1
        assert len({len(tree) > 1 for tree in batch.trees}) == 1


@given(st.lists(st.lists(st.integers(), min_size=1, max_size=5), min_size=1, max_size=5))
def test_halves_of_a_batch_hold_its_rows(trees):
    batch = RowBatch(trees)
    while len(batch.rows) > 1:
        first, second = batch.halves()
        assert first.rows + second.rows == batch.rows
        assert first.rows and second.rows
        batch = max(first, second, key=lambda half: len(half.rows))


@given(st.lists(row_ids, min_size=1, max_size=12))
@settings(deadline=None)
def test_each_token_of_a_tree_sees_the_beginning_of_its_rows(ids):
    rows = [np.array(row) for row in sorted(ids)]
    tree = TokenTree(rows)
    # Sorted rows meet in all that they have in common.
    assert len(tree) == len({tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)})
    # Beside a longer tree, so that this one is padded.
    longer = TokenTree([np.arange(40), np.arange(50)[::-1]])
    inputs = tree_inputs([longer, tree], dtype=torch.bool, device=torch.device("cpu"))
    sees = inputs["attention_mask"][1, 0].numpy()
    assert sees.diagonal().all()  # also of padding: the softmax of nothing is not a number
    assert inputs["position_ids"][1, : len(tree)].tolist() == tree.positions.tolist()
    for row, path in zip(rows, tree.paths, strict=True):
        assert tree.token_ids[path].tolist() == row.tolist()
        assert tree.positions[path].tolist() == list(range(len(row)))
        for place, own in enumerate(path):
            assert np.flatnonzero(sees[own]).tolist() == path[: place + 1].tolist()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        *((GPTNeoConfig(), 256), (LlamaConfig(), None), (MistralConfig(sliding_window=12), 12)),
        *((Llama4TextConfig(attention_chunk_size=32), 32), (Gemma2Config(), 4096)),
        (LlamaConfig(prefix_dense_sliding_window_pattern=1), None),
        *((Qwen2Config(), None), (Qwen2Config(use_sliding_window=True, sliding_window=8), 8)),
    ],
)
def test_windows_of_attention_are_found_by_all_their_names(config, expected):
    assert smallest_window(config) == expected
