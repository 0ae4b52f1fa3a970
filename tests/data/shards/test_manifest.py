"""The manifest of a data directory: read as it was written, or refused by name."""

import json
import shutil
from pathlib import Path

import pytest

from modeling_gpt2scratch.data.shards.format import ShardError
from modeling_gpt2scratch.data.shards.manifest import Manifest, ShardEntry, Split


def a_manifest(**changes):
    """A manifest of one shard with three tokens."""
    shard = ShardEntry(file="train_000000.bin", n_tokens=3, sha256="0" * 64)
    fields = {
        "vocab_size": 10,
        "end_of_text_id": 9,
        "tokenizer": {"name": "gpt2", "fingerprint": "f" * 64},
        "splits": {"train": Split(n_tokens=3, n_documents=1, n_bytes=8, shards=(shard,))},
        "arguments": {"seed": 0, "subset": None},
    }
    return Manifest(**fields | changes)


def refusal(function, *arguments, **keywords):
    """The one-line message of the ShardError that the call ends in."""
    with pytest.raises(ShardError) as caught:
        function(*arguments, **keywords)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    val = Split(n_tokens=0, n_documents=0, n_bytes=0, shards=())
    manifest = a_manifest(splits=a_manifest().splits | {"val": val})
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]


def test_a_manifest_says_how_its_shards_are_laid_out(tmp_path):
    a_manifest().save(tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    layout = [content[key] for key in ("format", "version", "dtype", "header_bytes")]
    assert layout == ["gpt2scratch-shards", 1, "<u2", 1024]
    assert content["splits"]["train"]["shards"] == [
        {"file": "train_000000.bin", "n_tokens": 3, "sha256": "0" * 64}
    ]


def test_a_directory_without_a_manifest_is_refused_and_says_how_to_make_one(tmp_path):
    message = refusal(Manifest.load, tmp_path)
    assert message.startswith(f"{tmp_path}: expected a directory with manifest.json, found none")
    assert "prepare_data.py" in message


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b'{"format": "gpt2scr'])
def test_a_manifest_that_is_not_json_is_refused_by_name(tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    assert refusal(Manifest.load, tmp_path).startswith(f"{path}: expected a JSON manifest, found ")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"version": 2}, "('gpt2scratch-shards', 2)"),
        ({"format": "other"}, "('other', 1)"),
        ({"version": None}, "('gpt2scratch-shards', None)"),
    ],
)
def test_a_manifest_of_another_format_is_refused_by_name(tmp_path, change, found):
    a_manifest().save(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    message = refusal(Manifest.load, tmp_path)
    assert message.startswith(f"{path}: expected gpt2scratch-shards version 1, found {found}")


def test_a_manifest_that_is_a_list_is_refused_by_name(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text("[]")
    assert refusal(Manifest.load, tmp_path).startswith(f"{path}: expected gpt2scratch-shards")


def without(*keys):
    """A change of a manifest that removes the entry at this path of keys."""

    def change(content):
        *folders, last = keys
        for key in folders:
            content = content[key]
        del content[last]

    return change


def replaced(*keys, by):
    """A change of a manifest that puts another value at this path of keys."""

    def change(content):
        *folders, last = keys
        for key in folders:
            content = content[key]
        content[last] = by

    return change


@pytest.mark.parametrize(
    "change",
    [
        without("vocab_size"),
        without("end_of_text_id"),
        without("tokenizer"),
        without("splits"),
        without("arguments"),
        without("splits", "train", "shards"),
        without("splits", "train", "n_tokens"),
        without("splits", "train", "shards", 0, "file"),
        without("splits", "train", "shards", 0, "sha256"),
        replaced("splits", by=[]),
        replaced("splits", "train", by=None),
        replaced("splits", "train", "shards", by=[3]),
        replaced("sources", by=[{"name": "a\n\n# A heading"}]),
        replaced("sources", by=[{"name": "a", "subset": "\x1b[2J"}]),
        replaced("sources", by=[{"name": "a", "weight": "1"}]),
    ],
)
def test_an_incomplete_manifest_is_refused_by_name(tmp_path, change):
    a_manifest().save(tmp_path)
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    assert refusal(Manifest.load, tmp_path).startswith(f"{path}: incomplete manifest: ")


def test_shards_without_their_manifest_are_refused_with_a_way_out(small_data, tmp_path):
    shutil.copy(small_data / "train_000000.bin", tmp_path)
    message = refusal(Manifest.load, tmp_path)
    assert "found train_000000.bin without it; " in message
    assert f"`gpt2scratch shards adopt {tmp_path} --tokenizer gpt2`" in message


def test_a_run_in_place_of_its_data_has_no_parts_to_merge(small_data, tmp_path):
    (tmp_path / "data_manifest.json").write_bytes((small_data / "manifest.json").read_bytes())
    with pytest.raises(ShardError, match="found none; make one with prepare_data.py"):
        Manifest.load(tmp_path)


def test_two_manifests_are_refused(small_data, tmp_path):
    part = "manifest.00001.json"
    shutil.copy(small_data / "manifest.json", tmp_path / part)
    (tmp_path / "dataset_manifest.json").write_text('{"format": "of something else"}')
    (tmp_path / "my_manifest.json").write_text("[]")
    with pytest.raises(ShardError, match=f"found {part}; merge the parts"):
        Manifest.load(tmp_path)
    shutil.copy(small_data / "manifest.json", tmp_path)
    with pytest.raises(ShardError, match=f"expected one manifest, found manifest.json and {part};"):
        Manifest.load(tmp_path)
    assert Manifest.load(tmp_path, part) == Manifest.load(small_data)


def test_a_directory_that_may_not_be_read_is_refused(small_data, monkeypatch):
    def refuse(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)  # root could read it whatever its modes
    with pytest.raises(ShardError, match=r"manifest\.json: expected permission to read it"):
        Manifest.load(small_data)
