"""`gpt2scratch shards merge` joins what the tasks of a datatrove pipeline wrote."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from support.tiny_corpus import stream
from support.token_directories import CORPUS, DOCUMENTS, before

from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.data.shards.merging import Part
from modeling_gpt2scratch.data.shards.writer import SplitWriter
from modeling_gpt2scratch.data.tokens.tokenizer import fingerprint, train_tokenizer

TOKENIZER = {"tokenizer": {"name": "gpt2", "fingerprint": "of another"}}


def write_part(directory, encoder, tokenizer_dir, rank, *, world_size=2, **changes):
    """What one task writes: two documents for training, one for validation."""
    splits = {}
    for split, documents in {"train": DOCUMENTS[:2], "val": CORPUS[2:3]}.items():
        writer = SplitWriter(
            directory, f"{split}_{rank:05d}", shard_tokens=10, vocab_size=len(encoder)
        )
        for document in documents:
            ids = np.array(before(encoder, [f"{rank} {document}"]))
            writer.add(ids, n_bytes=len(document.encode()))
        splits[split] = writer.close()
    manifest = Manifest(
        vocab_size=270,
        end_of_text_id=269,
        tokenizer={"name": str(tokenizer_dir), "fingerprint": fingerprint(encoder)},
        splits=splits,
        arguments={"dataset": "web", "seed": 0},
    )
    Part(dataclasses.replace(manifest, **changes), rank, world_size).save(directory)


def test_merged_parts_stand_in_the_order_of_their_ranks(tmp_path, run, tokenizer, tokenizer_dir):
    for rank in (1, 0):
        write_part(tmp_path, tokenizer, tokenizer_dir, rank)
    contents = {path.name: path.read_bytes() for path in tmp_path.glob("*.bin")}
    code, lines = run("inspect", tmp_path)
    assert lines[0] == f"{tmp_path}: not merged yet, 2 tasks are complete"
    code, lines = run("merge", tmp_path)
    assert code == 0
    assert lines[0].startswith(f"{tmp_path}: uint16 ids of the tokenizer {tokenizer_dir}, 270")
    documents = [f"{rank} {document}" for rank in (0, 1) for document in DOCUMENTS[:2]]
    assert stream(tmp_path, "train") == before(tokenizer, documents)
    assert Manifest.load(tmp_path).splits["train"].n_documents == 4
    assert run("verify", tmp_path)[0] == 0
    assert not list(tmp_path.glob("manifest.part-*"))
    assert contents == {path.name: path.read_bytes() for path in tmp_path.glob("*.bin")}


def test_a_merge_that_was_killed_can_be_repeated(tmp_path, run, tokenizer, tokenizer_dir):
    write_part(tmp_path, tokenizer, tokenizer_dir, 0)
    write_part(tmp_path, tokenizer, tokenizer_dir, 1)
    parts = {path: path.read_bytes() for path in tmp_path.glob("manifest.part-*")}
    assert run("merge", tmp_path)[0] == 0
    manifest = (tmp_path / "manifest.json").read_bytes()
    for path, content in parts.items():  # killed before they were removed
        path.write_bytes(content)
    code, (line,) = run("verify", tmp_path)
    assert code == 1
    assert "manifest.part-00000.json" in line
    assert run("merge", tmp_path)[0] == 0
    assert (tmp_path / "manifest.json").read_bytes() == manifest
    last = max(parts)
    last.write_bytes(parts[last])  # killed while they were removed
    assert run("merge", tmp_path)[0] == 0
    assert (tmp_path / "manifest.json").read_bytes() == manifest
    assert not last.exists()
    code, (line,) = run("merge", tmp_path)
    assert line.endswith("of several tasks, found none; it has a manifest.json")


@pytest.mark.parametrize(
    ("rank", "changes", "expected"),
    [
        (
            2,
            {"world_size": 3},
            "manifest.part-00002.json: expected world_size as in manifest.part-",
        ),
        (1, {"end_of_text_id": 5}, "part-00001.json: expected end_of_text_id as in manifest.part-"),
        (
            1,
            {"arguments": {}},
            "part-00001.json: expected arguments as in manifest.part-00000.json",
        ),
        (1, TOKENIZER, "part-00001.json: expected tokenizer as in manifest"),
        (
            2,
            {},
            "part-00002.json: expected the rank in its name, below the number of tasks, found ",
        ),
        (0, {}, "expected the parts of 2 tasks, found none of task 1; run the pipeline again"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    tmp_path, run, tokenizer, tokenizer_dir, rank, changes, expected
):
    write_part(tmp_path, tokenizer, tokenizer_dir, 0)
    write_part(tmp_path, tokenizer, tokenizer_dir, rank, **changes)
    code, (line,) = run("merge", tmp_path)
    assert code == 1
    assert expected in line
    assert not (tmp_path / "manifest.json").exists()


def test_parts_whose_shards_are_not_as_they_say_are_refused(
    tmp_path, run, tokenizer, tokenizer_dir
):
    write_part(tmp_path, tokenizer, tokenizer_dir, 0, world_size=1)
    extra = tmp_path / "train_00001_000000.bin"
    shutil.copy(tmp_path / "train_00000_000000.bin", extra)
    code, (line,) = run("merge", tmp_path)
    assert f"{extra}: expected only shards of the 1 tasks, found another" in line
    extra.unlink()
    shard = tmp_path / "train_00000_000000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    code, (line,) = run("merge", tmp_path)
    assert f"{shard}: expected 1044 bytes for 10 tokens, found 1042" in line
    assert not (tmp_path / "manifest.json").exists()


def test_parts_that_name_the_same_shard_stay(tmp_path, run, tokenizer, tokenizer_dir):
    for rank in (0, 1):
        write_part(tmp_path, tokenizer, tokenizer_dir, rank)
    parts = sorted(tmp_path.glob("manifest.part-*"))
    first, second = (json.loads(path.read_text()) for path in parts)
    for path in tmp_path.glob("*_00001_*.bin"):
        path.unlink()
    parts[1].write_text(json.dumps(second | {"splits": first["splits"]}))
    code, (line,) = run("merge", tmp_path)
    assert code == 1 and "the parts together: expected each shard once" in line
    assert not (tmp_path / "manifest.json").exists()
    assert sorted(tmp_path.glob("manifest.part-*")) == parts


def test_a_tokenizer_that_was_replaced_meanwhile_is_refused(tmp_path, run, tokenizer):
    saved = tmp_path / "tokenizer"
    train_tokenizer(["other words"], 270).save_pretrained(saved)
    (tmp_path / "data").mkdir()
    write_part(tmp_path / "data", tokenizer, saved, 0, world_size=1)
    code, (line,) = run("merge", tmp_path / "data")
    assert f"expected the tokenizer {saved} as the tasks used it, found another" in line
