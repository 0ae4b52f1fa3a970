"""The commands inspect, verify, convert and merge of token_shards, as a user calls them."""

import dataclasses
import hashlib
import json
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from support.tiny_corpus import stream
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from modeling_gpt2scratch.commands.shards import main
from modeling_gpt2scratch.data.shards import conversion as shard_conversion
from modeling_gpt2scratch.data.shards import token_files as shard_formats
from modeling_gpt2scratch.data.shards import verification as shard_verification
from modeling_gpt2scratch.data.shards.conversion import byte_lengths
from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.data.shards.merging import Part
from modeling_gpt2scratch.data.shards.writer import SplitWriter
from modeling_gpt2scratch.data.tokens.tokenizer import fingerprint, train_tokenizer

CORPUS = ["the cat sat on the mat", "a naïve café: “the mat”", "the dog sat and sat"] * 3
DOCUMENTS = [*CORPUS[:3], "", "bytes of four: 🐈, of two: é\n", "the cat " * 20]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CORPUS, 270)


@pytest.fixture(scope="module")
def tokenizer_dir(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Files are read in many pieces, as large ones are."""
    monkeypatch.setattr(shard_formats, "TOKENS_PER_READ", 7)
    monkeypatch.setattr(shard_conversion, "TOKENS_PER_READ", 7)
    monkeypatch.setattr(shard_verification, "BYTES_PER_READ", 24)


@pytest.fixture
def run(capsys):
    """Runs a command; returns its exit code, and the lines it printed."""

    def run(*arguments):
        with pytest.raises(SystemExit) as exited:
            main([str(argument) for argument in arguments])
        code = exited.value.code
        captured = capsys.readouterr()
        if isinstance(code, str):  # what Python prints before it exits with 1
            return 1, [code]
        errors = [line for line in captured.err.splitlines() if "error:" in line]
        return code, [*captured.out.splitlines(), *errors]

    return run


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


@pytest.fixture
def ours(tmp_path, tokenizer):
    write_ours(tmp_path / "ours", tokenizer, val=CORPUS[:2])
    return tmp_path / "ours"


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


def edit_manifest(directory, edit):
    path = directory / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


# verify


def test_a_sound_directory_is_ok(ours, run):
    n_tokens = len(stream(ours, "train")) + len(stream(ours, "val"))
    n_shards = len(list(ours.glob("*.bin")))
    assert n_shards > 4
    assert run("verify", ours) == (
        0,
        [f"ok: {ours}: {n_tokens:,} tokens in {n_shards} shards, checksums, ids and documents"],
    )
    code, (line,) = run("verify", ours, "--fast")
    assert (code, line.endswith(f"in {n_shards} shards, sizes and headers")) == (0, True)


def test_verify_names_every_fault_and_not_only_the_first(ours, run):
    (ours / "train_000000.bin").unlink()
    content = bytearray((ours / "train_000001.bin").read_bytes())
    content[-2] ^= 1
    (ours / "train_000001.bin").write_bytes(content)
    (ours / "val_000000.bin").write_bytes((ours / "val_000000.bin").read_bytes()[:-2])
    shutil.copy(ours / "train_000002.bin", ours / "train_000099.bin")
    (ours / ".train_000100.bin.partial").touch()
    code, lines = run("verify", ours)
    assert code == 1
    expected = [
        f"{ours}/train_000099.bin: expected only shards that manifest.json lists, found one that",
        f"{ours}/.train_000100.bin.partial: expected a finished directory, found what a killed",
        f"{ours}/train_000000.bin: expected a shard, found No such file or directory",
        f"{ours}/train_000001.bin: expected sha256 ",
        f"{ours}/val_000000.bin: expected 1086 bytes for 31 tokens, found 1084; the file is trun",
    ]
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)


def rewritten(directory, change):
    """Changes the bytes of train_000001.bin, and its checksum with them."""
    path = directory / "train_000001.bin"
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    edit_manifest(directory, lambda m: m["splits"]["train"]["shards"][1].update(sha256=sha256))


def put(position, value):
    """A change of the token at this position."""

    def change(content):
        struct.pack_into("<H", content, 1024 + 2 * position, value)

    return change


def header_word(index, value):
    """A change of one word of the header."""
    return lambda content: struct.pack_into("<i", content, 4 * index, value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put(31, 271), "train_000001.bin: expected ids below 270, found 271 at token 31; prepare"),
        (put(0, 65535), "train_000001.bin: expected ids below 270, found 65535 at token 0; prep"),
        (put(3, 269), "manifest.json: expected 6 documents in split 'train', found 7 end-of-text"),
        (header_word(0, 7), "train_000001.bin: expected a shard with magic 20240520 version 1, fo"),
        (header_word(2, 39), "train_000001.bin: expected 40 tokens of a vocabulary of 270, found"),
        (header_word(3, 271), "train_000001.bin: expected 40 tokens of a vocabulary of 270, found"),
    ],
)
def test_a_shard_that_its_checksum_does_not_betray_is_found_by_its_content(
    ours, run, change, expected
):
    assert run("verify", ours)[0] == 0
    rewritten(ours, change)
    code, (line,) = run("verify", ours)
    assert (code, line.startswith(f"{ours}/{expected}")) == (1, True)


def test_a_vocabulary_word_that_another_program_left_zero_is_no_fault(ours, run):
    rewritten(ours, header_word(3, 0))
    assert run("verify", ours)[0] == 0


def test_a_quick_look_leaves_the_tokens_unread(ours, run):
    rewritten(ours, put(3, 269))
    (ours / "train_000000.bin").write_bytes((ours / "train_000001.bin").read_bytes())
    assert run("verify", ours, "--fast")[0] == 0
    assert run("verify", ours)[0] == 1


def shard_of(manifest, index):
    return manifest["splits"]["train"]["shards"][index]


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda m: m.update(dtype="<u4"), "expected {'dtype': '<u2', 'header_bytes': 1024}, fou"),
        (lambda m: m.update(end_of_text_id=270), "expected an end-of-text id below 270, found 270"),
        (
            lambda m: m["splits"]["train"].update(n_tokens=7),
            "expected 7 tokens in split 'train', f",
        ),
        (lambda m: m["splits"]["train"].update(n_documents=7), "expected 7 documents in split 'tr"),
        (
            lambda m: m["splits"]["train"]["shards"].append(shard_of(m, 0)),
            "expected each shard once, found train_000000.bin again",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_named(ours, run, edit, expected):
    edit_manifest(ours, edit)
    code, lines = run("verify", ours)
    assert code == 1
    assert any(line.startswith(f"{ours}/manifest.json: {expected}") for line in lines)


def test_a_manifest_that_leads_out_of_its_directory_is_refused(ours, run):
    shutil.copy(ours / "train_000000.bin", ours.parent / "outside.bin")
    edit_manifest(ours, lambda m: shard_of(m, 0).update(file="../outside.bin"))
    _, lines = run("verify", ours, "--fast")
    assert any("expected the name of a file in" in line for line in lines)


def test_the_tokenizer_beside_the_shards_must_be_theirs(ours, run):
    train_tokenizer(["other words"], 270).save_pretrained(ours)
    code, (line,) = run("verify", ours)
    assert code == 1
    assert line.startswith(f"{ours}: expected a tokenizer of (entries, end-of-text id, fingerpr")
    (ours / "tokenizer.json").unlink()
    code, (line,) = run("verify", ours, "--fast")
    assert line == f"{ours}: expected the tokenizer beside the shards, found no tokenizer.json"


def test_a_directory_without_a_manifest_ends_in_one_line(tmp_path, run):
    code, (line,) = run("verify", tmp_path)
    assert code == 1
    assert line.startswith(f"token_shards verify: error: {tmp_path}: expected a directory with man")


# convert, from other programs


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
        (("good.npy",), (), "good.npy: expected train or val in the name of the file, found nei"),
        (("train_val.npy",), (), "train_val.npy: expected train or val in the name of the file, "),
        (("good_val.npy",), (), "expected training files among them, found none"),
        (("none_train.npy",), (), "none_train.npy: expected a token file, found No such file"),
        (("empty",), (), "empty: expected .bin or .npy files, found none; name another"),
        (("ours",), (), "ours: expected another program's files, found manifest.json; it is a "),
        (("other_vocab_train.bin",), (), "expected a vocabulary of 270 entries as in the tokeniz"),
        (("good_train.npy",), ("--to", "llm.c"), "expected one data directory of ours for --to l"),
        (("empty",), ("--to", "llm.c"), "empty: expected a directory with manifest.json, found no"),
        (("good_train.npy", "good_val.npy"), ("--to", "llm.c"), "expected one data directory of"),
        (("good_train.npy",), ("--tokenizer", "/none"), "/none: expected gpt2, bpe:N, or a direct"),
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
    assert line.startswith("token_shards convert: error: ")
    assert expected in line
    assert names_in(tmp_path) == names


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "token_shards: error: the following arguments are required: COMMAND"),
        (("convert", "a", "b"), "error: the following arguments are required: --to"),
        (("convert", "a", "b", "--to", "x"), "error: argument --to: invalid choice: 'x'"),
        (("convert", "a", "b", "--to", "ours", "--shard_tokens", "0"), "expected 1 to 2147483647"),
        (("convert", "a", "b", "--to", "ours", "--shard_tokens", "2147483648"), "expected 1 to 2"),
        (("verify",), "error: the following arguments are required: DIR"),
        (("explode",), "error: argument COMMAND: invalid choice: 'explode'"),
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
        *(f"fineweb_train_{n_val + index:06d}.bin" for index in range(n_train)),
        *(f"fineweb_val_{index:06d}.bin" for index in range(n_val)),
    ]
    content = b"".join(path.read_bytes()[1024:] for path in sorted(out.glob("*_train_*")))
    assert np.frombuffer(content, "<u2").tolist() == train
    for path in out.iterdir():
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
    assert names_in(tmp_path / "web") == ["web_train_000001.bin"]


def test_a_damaged_directory_is_not_passed_on_to_llm_c(tmp_path, run, ours):
    content = bytearray((ours / "train_000001.bin").read_bytes())
    content[-2] ^= 1
    (ours / "train_000001.bin").write_bytes(content)
    code, (line,) = run("convert", ours, tmp_path / "out", "--to", "llm.c")
    assert code == 1
    assert "train_000001.bin: expected sha256 " in line
    assert names_in(tmp_path) == ["ours"]


# inspect


def test_inspect_describes_a_directory(ours, run):
    train, val = stream(ours, "train"), stream(ours, "val")
    n_bytes = sum(len(document.encode()) for document in DOCUMENTS)
    code, lines = run("inspect", ours)
    assert code == 0
    assert lines[0] == (
        f"{ours}: uint16 ids of the tokenizer bpe:270, 270 entries, <|endoftext|> is 269"
    )
    assert lines[1].split() == ["split", "tokens", "documents", "bytes/token", "shards"]
    ratio = f"{n_bytes / len(train):.3f}"
    assert lines[3].split() == ["train", str(len(train)), "6", ratio, str(-(-len(train) // 40))]
    assert lines[4].split()[:3] == ["val", str(len(val)), "2"]
    assert lines[5] == "dataset: documents.txt"


def test_inspect_describes_files_of_every_format(tmp_path, run, tokenizer_dir):
    for format in ("npy", "llm.c", "nanogpt"):
        write_foreign(tmp_path, format, [269, 116, 104, 269, 101], "train")
    code, lines = run("inspect", tmp_path)
    assert code == 0
    rows = [line.split()[1:] for line in lines[2:]]
    assert rows == [
        ["npy", "uint16", "5", "269", "unknown"],
        ["llm.c", "uint16", "5", "269", "unknown"],
        ["nanogpt", "uint16", "5", "269", "unknown"],
    ]
    path = tmp_path / "train.bin"
    code, lines = run("inspect", path, "--tokenizer", tokenizer_dir)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    text = tokenizer.decode([269, 116, 104, 269, 101])
    assert text.startswith("<|endoftext|>")
    assert lines[2].split() == [str(path), "nanogpt", "uint16", "5", "269", "2"]
    assert lines[4] == f"{path}: {text!r}"


def test_inspect_knows_the_end_of_text_of_a_shard_of_ours(ours, run):
    code, lines = run("inspect", ours / "val_000000.bin")
    n_documents = stream(ours, "val")[:40].count(269)
    assert lines[2].split()[1:3] == ["gpt2scratch", "uint16"]
    assert lines[2].split()[-1] == str(n_documents)


def test_inspect_describes_what_it_can_and_names_what_it_cannot(tmp_path, run, ours):
    write_foreign(tmp_path / "foreign", "npy", [269], "train")
    (tmp_path / "foreign" / "bad.npy").write_bytes(b"")
    code, lines = run("inspect", tmp_path / "none", tmp_path / "foreign", ours)
    assert code == 1
    assert lines[-2].startswith(f"token_shards inspect: error: {tmp_path}/none: expected a token")
    assert lines[-1].startswith(f"token_shards inspect: error: {tmp_path}/foreign/bad.npy: expect")
    assert any("edufineweb_train_000000.npy" in line for line in lines)
    assert any(line.startswith(f"{ours}: uint16 ids") for line in lines)


# merge


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
        (1, {"tokenizer": {"name": "gpt2"}}, "part-00001.json: expected tokenizer as in manifest"),
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


def test_a_tokenizer_that_was_replaced_meanwhile_is_refused(tmp_path, run, tokenizer):
    saved = tmp_path / "tokenizer"
    train_tokenizer(["other words"], 270).save_pretrained(saved)
    (tmp_path / "data").mkdir()
    write_part(tmp_path / "data", tokenizer, saved, 0, world_size=1)
    code, (line,) = run("merge", tmp_path / "data")
    assert f"expected the tokenizer {saved} as the tasks used it, found another" in line


@pytest.mark.slow
def test_the_command_runs_as_a_module_without_a_warning(ours):
    command = [sys.executable, "-W", "error", "-m", "modeling_gpt2scratch.data.shards.format"]
    good = subprocess.run([*command, "verify", ours], capture_output=True, text=True)
    assert good.returncode == 0
    assert good.stdout.startswith(f"ok: {ours}: ")
    assert "Warning" not in good.stderr
    bad = subprocess.run([*command, "verify", ours / "none"], capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.startswith("token_shards verify: error: ")
    assert len(bad.stderr.splitlines()) == 1
