"""Small data directories of ours, and files of other programs, with the same documents."""

import hashlib
import json
import struct

import numpy as np

from modeling_gpt2scratch.data.shards.format import shard_header
from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.data.shards.writer import SplitWriter
from modeling_gpt2scratch.data.tokens.ids import token_dtype
from modeling_gpt2scratch.data.tokens.tokenizer import fingerprint

CORPUS = ["the cat sat on the mat", "a naïve café: “the mat”", "the dog sat and sat"] * 3
DOCUMENTS = [*CORPUS[:3], "", "bytes of four: 🐈, of two: é\n", "the cat " * 20]


def encode(tokenizer, documents):
    """The ids of each document."""
    return [tokenizer(document, split_special_tokens=True)["input_ids"] for document in documents]


def before(tokenizer, documents):
    """One stream, end of text before each document."""
    return sum(([tokenizer.eos_token_id, *ids] for ids in encode(tokenizer, documents)), [])


def write_ours(directory, tokenizer, *, shard_tokens=40, val=()):
    """A data directory as prepare_data.py makes it."""
    directory.mkdir(parents=True, exist_ok=True)
    splits = {}
    for split, documents in {"train": DOCUMENTS, "val": val}.items():
        writer = SplitWriter(directory, split, shard_tokens=shard_tokens, vocab_size=len(tokenizer))
        for document in documents:
            ids = np.array(before(tokenizer, [document]))
            writer.add(ids, n_bytes=len(document.encode()))
        if documents:
            splits[split] = writer.close()
    tokenizer.save_pretrained(directory)
    manifest = Manifest(
        vocab_size=len(tokenizer),
        end_of_text_id=tokenizer.eos_token_id,
        tokenizer={"name": "bpe:270", "fingerprint": fingerprint(tokenizer)},
        splits=splits,
        arguments={"dataset": "documents.txt"},
    )
    manifest.save(directory)
    return manifest


def write_shard(path, ids, *, vocab_size):
    """Writes one shard and returns its sha256."""
    tokens = np.asarray(ids, dtype=token_dtype(vocab_size))
    content = shard_header(len(tokens), vocab_size).tobytes() + tokens.tobytes()
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def headed(magic, version, ids, letter):
    header = struct.pack("<256i", magic, version, len(ids), *[0] * 253)
    return header + struct.pack(f"<{len(ids)}{letter}", *ids)


def write_foreign(directory, format, ids, split, index=0):
    """A file as the program writes it whose format this is."""
    directory.mkdir(exist_ok=True)
    if format == "npy":
        path = directory / f"edufineweb_{split}_{index:06d}.npy"
        np.save(path, np.array(ids, dtype=np.uint16))
    elif format == "llm.c":
        path = directory / f"fineweb_{split}_{index:06d}.bin"
        path.write_bytes(headed(20240520, 1, ids, "H"))
    else:
        path = directory / f"{split}.bin"
        path.write_bytes(struct.pack(f"<{len(ids)}H", *ids))
    return path


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


def edit_manifest(directory, edit):
    path = directory / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
