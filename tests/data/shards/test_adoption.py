"""Training on other programs' files where they lie."""

import numpy as np
import pytest
from support.tiny_corpus import stream
from support.token_directories import write_foreign
from support.training_runs import flags, refusal, run_here

from modeling_gpt2scratch.data.shards.adoption import adopt
from modeling_gpt2scratch.data.shards.conversion import to_ours
from modeling_gpt2scratch.tracking.metrics import read_metrics

SHORT = {"max_steps": 3, "eval_every": 3, "save_every": 0}
LOGGED = ("loss", "grad_norm", "learning_rate", "eval_loss")


def write_as(format, directory, data):
    """The streams of a data directory as a program writes them, in several files if it can."""
    train, val = stream(data, "train"), stream(data, "val")
    pieces = [train] if format == "nanogpt" else np.array_split(train, 3)
    for number, piece in enumerate(pieces):
        write_foreign(directory, format, piece, "train", number)
    write_foreign(directory, format, val, "val")


def numbers_of(run):
    return [{name: row.get(name) for name in LOGGED} for row in read_metrics(run / "metrics.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["npy", "llm.c", "nanogpt"])
def test_the_losses_are_those_of_the_converted_copy(small_data, tmp_path, monkeypatch, format):
    source = tmp_path / "foreign"
    write_as(format, source, small_data)
    to_ours([source], tmp_path / "copy", tokenizer_name=str(small_data), shard_tokens=7001)
    adopt(source, tokenizer_name=str(small_data))
    for name, data in (("adopted", source), ("converted", tmp_path / "copy")):
        arguments = flags(data, tmp_path / name, verify="full", **SHORT)
        assert run_here(monkeypatch, *arguments) == 0
    found = numbers_of(tmp_path / "adopted")
    assert found == numbers_of(tmp_path / "converted")
    assert found[-1]["eval_loss"] is not None and len(found) == 3
    # The checkpoint has the tokenizer, which did not lie beside the files.
    tokenizers = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("adopted", "copy")]
    assert tokenizers[0] == tokenizers[1]


def test_files_without_a_manifest_are_refused_with_the_command_that_adopts_them(
    small_data, tmp_path, monkeypatch, capsys
):
    write_as("npy", tmp_path / "foreign", small_data)
    code, line = refusal(monkeypatch, capsys, *flags(tmp_path / "foreign", tmp_path / "run"))
    assert code == 1
    assert f"`gpt2scratch shards adopt {tmp_path}/foreign --tokenizer gpt2`" in line


def test_a_gap_and_a_copy_among_numbered_files_are_said(tmp_path, capsys):
    directory = tmp_path / "data"
    for number in (1, 2, 4, 5):
        content = [256, *range(65, 70), 70 + min(number, 4)] * 30
        write_foreign(directory, "llm.c", content, "train", number)
    adopt(directory, tokenizer_name="bytes")
    said = [line.removeprefix("warning: ") for line in capsys.readouterr().err.splitlines()]
    assert said == [
        "fineweb_train_000002.bin and fineweb_train_000004.bin: expected the files between them, "
        "found 1 missing; the others are used",
        "fineweb_train_000005.bin: expected tokens of its own, found those of "
        "fineweb_train_000004.bin; both are used",
    ]


def test_an_adopted_file_that_was_replaced_is_found_before_the_first_step(
    small_data, tmp_path, monkeypatch, capsys
):
    source = tmp_path / "foreign"
    write_as("nanogpt", source, small_data)
    adopt(source, tokenizer_name=str(small_data))
    with open(source / "train.bin", "ab") as file:
        file.write(b"\0\0")
    code, line = refusal(monkeypatch, capsys, *flags(source, tmp_path / "run"))
    assert code == 1 and f"{source}/train.bin: expected " in line
    content = bytearray((source / "train.bin").read_bytes()[:-2])
    content[1000] ^= 1
    (source / "train.bin").write_bytes(content)
    code, line = refusal(monkeypatch, capsys, *flags(source, tmp_path / "run", verify="full"))
    assert code == 1 and f"{source}/train.bin: expected sha256 " in line
