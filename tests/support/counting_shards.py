"""Data directories whose tokens count upward from 0, and stores, loaders and batches of them."""

import contextlib

import numpy as np
import torch

from modeling_gpt2scratch.data.loading.cache import ShardCache
from modeling_gpt2scratch.data.loading.loader import ShardLoader, TokenWindows
from modeling_gpt2scratch.data.loading.store import RemoteStore
from modeling_gpt2scratch.data.shards.format import HEADER_BYTES
from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.data.shards.writer import SplitWriter

SHARD_TOKENS = 100
SHARD_BYTES = HEADER_BYTES + 2 * SHARD_TOKENS
N_SHARDS = 6
SEQUENCE_LENGTH = 8
VOCAB_SIZE = 2**16


def write_stream(directory, n_tokens, *, shard_tokens, vocab_size=VOCAB_SIZE):
    """Makes a data directory whose split "train" is the stream 0, 1, 2, ... of `n_tokens`."""
    writer = SplitWriter(directory, "train", shard_tokens=shard_tokens, vocab_size=vocab_size)
    writer.add(np.arange(n_tokens), n_bytes=n_tokens)
    manifest = Manifest(
        vocab_size=vocab_size,
        end_of_text_id=0,
        tokenizer={"name": "none", "fingerprint": ""},
        splits={"train": writer.close()},
        arguments={},
    )
    manifest.save(directory)
    return directory


def cache_of(directory, n_shards=100):
    return ShardCache(directory, limit_bytes=n_shards * SHARD_BYTES)


@contextlib.contextmanager
def opened(address, cache, **options):
    """A store that is closed afterwards."""
    try:
        yield RemoteStore(address, cache, **options)
    finally:
        cache.closed.set()


def loader_of(store, shuffle_shards=2):
    windows = TokenWindows(
        store, "train", sequence_length=SEQUENCE_LENGTH, shuffle_shards=shuffle_shards
    )
    return ShardLoader(windows, rows_per_step=5, micro_batch_size=5, seed=3)


def batches_of(store, n_steps=40, **options):
    """Inputs of the first steps: 200 rows of 74 windows, so beyond two epochs."""
    loader = loader_of(store, **options)
    return torch.stack([loader.batch(step, 0)["input_ids"] for step in range(n_steps)])
