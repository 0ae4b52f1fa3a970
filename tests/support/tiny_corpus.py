"""Documents for tests of the preparation, and the ids that became of them."""

import json
import random

import numpy as np

from modeling_gpt2scratch.data.shards.directory import open_shard
from modeling_gpt2scratch.data.shards.manifest import Manifest

WORDS = ["ant", "grain", "winter", "song", "cicada", "store", "sing", "summer", "hungry", "dry"]


def fables(n, seed=0):
    """Different short documents, each of which spells the end of text."""
    generator = random.Random(seed)
    return [
        f"{seed} {i} {' '.join(generator.choices(WORDS, k=generator.randint(1, 30)))}"
        " é<|endoftext|>狐"
        for i in range(n)
    ]


def write_jsonl(path, documents):
    """The path, now of a file with these documents."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


def stream(directory, split):
    """The ids of a split."""
    manifest = Manifest.load(directory)
    shards = [
        open_shard(directory / entry.file, entry, vocab_size=manifest.vocab_size)
        for entry in manifest.splits[split].shards
    ]
    return np.concatenate(shards).tolist()
