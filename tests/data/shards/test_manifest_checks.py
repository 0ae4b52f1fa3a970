"""A manifest that cannot be true is refused in one line, whoever reads it."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
from support.token_directories import CORPUS, edit_manifest, write_ours

from modeling_gpt2scratch.commands.shards import main
from modeling_gpt2scratch.data.loading.store import LocalStore
from modeling_gpt2scratch.data.loading.trainer_dataset import WindowDataset
from modeling_gpt2scratch.data.shards.adoption import adopt
from modeling_gpt2scratch.data.shards.format import ShardError
from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.data.tokens.tokenizer import train_tokenizer
from modeling_gpt2scratch.evaluation.tasks.samples import Selection
from modeling_gpt2scratch.evaluation.tasks.validation import ValidationTask


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CORPUS, 270)


@pytest.fixture
def data(tmp_path, tokenizer):
    """A data directory of ours: several shards for training, two to validate."""
    write_ours(tmp_path / "data", tokenizer, val=CORPUS[:2])
    return tmp_path / "data"


@pytest.fixture
def adopted(tmp_path, tokenizer):
    """Two .npy files of another program, adopted."""
    directory = tmp_path / "adopted"
    directory.mkdir()
    tokenizer.save_pretrained(directory)
    for name in ("a_train.npy", "b_val.npy"):
        np.save(directory / name, np.array([269, *range(100, 160)], dtype=np.uint16))
    adopt(directory, tokenizer_name=str(directory))
    return directory


def shards_of(manifest, split="train"):
    return manifest["splits"][split]["shards"]


def add(entry, split="train"):
    """Lists a shard in a split, with its tokens in the total."""

    def edit(manifest):
        found = entry(manifest)
        shards_of(manifest, split).append(found)
        manifest["splits"][split]["n_tokens"] += found["n_tokens"]

    return edit


def move_to_train(manifest):
    """Trains on a validation shard, with totals that agree."""
    entry = shards_of(manifest, "val").pop()
    manifest["splits"]["val"]["n_tokens"] -= entry["n_tokens"]
    shards_of(manifest).append(entry)
    manifest["splits"]["train"]["n_tokens"] += entry["n_tokens"]


def put(*keys, to):
    """A change of the value at this path of keys."""

    def edit(manifest):
        *folders, last = keys
        for key in folders:
            manifest = manifest[key]
        manifest[last] = to

    return edit


FIRST = ("splits", "train", "shards", 0)
# What cannot be true, and how the line goes on behind the manifest's name.
CONTRADICTIONS = {
    "an entry lost": (lambda m: shards_of(m).pop(), "expected {n} tokens in split 'train', found "),
    "an entry twice": (add(lambda m: shards_of(m)[0]), "expected each shard once, found train_0"),
    "in both splits": (
        add(lambda m: shards_of(m, "val")[0]),
        "expected shards of split 'train' in its list, found val_000000.bin",
    ),
    "in the wrong split": (move_to_train, "expected shards of split 'train' in its list, found v"),
    "end of text": (put("end_of_text_id", to=99999), "expected an end-of-text id below 270, found"),
    "below zero": (put("end_of_text_id", to=-1), "expected an end-of-text id below 270, found -1"),
    "negative": (put(*FIRST, "n_tokens", to=-40), "expected n_tokens of train_000000.bin from 1"),
    "empty": (put(*FIRST, "n_tokens", to=0), "expected n_tokens of train_000000.bin from 1 to 21"),
    "huge": (put(*FIRST, "n_tokens", to=2**31), "expected n_tokens of train_000000.bin from 1 to"),
    "a fraction": (
        put(*FIRST, "n_tokens", to=40.0),
        "incomplete manifest: expected a whole number as n_tokens of train_000000.bin, found 40.0",
    ),
    "true": (put("vocab_size", to=True), "incomplete manifest: expected a whole number as vocab_s"),
    "words": (put("vocab_size", to="270"), "incomplete manifest: expected a whole number as vocab"),
    "no vocabulary": (put("vocab_size", to=0), "expected vocab_size from 1 to 2147483647, found 0"),
    "version": (put("version", to=True), "incomplete manifest: expected a whole number as version"),
    "type": (put("dtype", to="<u4"), "expected {{'dtype': '<u2', 'header_bytes': 1024}}, found {{"),
    "header": (put("header_bytes", to=0), "expected {{'dtype': '<u2', 'header_bytes': 1024}}, fou"),
    "no header": (lambda m: m.pop("header_bytes"), "expected {{'dtype': '<u2', 'header_bytes': 10"),
    "documents": (
        put("splits", "train", "n_documents", to=-1),
        "expected n_documents of split 'train' from 0 to ",
    ),
    "too many": (
        put("splits", "train", "n_documents", to=10_000),
        "expected at most {n} documents in split 'train', found 10000; ",
    ),
    "no train": (lambda m: m["splits"].pop("train"), "incomplete manifest: expected splits train"),
    "a split more": (
        lambda m: m["splits"].update(test=m["splits"]["val"]),
        "incomplete manifest: expected splits train and perhaps val, found a list",
    ),
    "a list": (put("splits", to=[]), "incomplete manifest: expected an object as splits, found a "),
    "no object": (put(*FIRST, to="train_000000.bin"), "incomplete manifest: expected an object fo"),
    "upwards": (put(*FIRST, "file", to="../data/train_000000.bin"), "expected the name of a file "),
    "absolute": (put(*FIRST, "file", to="/etc/train.bin"), "expected the name of a file in its di"),
    "of windows": (put(*FIRST, "file", to="C:train.bin"), "expected the name of a file in its dir"),
    "backwards": (put(*FIRST, "file", to="..\\train.bin"), "expected the name of a file in its di"),
    "hidden": (put(*FIRST, "file", to=".train.bin"), "expected the name of a file in its director"),
    "no name": (put(*FIRST, "file", to=""), "expected the name of a file in its directory, found "),
    "a zero byte": (put(*FIRST, "file", to="train\0.bin"), "expected the name of a file in its di"),
    "a number": (put(*FIRST, "file", to=7), "incomplete manifest: expected a text as file of a sh"),
    "checksum": (put(*FIRST, "sha256", to="0" * 63), "expected a sha256 for train_000000.bin, fou"),
    "another key": (
        put(*FIRST, "format", to="npy"),
        'expected file, n_tokens, sha256 for train_000000.bin, found "format" beside them',
    ),
    "tokenizer": (put("tokenizer", to={"name": "gpt2"}), "incomplete manifest: expected fingerpri"),
    "sources": (put("sources", to=[{}]), "incomplete manifest: expected each of the sources with "),
    "left out": (put("left_out", to={"too_short": "3"}), "incomplete manifest: expected a whole n"),
    "arguments": (put("arguments", to=None), "incomplete manifest: expected an object as argument"),
}


def answers(directory, tmp_path, capsys):
    """The line in which each reader ends: the store, the dataset, the task and the commands."""
    readers = {
        "store": lambda: LocalStore(directory),
        "dataset": lambda: WindowDataset(directory, "train", n_tokens=8),
        "val": lambda: ValidationTask.load(Selection(place=str(directory))),
    }
    lines = {}
    for name, read in readers.items():
        with pytest.raises(ShardError) as caught:
            read()
        lines[name] = str(caught.value)
    options = ("--repository", "a/b", "--dry_run", tmp_path / "dry")
    for command in (
        ("verify", directory),
        ("verify", directory, "--fast"),
        ("convert", directory, tmp_path / "out", "--to", "llm.c"),
        ("publish", "--data", directory, *options),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main([str(part) for part in command])
        assert exited.value.code not in (0, None)
        # `verify` prints what it finds, the others exit with it.
        text = exited.value.code if command[0] != "verify" else capsys.readouterr().out
        lines[" ".join(map(str, command))] = text.strip().split(" error: ")[-1]
    assert not (tmp_path / "out").exists() and not (tmp_path / "dry").exists()
    return lines


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_a_manifest_that_cannot_be_true_is_refused_in_one_line(data, kind):
    edit, expected = CONTRADICTIONS[kind]
    n_tokens = Manifest.load(data).splits["train"].n_tokens
    edit_manifest(data, edit)
    with pytest.raises(ShardError) as caught:
        Manifest.load(data)
    expected = f"{data}/manifest.json: {expected.format(n=n_tokens)}"
    assert str(caught.value)[: len(expected)] == expected
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["upwards", "in the wrong split", "negative", "end of text"])
def test_all_readers_refuse_it_in_the_same_line(data, tmp_path, capsys, kind):
    edit_manifest(data, CONTRADICTIONS[kind][0])
    lines = answers(data, tmp_path, capsys)
    assert len(set(lines.values())) == 1, lines


def test_an_entry_that_was_removed_with_its_tokens_is_missed_by_the_files(data, tmp_path, capsys):
    def remove(manifest):
        manifest["splits"]["train"]["n_tokens"] -= shards_of(manifest).pop()["n_tokens"]

    edit_manifest(data, remove)
    Manifest.load(data)  # there is nothing in it to see
    last = sorted(data.glob("train_*.bin"))[-1]
    expected = f"{last}: expected only shards that manifest.json lists, found one that it does not"
    lines = answers(data, tmp_path, capsys)
    assert all(line.startswith(expected) for line in lines.values()), lines


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"format": 1, "format": 2}', "the key 'format' twice"),
        ("[" * 100_000, "maximum recursion depth"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "Exceeds the limit"),
        ("NaN", "()"),
        ('{"format": "\\ud800"}', "surrogates not allowed"),
    ],
)
def test_json_that_says_two_things_or_too_much_is_one_line(tmp_path, content, found):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ShardError) as caught:
        Manifest.load(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/manifest.json: expected ") and found in message
    assert len(message.splitlines()) == 1


def test_only_a_file_of_a_sensible_size_is_read(tmp_path):
    path = tmp_path / "manifest.json"
    os.mkfifo(path)  # whoever opened it would wait for a writer
    with pytest.raises(ShardError, match="JSON manifest, found something that is not a file"):
        Manifest.load(tmp_path)
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(ShardError, match="found 67,108,865 bytes, more than 67,108,864"):
        Manifest.load(tmp_path)


def test_a_shard_that_is_no_file_is_refused_and_not_waited_for(data):
    (data / "train_000000.bin").unlink()
    os.mkfifo(data / "train_000000.bin")
    with pytest.raises(ShardError, match=r"train_000000\.bin: expected a file of tokens, found so"):
        WindowDataset(data, "train", n_tokens=8)


# Other programs' files


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (put(*FIRST, "format", to="zip"), "expected a format, type and header of a_train.npy that"),
        (put(*FIRST, "dtype", to="<f4"), "expected a format, type and header of a_train.npy that "),
        (put(*FIRST, "dtype", to="O"), "expected a format, type and header of a_train.npy that go"),
        (put(*FIRST, "header_bytes", to=0), "expected a format, type and header of a_train.npy th"),
        (put(*FIRST, "header_bytes", to=-8), "expected header_bytes of a_train.npy from 0 to "),
        (put(*FIRST, "header_bytes", to=128.0), "incomplete manifest: expected a whole number as "),
        (lambda m: shards_of(m)[0].pop("dtype"), "incomplete manifest: expected dtype of a_train."),
        (put(*FIRST, "shape", to=[1]), "expected file, n_tokens, sha256, format, dtype, header_by"),
        (put("format", to="gpt2scratch-shards"), "expected {'dtype': '<u2', 'header_bytes': 1024}"),
        (move_to_train, "expected shards of split 'train' in its list, found b_val.npy"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(adopted, edit, expected):
    edit_manifest(adopted, edit)
    with pytest.raises(ShardError) as caught:
        Manifest.load(adopted)
    assert str(caught.value).startswith(f"{adopted}/manifest.json: {expected}")


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (put(*FIRST, "header_bytes", to=130), "after 130 bytes below 270, found 61 ids <u2 of npy"),
        (put(*FIRST, "dtype", to="<i2"), "expected 61 ids <i2 of npy after 128 bytes below 270, f"),
    ],
)
def test_a_layout_that_is_not_the_files_is_found_when_it_is_opened(adopted, edit, expected):
    edit_manifest(adopted, edit)
    with pytest.raises(ShardError) as caught:
        WindowDataset(adopted, "train", n_tokens=8)
    assert expected in str(caught.value)


def test_a_reader_without_layouts_does_not_take_adopted_files_for_ours(adopted):
    # What earlier versions require of a manifest.
    content = json.loads((adopted / "manifest.json").read_text())
    assert (content["format"], content["version"]) != ("gpt2scratch-shards", 1)


def test_manifests_of_our_own_shards_are_as_they_were(data):
    content = json.loads((data / "manifest.json").read_text())
    shard = sorted(data.glob("train_*.bin"))[0]
    assert list(content)[:4] == ["format", "version", "dtype", "header_bytes"]
    assert shards_of(content)[0] == {
        "file": shard.name,
        "n_tokens": 40,
        "sha256": hashlib.sha256(shard.read_bytes()).hexdigest(),
    }


def test_a_copy_without_its_tokenizer_is_refused_where_it_would_be_needed(data, tmp_path):
    copy = shutil.copytree(data, tmp_path / "copy")
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ShardError, match=r"expected the tokenizer beside the shards, found no tok"):
        ValidationTask.load(Selection(place=str(copy)))
