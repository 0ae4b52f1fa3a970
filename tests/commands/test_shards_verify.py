"""`gpt2scratch shards verify` names every fault of a data directory."""

import hashlib
import shutil
import struct

import pytest
from support.tiny_corpus import stream
from support.token_directories import edit_manifest

from modeling_gpt2scratch.data.tokens.tokenizer import train_tokenizer


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
        f"{ours}/train_000000.bin: expected a token file, found No such file or directory",
        f"{ours}/train_000001.bin: expected sha256 ",
        f"{ours}/val_000000.bin: expected 1086 bytes for 31 tokens, found 1084; copy it again",
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
        (
            header_word(0, 7),
            "train_000001.bin: expected a .npy file or a header with magic 20240520 ",
        ),
        (
            header_word(2, 39),
            "train_000001.bin: expected 1102 bytes for 39 tokens, found 1104; copy",
        ),
        (
            header_word(3, 271),
            "train_000001.bin: expected 40 ids <u2 of gpt2scratch after 1024 byte",
        ),
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
    assert line.startswith(
        f"gpt2scratch shards verify: error: {tmp_path}: expected a directory with man"
    )
