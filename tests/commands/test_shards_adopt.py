"""`gpt2scratch shards adopt`: other programs' files become a data directory where they lie."""

import json
import os
import pickle
import shutil
import struct

import numpy as np
import pytest
from support.paths import SHARED_DATA
from support.token_directories import (
    CORPUS,
    DOCUMENTS,
    before,
    edit_manifest,
    encode,
    headed,
    names_in,
    write_foreign,
    write_ours,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from modeling_gpt2scratch.data.loading.loader import TokenWindows
from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.evaluation.tasks.samples import Selection
from modeling_gpt2scratch.evaluation.tasks.validation import ValidationTask

FORMATS = ("npy", "llm.c", "nanogpt")


def write_directory(directory, format, tokenizer):
    """Two splits as a program writes them, that for training in two files if it can."""
    train, val = before(tokenizer, DOCUMENTS), before(tokenizer, CORPUS[:2])
    write_foreign(directory, format, val, "val")
    if format == "nanogpt":
        write_foreign(directory, format, train, "train")
    else:
        write_foreign(directory, format, train[:30], "train", 1)
        write_foreign(directory, format, train[30:], "train", 2)
    return train, val


def tokens_of(directory, split):
    """The stream of a split, through the windows that training reads."""
    windows = TokenWindows(directory, split, sequence_length=1)
    rows = windows.read(np.arange(len(windows)))
    return [int(rows[0, 0]), *rows[:, 1].tolist()]


@pytest.mark.parametrize("format", FORMATS)
def test_files_are_read_where_they_lie(tmp_path, run, tokenizer, tokenizer_dir, format):
    source = tmp_path / "foreign"
    train, val = write_directory(source, format, tokenizer)
    contents = {path.name: path.read_bytes() for path in source.iterdir()}
    code, lines = run("adopt", source, "--tokenizer", tokenizer_dir)
    assert code == 0
    assert any(line.endswith(f": {format}, to val") for line in lines)
    assert lines[-1] == f"written: {source}/manifest.json"
    # The manifest is all that was written.
    assert {
        path.name: path.read_bytes() for path in source.iterdir() if path.name in contents
    } == contents
    assert {*names_in(source)} == {*contents, "manifest.json"}
    assert tokens_of(source, "train") == train
    assert tokens_of(source, "val") == val
    # It says of the text what a copy in our format says.
    expected = write_ours(tmp_path / "prepared", tokenizer, val=CORPUS[:2])
    counts = [
        [(split.n_tokens, split.n_documents, split.n_bytes) for split in m.splits.values()]
        for m in (Manifest.load(source), expected)
    ]
    assert counts[0] == counts[1]
    assert run("verify", source)[0] == run("verify", source, "--fast")[0] == 0
    assert run("inspect", source)[1][0] == (
        f"{source}: {format} files with ids of the tokenizer {tokenizer_dir}, 270 entries, "
        f"<|endoftext|> is 269"
    )
    task = ValidationTask.load(Selection(place=str(source)))
    assert task.encode(task.tokenizer, None).tolist() == val


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer/tokenizer.json"])
def test_a_tokenizer_that_was_named_from_where_one_stood_is_found_from_elsewhere(
    tmp_path, run, tokenizer, monkeypatch, name
):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    write_directory(tmp_path / "foreign", "npy", tokenizer)
    monkeypatch.chdir(tmp_path)
    assert run("adopt", "foreign", "--tokenizer", name)[0] == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run("verify", tmp_path / "foreign")[0] == 0
    assert Manifest.load(tmp_path / "foreign").tokenizer["name"] == str(tmp_path / name)


@pytest.mark.parametrize("name", ["data\\\\train.npy", "train\n.npy", "train\udce9.npy"])
def test_a_file_whose_name_no_manifest_could_hold_is_refused(tmp_path, run, tokenizer_dir, name):
    directory = tmp_path / "foreign"
    directory.mkdir()
    np.save(directory / "train.npy", np.array([269, 5], dtype=np.uint16))
    (directory / "train.npy").rename(directory / name)
    for verb in (("adopt", directory), ("convert", directory, tmp_path / "out", "--to", "ours")):
        code, (line,) = run(*verb, "--tokenizer", tokenizer_dir)
        assert code == 1
        assert line.endswith(f"names that any system can hold, found {name!r}; rename it")
    assert not (directory / "manifest.json").exists() and not (tmp_path / "out").exists()


def test_files_of_several_formats_and_types_are_one_stream(tmp_path, run, tokenizer_dir):
    directory = tmp_path / "mixed"
    directory.mkdir()
    (directory / "a_train.bin").write_bytes(headed(20240801, 7, [269, 5], "I"))
    for name, dtype in (("b_train", ">i4"), ("c_train", "|u1"), ("d_train", "<i8")):
        np.save(directory / f"{name}.npy", np.array([7, 8, 9], dtype=dtype))
    (directory / "e_train.bin").write_bytes(headed(20240520, 1, [269, 1], "H"))
    assert run("adopt", directory, "--tokenizer", tokenizer_dir)[0] == 0
    assert tokens_of(directory, "train") == [269, 5, *[7, 8, 9] * 3, 269, 1]
    assert run("verify", directory)[0] == 0
    # And as one of ours, or as llm.c's.
    options = ("--to", "ours", "--tokenizer", tokenizer_dir, "--shard_tokens", 4)
    for out, command in (("ours", options), ("llmc", ("--to", "llm.c"))):
        source = directory if out == "llmc" else sorted(directory.glob("*_train.*"))
        source = [source] if out == "llmc" else source
        assert run("convert", *source, tmp_path / out, *command)[0] == 0
    assert tokens_of(tmp_path / "ours", "train") == tokens_of(directory, "train")
    written = [path.read_bytes()[1024:] for path in sorted((tmp_path / "llmc").iterdir())]
    assert np.frombuffer(b"".join(written), "<u2").tolist() == tokens_of(directory, "train")


def test_a_file_belongs_to_the_split_of_its_name_or_to_that_which_is_asked_for(
    tmp_path, run, tokenizer_dir
):
    # A word within a word says nothing.
    for name in ("a", "medieval", "c_val", "fwVal_0", "fw_validate_0", "validation_0"):
        np.save(tmp_path / f"{name}.npy", np.array([269, 5], dtype=np.uint16))
    held_out = ["c_val.npy", "fwVal_0.npy", "fw_validate_0.npy", "validation_0.npy"]
    command = ("adopt", tmp_path, "--tokenizer", tokenizer_dir)
    assert run(*command)[0] == 0
    splits = Manifest.load(tmp_path).splits
    names = {name: [entry.file for entry in split.shards] for name, split in splits.items()}
    assert names == {"train": ["a.npy", "medieval.npy"], "val": held_out}
    (tmp_path / "manifest.json").unlink()
    # A name alone stands for a file of the directory.
    assert run(*command, "--val", "medieval.npy")[0] == 0
    splits = Manifest.load(tmp_path).splits
    names = {name: [entry.file for entry in split.shards] for name, split in splits.items()}
    assert names == {"train": ["a.npy"], "val": ["medieval.npy", *held_out]}


def save(name, ids):
    """Writes an array, for the table below."""
    return lambda directory: np.save(directory / name, ids)


@pytest.mark.parametrize(
    ("make", "options", "expected"),
    [
        (lambda d: None, (), "expected .bin or .npy files, found none; name another"),
        (lambda d: (d / "manifest.part-00000.json").touch(), (), "expected another program's fi"),
        (save("train.npy", [269, 270]), (), "expected ids from 0 to 269 as in the tokenizer "),
        (save("train.npy", [269, -1]), (), "expected ids from 0 to 269 as in the tokenizer "),
        (save("train.npy", [269.0]), (), "expected one dimension of integers, found float64"),
        (save("train_val.npy", [269]), (), "expected the word train or val in the name of the fi"),
        (save("val.npy", [269]), (), "expected training files among them, found none"),
        (save("train.npy", [269]), ("--val", "/x.npy"), "expected --val to name token files in "),
        (
            lambda d: (d / "train.npy").write_bytes(pickle.dumps([269])),
            *((), "(pickled data is never read)"),
        ),
        (
            lambda d: (d / "train.bin").write_bytes(struct.pack("<256iH", 20240522, *[0] * 256)),
            *((), "found llm.c's multiple-choice evaluation data"),
        ),
    ],
)
def test_what_cannot_be_adopted_ends_in_one_line_and_writes_nothing(
    tmp_path, run, tokenizer_dir, make, options, expected
):
    directory = tmp_path / "data"
    directory.mkdir()
    make(directory)
    names = names_in(directory)
    code, (line,) = run("adopt", directory, "--tokenizer", tokenizer_dir, *options)
    assert code == 1
    assert line.startswith("gpt2scratch shards adopt: error: ") and expected in line
    assert names_in(directory) == names


def test_a_data_directory_is_not_adopted_again(ours, run, tokenizer_dir):
    content = (ours / "manifest.json").read_bytes()
    code, (line,) = run("adopt", ours, "--tokenizer", tokenizer_dir)
    assert code == 1 and f"{ours}: expected token files without a manifest, found" in line
    assert (ours / "manifest.json").read_bytes() == content


def test_a_file_that_changed_or_came_later_is_found(tmp_path, run, tokenizer, tokenizer_dir):
    directory = tmp_path / "foreign"
    write_directory(directory, "npy", tokenizer)
    assert run("adopt", directory, "--tokenizer", tokenizer_dir)[0] == 0
    path = directory / "edufineweb_train_000001.npy"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    code, (line,) = run("verify", directory)
    assert code == 1 and line.startswith(f"{path}: expected sha256 ")
    write_foreign(directory, "npy", [269], "train", 3)
    code, lines = run("verify", directory, "--fast")
    assert code == 1 and "expected only shards that manifest.json lists" in lines[0]
    (directory / "edufineweb_train_000003.npy").unlink()
    path.write_bytes(content[:-2])
    code, (line,) = run("verify", directory, "--fast")
    assert code == 1 and line.startswith(f"{path}: expected a whole .npy file of integers, found ")


def test_a_header_that_says_more_than_the_manifest_is_refused(tmp_path, run, tokenizer_dir):
    np.save(tmp_path / "train.npy", np.array([269, 5], dtype=np.uint16))
    assert run("adopt", tmp_path, "--tokenizer", tokenizer_dir)[0] == 0
    edit_manifest(tmp_path, lambda m: m["splits"]["train"].update(n_tokens=3))
    edit_manifest(tmp_path, lambda m: m["splits"]["train"]["shards"][0].update(n_tokens=3))
    code, (line,) = run("verify", tmp_path, "--fast")
    assert code == 1 and "expected 3 ids <u2 of npy after 128 bytes below 270, found 2 ids" in line


# Whose ids they are


def test_the_tokenizer_is_asked_for_where_files_do_not_say(tmp_path, run, gpt2_files):
    ids = [50256, *range(1000, 1100)]
    for format in FORMATS:
        write_foreign(tmp_path / format, format, ids, "train")
        code, lines = run("adopt", tmp_path / format)
        if format == "llm.c":  # whose header is that of GPT-2's ids
            assert code == 0
            assert Manifest.load(tmp_path / format).tokenizer["name"] == "gpt2"
        else:
            assert code == 1 and len(lines) == 1
            assert f"expected --tokenizer, as a file of format {format} does not say" in lines[0]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([*range(65)] * 4, "found single bytes alone and no end of text among 260; name the"),
        (
            [*range(9000)],
            "found none above 8999 and no end of text among 9,000; name",
        ),
    ],
)
def test_ids_that_are_not_gpt2s_are_not_taken_for_them(tmp_path, run, gpt2_files, ids, expected):
    write_foreign(tmp_path / "data", "llm.c", ids, "train")
    for command in (("adopt",), ("convert", "--to", "ours")):
        name, *options = command
        target = [tmp_path / "out"] * (name == "convert")
        code, (line,) = run(name, tmp_path / "data", *target, *options)
        assert code == 1 and expected in line


def test_ids_of_a_small_vocabulary_are_not_those_of_a_large_one(tmp_path, run, gpt2_files):
    write_foreign(tmp_path / "data", "npy", [*range(94), 256] * 4, "train")
    code, (line,) = run("adopt", tmp_path / "data", "--tokenizer", "gpt2")
    assert code == 1 and "of the tokenizer gpt2, found none above 256 and no end of" in line


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_ids_of_more_bytes_are_not_read_as_uint16(tmp_path, run, gpt2_files, dtype):
    path = tmp_path / "data" / "train.bin"
    path.parent.mkdir()
    np.array([50256, *range(1000, 1100)], dtype=dtype).tofile(path)
    code, (line,) = run("adopt", path.parent, "--tokenizer", "gpt2")
    assert code == 1 and "train.bin: expected ids of two bytes, found 0 in the place of " in line


def test_a_file_that_was_never_filled_to_its_end_is_refused(tmp_path, run, gpt2_files):
    path = tmp_path / "data" / "train.bin"
    path.parent.mkdir()
    ids = np.array([50256, *range(1000, 4000), *[0] * 5000], dtype="<u2")
    ids.tofile(path)
    code, (line,) = run("adopt", path.parent, "--tokenizer", "gpt2")
    assert code == 1 and line.endswith(
        "train.bin: expected text to the end, found the id 0 alone in the last 1,024 tokens, as in "
        "a file that was never completed; run the program that wrote it again"
    )
    np.append(ids, 1).astype("<u2").tofile(path)
    assert run("adopt", path.parent, "--tokenizer", "gpt2")[0] == 0


def test_a_file_may_be_filled_up_with_ends_of_texts(tmp_path, run):
    texts = ["the cat sat on the mat", "a dog"]
    trainer = trainers.BpeTrainer(
        special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    backend.train_from_iterator(texts, trainer)
    own = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    own.save_pretrained(tmp_path / "own")
    ids = own(" ".join(texts * 40))["input_ids"]
    (tmp_path / "data").mkdir()
    np.array([0, *ids, *[0] * 2000], dtype="<u2").tofile(tmp_path / "data" / "train.bin")
    assert run("adopt", tmp_path / "data", "--tokenizer", tmp_path / "own")[0] == 0


def test_two_bytes_are_too_few_for_a_large_vocabulary(tmp_path, run, tokenizer_dir):
    large = AutoTokenizer.from_pretrained(tokenizer_dir)
    large.add_tokens([f"<{number}>" for number in range(2**16)])
    large.save_pretrained(tmp_path / "large")
    write_foreign(tmp_path / "data", "nanogpt", [*range(200)], "train")
    code, (line,) = run("adopt", tmp_path / "data", "--tokenizer", tmp_path / "large")
    assert code == 1 and "train.bin: expected 4 bytes per id of the tokenizer" in line


def test_one_text_without_an_end_is_no_text_of_characters(tmp_path, run, tokenizer, tokenizer_dir):
    (ids,) = encode(tokenizer, ["the cat sat on the mat, naïve. " * 20])
    write_foreign(tmp_path / "data", "nanogpt", ids, "train")
    assert run("adopt", tmp_path / "data", "--tokenizer", tokenizer_dir)[0] == 0


@pytest.mark.parametrize("name", ["test", "fwTest_0", "heldout_000000", "fw_holdout_0", "w-dev"])
def test_data_for_tests_are_not_taken_for_training(tmp_path, run, tokenizer, tokenizer_dir, name):
    (ids,) = encode(tokenizer, ["the cat sat on the mat. " * 20])
    for split in ("train", "val"):
        write_foreign(tmp_path / "data", "nanogpt", ids, split)
    shutil.copy(tmp_path / "data" / "val.bin", tmp_path / "data" / f"{name}.bin")
    code, (line,) = run("adopt", tmp_path / "data", "--tokenizer", tokenizer_dir)
    assert code == 1 and f"{name}.bin: expected files of training and validation, found" in line


def test_bytes_are_adopted_as_bytes(tmp_path, run):
    text = "Wer reitet so spät durch Nacht und Wind?\n\tEs ist der Vater mit seinem Kind.\n" * 9
    write_foreign(tmp_path / "data", "nanogpt", np.array([*text.encode()]), "train")
    assert run("adopt", tmp_path / "data", "--tokenizer", "bytes")[0] == 0


@pytest.mark.parametrize("command", ["adopt", "convert"])
def test_nanogpts_characters_are_not_gpt2s_tokens_and_their_table_is_not_unpickled(
    tmp_path, run, gpt2_files, command
):
    data, case = tmp_path / "characters", SHARED_DATA / "cases/nanogpt_char"
    if not case.is_dir():
        pytest.skip(f"needs {case}")
    shutil.copytree(case, data, copy_function=shutil.copyfile)
    os.chmod(data, 0o755)
    fired = tmp_path / "fired"
    (data / "meta.pkl").write_bytes(pickle.dumps(Bomb(fired)))
    target = [tmp_path / "out", "--to", "ours"] if command == "convert" else []
    for options, expected in (
        ((), "expected --tokenizer, as a file of format nanogpt does not say what its ids mean"),
        (("--tokenizer", "gpt2"), "expected ids of the tokenizer gpt2, found single bytes alone"),
        (("--tokenizer", "bytes"), "expected ids of the tokenizer bytes, found control characters"),
    ):
        code, (line,) = run(command, data, *target, *options)
        assert code == 1 and expected in line and "meta.pkl" in line
    assert names_in(data) == ["meta.pkl", "train.bin", "val.bin"]
    assert not fired.exists() and not (tmp_path / "out").exists()


class Bomb:
    """Marks a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


# Publishing


def test_an_adopted_directory_is_published_with_its_tokenizer(
    tmp_path, run, tokenizer, tokenizer_dir
):
    source = tmp_path / "foreign"
    write_directory(source, "npy", tokenizer)
    assert run("adopt", source, "--tokenizer", tokenizer_dir)[0] == 0
    options = ("--repository", "me/tokens", "--dry_run", tmp_path / "dry")
    assert run("publish", "--data", source, *options)[0] == 0
    for path in source.glob("*.npy"):
        shutil.copy(path, tmp_path / "dry")
    card = (tmp_path / "dry" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    assert 'dtype="<u2", mode="r", offset=128' in code
    assert "| `edufineweb_train_000001.npy` | npy" in card
    assert str(tmp_path) not in card + json.dumps(Manifest.load(tmp_path / "dry").content())
    # What others download is sound, wherever its tokenizer came from.
    shutil.rmtree(source)
    assert run("verify", tmp_path / "dry")[0] == 0
