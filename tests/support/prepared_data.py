"""What a preparation has made, read back from the files alone."""

import hashlib
import json
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer


def manifest_of(directory):
    """The manifest as plain JSON."""
    return json.loads((directory / "manifest.json").read_text())


def documents_of(directory, split, decode=None):
    """The documents of a split, read back from the files alone, and checked against the manifest.

    Args:
        directory: what prepare_data.py made.
        split: "train" or "val".
        decode: ids to text; without it, the tokenizer saved in the directory.
    """
    manifest = manifest_of(directory)
    decode = decode or AutoTokenizer.from_pretrained(directory).decode
    entry = manifest["splits"][split]
    stream = []
    for shard in entry["shards"]:
        content = (directory / shard["file"]).read_bytes()
        tokens = np.frombuffer(content[1024:], "<u2").tolist()
        header = np.frombuffer(content[:16], "<i4").tolist()
        assert header == [20240520, 1, len(tokens), manifest["vocab_size"]]
        assert shard["n_tokens"] == len(tokens)
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()
        stream += tokens
    starts = [i for i, token in enumerate(stream) if token == manifest["end_of_text_id"]]
    assert starts[:1] == [0]
    documents = [
        decode(stream[start + 1 : stop])
        for start, stop in zip(starts, [*starts[1:], len(stream)], strict=True)
    ]
    assert entry["n_tokens"] == len(stream)
    assert entry["n_documents"] == len(documents)
    assert entry["n_bytes"] == sum(len(text.encode()) for text in documents)
    return documents


def contents(directory):
    """Everything in a data directory, byte by byte."""
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def names_in(directory):
    """The names of everything there, hidden files included."""
    return sorted(path.name for path in directory.iterdir())
