"""`gpt2scratch shards convert`: other programs' files become ours, and ours llm.c's."""

import json
import struct

import numpy as np
import pytest
from support.tiny_corpus import stream
from support.token_directories import (
    CORPUS,
    DOCUMENTS,
    before,
    encode,
    headed,
    names_in,
    write_foreign,
    write_ours,
)
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from modeling_gpt2scratch.data.shards.foreign import byte_lengths
from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.data.tokens.tokenizer import fingerprint

# convert, from other programs


@pytest.mark.parametrize("format", ["npy", "llm.c", "nanogpt"])
def test_a_foreign_directory_becomes_ours(tmp_path, run, tokenizer, tokenizer_dir, format):
    train, val = before(tokenizer, DOCUMENTS), before(tokenizer, CORPUS[:2])
    if format == "nanogpt":  # it puts end of text behind the documents
        train, val = train[1:] + train[:1], val[1:] + val[:1]
    source, out = tmp_path / "foreign", tmp_path / "out"
    write_foreign(source, format, val, "val")
    if format == "nanogpt":
        write_foreign(source, format, train, "train")
    else:  # in two files, cut inside a document
        write_foreign(source, format, train[:30], "train", 1)
        write_foreign(source, format, train[30:], "train", 2)
    options = ("--to", "ours", "--tokenizer", tokenizer_dir, "--shard_tokens", 25)
    code, lines = run("convert", source, out, *options)
    assert code == 0
    assert any(line.endswith(f": {format}, to val") for line in lines)
    assert stream(out, "train") == train
    assert stream(out, "val") == val
    manifest = Manifest.load(out)
    expected = write_ours(tmp_path / "prepared", tokenizer, shard_tokens=25, val=CORPUS[:2])
    counts = [
        [(split.n_tokens, split.n_documents, split.n_bytes) for split in m.splits.values()]
        for m in (manifest, expected)
    ]
    assert counts[0] == counts[1]
    assert (manifest.vocab_size, manifest.end_of_text_id) == (270, 269)
    assert manifest.tokenizer == {
        "name": str(tokenizer_dir),
        "fingerprint": fingerprint(AutoTokenizer.from_pretrained(out)),
    }
    assert str(tmp_path) not in json.dumps(manifest.arguments)
    assert names_in(tmp_path) == ["foreign", "out", "prepared"]
    assert run("verify", out)[0] == 0


def test_the_users_word_decides_the_split_and_the_format(tmp_path, run, tokenizer, tokenizer_dir):
    paths = [tmp_path / name for name in ("a.dat", "b.dat", "c.dat")]
    for index, path in enumerate(paths):
        path.write_bytes(struct.pack("<2H", 269, index))
    out = tmp_path / "out"
    options = ("--to", "ours", "--tokenizer", tokenizer_dir, "--format", "nanogpt")
    # As with `convert *.dat out --val b.dat`: a file is never in both splits.
    assert run("convert", *paths, out, *options, "--val", paths[1])[0] == 0
    assert stream(out, "train") == [269, 0, 269, 2]
    assert stream(out, "val") == [269, 1]


def test_a_file_with_two_names_is_read_once(tmp_path, run, tokenizer_dir):
    (tmp_path / "disk").mkdir()
    for name in ("train_a", "part"):
        np.save(tmp_path / "disk" / f"{name}.npy", np.array([269, 5], dtype=np.uint16))
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    sources = [tmp_path / "link", tmp_path / "disk" / "train_a.npy"]
    val = ["--val", tmp_path / "disk" / ".." / "disk" / "part.npy"]
    out = tmp_path / "out"
    command = ("convert", *sources, out, "--to", "ours", "--tokenizer", tokenizer_dir, *val)
    assert run(*command)[0] == 0
    splits = Manifest.load(out).splits
    assert {name: split.n_tokens for name, split in splits.items()} == {"train": 2, "val": 2}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--name", "../other"), "expected --name to begin the names of files, found '../other'"),
        (("--shard_tokens", "5"), "--shard_tokens has no effect with --to llm.c; leave it out"),
        (("--tokenizer", "gpt2"), "--tokenizer has no effect with --to llm.c; leave it out"),
    ],
)
def test_what_means_nothing_for_llm_c_is_refused(tmp_path, run, ours, options, expected):
    code, (line,) = run("convert", ours, tmp_path / "out", "--to", "llm.c", *options)
    assert code == 1 and expected in line and not (tmp_path / "out").exists()


def test_files_without_end_of_text_and_without_validation_become_ours(
    tmp_path, run, tokenizer, tokenizer_dir
):
    # nanoGPT's data/shakespeare: one long text.
    (ids,) = encode(tokenizer, ["the cat sat on the mat, naïve"])
    path = write_foreign(tmp_path / "shakespeare", "nanogpt", ids, "train")
    out = tmp_path / "out"
    assert run("convert", path, out, "--to", "ours", "--tokenizer", tokenizer_dir)[0] == 0
    (split,) = Manifest.load(out).splits.values()
    assert (split.n_tokens, split.n_documents, split.n_bytes) == (len(ids), 0, 30)
    assert run("verify", out)[0] == 0


def test_ids_of_four_bytes_that_a_small_vocabulary_holds_become_two(
    tmp_path, run, tokenizer, tokenizer_dir
):
    path = tmp_path / "a_train.bin"
    path.write_bytes(headed(20240801, 7, [269, 5], "I"))
    out = tmp_path / "out"
    assert run("convert", path, out, "--to", "ours", "--tokenizer", tokenizer_dir)[0] == 0
    assert len((out / "train_000000.bin").read_bytes()) == 1024 + 4


def test_a_byte_level_token_has_the_bytes_of_its_text(tokenizer):
    lengths = byte_lengths(tokenizer, "bpe:270")
    for document, ids in zip(DOCUMENTS, encode(tokenizer, DOCUMENTS), strict=True):
        assert lengths[ids].sum() == len(document.encode())
    assert lengths[tokenizer.eos_token_id] == 0


def test_a_byte_level_unigram_vocabulary_has_lengths_too():
    vocabulary = [("<end>", 0.0), ("the", -1.0), ("t", -2.0), ("h", -2.0), ("e", -2.0)]
    backend = Tokenizer(models.Unigram(vocabulary, 0))
    backend.decoder = decoders.ByteLevel()
    unigram = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    assert byte_lengths(unigram, "own").tolist() == [0, 3, 1, 1, 1]


def test_a_tokenizer_that_is_not_byte_level_is_refused(tmp_path, run):
    words = Tokenizer(models.WordLevel({"?": 0, "the": 1, "end": 2}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="end").save_pretrained(tmp_path / "t")
    path = write_foreign(tmp_path / "data", "npy", [2, 1], "train")
    command = ("convert", path, tmp_path / "out", "--to", "ours", "--tokenizer", tmp_path / "t")
    code, (line,) = run(*command)
    assert code == 1
    assert "expected a byte-level tokenizer like GPT-2's" in line
    assert names_in(tmp_path) == ["data", "t"]


@pytest.mark.parametrize(
    ("files", "options", "expected"),
    [
        (("x_train.npy",), (), "x_train.npy: expected ids from 0 to 269 as in the tokenizer "),
        (("good_train.npy", "x_train.npy"), (), "x_train.npy: expected ids from 0 to 269 as in"),
        (("cut_train.bin",), (), "cut_train.bin: expected 1028 bytes for 2 tokens, found 1026; "),
        (("good.npy",), (), "good.npy: expected the word train or val in the name of the file, f"),
        (("train_val.npy",), (), "train_val.npy: expected the word train or val in the name of th"),
        (("good_val.npy",), (), "expected training files among them, found none"),
        (("none_train.npy",), (), "none_train.npy: expected a token file, found No such file"),
        (("empty",), (), "empty: expected .bin or .npy files, found none; name another"),
        (("ours",), (), "ours: expected another program's files, found manifest.json; it is a "),
        (("other_vocab_train.bin",), (), "expected a vocabulary of 270 entries as in the tokeniz"),
        (("good_train.npy",), ("--to", "llm.c"), "expected one data directory of ours for --to l"),
        (("empty",), ("--to", "llm.c"), "--tokenizer has no effect with --to llm.c; leave it out"),
        (("good_train.npy", "good_val.npy"), ("--to", "llm.c"), "expected one data directory of"),
        (
            ("good_train.npy",),
            ("--tokenizer", "/none"),
            "/none: expected gpt2, bytes, or a direct",
        ),
    ],
)
def test_what_cannot_be_converted_ends_in_one_line_and_leaves_nothing(
    tmp_path, run, tokenizer, tokenizer_dir, files, options, expected
):
    for name in ("good_train.npy", "good_val.npy", "good.npy", "train_val.npy"):
        np.save(tmp_path / name, np.array([269, 5], dtype=np.uint16))
    np.save(tmp_path / "x_train.npy", np.array([269] * 20 + [270], dtype=np.uint16))
    cut = headed(20240520, 1, [269, 5], "H")[:-2]
    (tmp_path / "cut_train.bin").write_bytes(cut)
    other = struct.pack("<256i", 20240520, 1, 1, 271, *[0] * 252) + b"\5\0"
    (tmp_path / "other_vocab_train.bin").write_bytes(other)
    (tmp_path / "empty").mkdir()
    write_ours(tmp_path / "ours", tokenizer)
    names = names_in(tmp_path)
    paths = [tmp_path / name for name in files]
    command = ("convert", *paths, tmp_path / "out", "--to", "ours", "--tokenizer", tokenizer_dir)
    code, (line,) = run(*command, *options)
    assert code == 1
    assert line.startswith("gpt2scratch shards convert: error: ")
    assert expected in line
    assert names_in(tmp_path) == names


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "gpt2scratch shards: error: the following arguments are required: COMMAND"),
        (("convert", "a", "b"), "error: the following arguments are required: --to"),
        (("convert", "a", "b", "--to", "x"), "error: --to: expected one of ours, llm.c, found 'x'"),
        (
            ("convert", "a", "b", "--to", "ours", "--shard_tokens", "0"),
            "expected a whole number from 1 to 2147483647",
        ),
        (
            ("convert", "a", "b", "--to", "ours", "--shard_tokens", "2147483648"),
            "expected a whole number from 1 to 2",
        ),
        (("verify",), "error: the following arguments are required: DIR"),
        (
            ("convert", "--too", "x"),
            "shards convert: error: unknown flag --too; did you mean --to?",
        ),
        (("explode",), "error: COMMAND: expected one of inspect, verify, "),
    ],
)
def test_a_wrong_command_ends_in_one_line(run, arguments, expected):
    code, (line,) = run(*arguments)
    assert code == 2
    assert expected in line


def test_an_existing_directory_is_replaced_only_on_request(tmp_path, run, tokenizer_dir):
    path = write_foreign(tmp_path / "data", "npy", [269, 5], "train")
    out = tmp_path / "out"
    command = ("convert", path, out, "--to", "ours", "--tokenizer", tokenizer_dir)
    assert run(*command)[0] == 0
    code, (line,) = run(*command)
    assert code == 1
    assert line.endswith("choose another or add --overwrite")
    assert run(*command, "--overwrite")[0] == 0
    # Whatever was asked for, a source is never replaced.
    code, (line,) = run("convert", path, path.parent, *command[3:], "--overwrite")
    assert code == 1
    assert path.exists()
    code, (line,) = run("convert", out, out, "--to", "llm.c", "--overwrite")
    assert code == 1
    assert (out / "manifest.json").exists()


# convert, to llm.c


def test_ours_becomes_what_llm_c_writes(tmp_path, run, ours):
    train, val = stream(ours, "train"), stream(ours, "val")
    out = tmp_path / "fineweb"
    code, lines = run("convert", ours, out, "--to", "llm.c")
    n_train, n_val = -(-len(train) // 40), -(-len(val) // 40)
    assert code == 0
    assert lines == [
        f"val: {out}/fineweb_val_000000.bin, {n_val} in all",
        f"train: {out}/fineweb_train_{n_val:06d}.bin, "
        f"{out}/fineweb_train_{n_val + n_train - 1:06d}.bin, {n_train} in all",
    ]
    assert names_in(out) == [
        ".gpt2scratch.json",
        *(f"fineweb_train_{n_val + index:06d}.bin" for index in range(n_train)),
        *(f"fineweb_val_{index:06d}.bin" for index in range(n_val)),
    ]
    content = b"".join(path.read_bytes()[1024:] for path in sorted(out.glob("*_train_*")))
    assert np.frombuffer(content, "<u2").tolist() == train
    for path in out.glob("*.bin"):
        words = struct.unpack("<256i", path.read_bytes()[:1024])
        n_tokens = (path.stat().st_size - 1024) // 2
        assert words == (20240520, 1, n_tokens) + (0,) * 253


def test_ours_comes_back_from_llm_c_as_it_was(tmp_path, run, ours, tokenizer_dir):
    assert run("convert", ours, tmp_path / "llmc", "--to", "llm.c", "--name", "web")[0] == 0
    assert (tmp_path / "llmc" / "web_val_000000.bin").exists()
    options = ("--to", "ours", "--tokenizer", tokenizer_dir, "--shard_tokens", 40)
    assert run("convert", tmp_path / "llmc", tmp_path / "back", *options)[0] == 0
    assert Manifest.load(tmp_path / "back").splits == Manifest.load(ours).splits
    for path in ours.glob("*.bin"):
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()


def test_a_split_of_training_data_alone_begins_with_file_1(tmp_path, run, tokenizer):
    # llm.c's scripts call the validation split file 0.
    write_ours(tmp_path / "ours", tokenizer, shard_tokens=1000)
    assert run("convert", tmp_path / "ours", tmp_path / "web", "--to", "llm.c")[0] == 0
    assert names_in(tmp_path / "web") == [".gpt2scratch.json", "web_train_000001.bin"]


def test_a_damaged_directory_is_not_passed_on_to_llm_c(tmp_path, run, ours):
    content = bytearray((ours / "train_000001.bin").read_bytes())
    content[-2] ^= 1
    (ours / "train_000001.bin").write_bytes(content)
    code, (line,) = run("convert", ours, tmp_path / "out", "--to", "llm.c")
    assert code == 1
    assert "train_000001.bin: expected sha256 " in line
    assert names_in(tmp_path) == ["ours"]
