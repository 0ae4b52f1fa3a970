"""Runs that are damaged or hostile, converted and published: one line, and nothing is executed."""

import io
import json
import os
import re
import sys

import pytest
import torch
from support.damaged_files import (
    BAD_CONFIGS,
    DAMAGES,
    LFS_POINTER,
    add_hostile_code,
    damaged,
    lfs_pointer,
    replace_by_hostile_pickle,
    spoil_config,
)
from support.tiny_models import tiny_model, tiny_tokenizer

from modeling_gpt2scratch.checkpoints.checkpoint import save_model
from modeling_gpt2scratch.commands import convert, publish
from modeling_gpt2scratch.configuration_gpt2scratch import AUTO_MAP

COMMANDS = ("convert", "publish")


@pytest.fixture
def run(tmp_path):
    """A finished run, as far as these commands look at it."""
    directory = tmp_path / "run"
    directory.mkdir()
    save_model(tiny_model(), tiny_tokenizer(), directory)
    return directory


def call(command: str, run, out) -> None:
    """Converts a run, or writes what would be published."""
    if command == "convert":
        convert.main(["to-gpt2", str(run), str(out)])
    else:
        publish.main(["--run", str(run), "--repository", "me/mine", "--dry_run", str(out)])


def refusal(command: str, run, out) -> str:
    """The one line that the command ends with."""
    with pytest.raises(SystemExit) as stop:
        call(command, run, out)
    assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
    assert not out.exists()
    return stop.value.code


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_named_with_what_to_do(run, tmp_path, command, damage):
    weights = run / "model.safetensors"
    weights.write_bytes(damaged(weights.read_bytes(), damage))
    expected = f"error: {weights}: expected a safetensors file, found {DAMAGES[damage]}"
    assert re.search(expected, refusal(command, run, tmp_path / "out"))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", BAD_CONFIGS)
def test_a_configuration_that_makes_no_model_is_one_line(run, tmp_path, command, kind):
    spoil_config(run, BAD_CONFIGS[kind])
    line = refusal(command, run, tmp_path / "out")
    assert f"error: {run}/config.json: " in line and len(line) < 600


@pytest.mark.parametrize("command", COMMANDS)
def test_code_of_a_run_is_never_executed_and_nobody_is_asked(run, tmp_path, monkeypatch, command):
    touched = add_hostile_code(run)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 50))
    out = tmp_path / "out"
    call(command, run, out)
    assert not touched.exists() and sys.stdin.read() == "y\n" * 50
    # Nor is it passed on to whoever trusts the result.
    assert not any("hostile" in file.read_text(errors="replace") for file in out.glob("*.*"))
    config = json.loads((out / "config.json").read_text())
    assert config.get("auto_map") == (None if command == "convert" else AUTO_MAP)


def test_a_hostile_pickle_is_refused_and_not_run(run, tmp_path):
    touched = replace_by_hostile_pickle(run)
    line = refusal("convert", run, tmp_path / "out")
    assert f"{run}/pytorch_model.bin: expected tensors and plain values, found a pickled" in line
    # Only runs with safetensors are published.
    assert "found no model.safetensors" in refusal("publish", run, tmp_path / "out")
    assert not touched.exists()


def test_a_pointer_is_named_by_every_direction(tmp_path):
    case = lfs_pointer(tmp_path / "clone")
    for direction, source in (
        ("to-gpt2", case),
        ("from-nanogpt", case / "model.safetensors"),
        ("from-llmc", case / "model.safetensors"),
    ):
        with pytest.raises(SystemExit) as stop:
            convert.main([direction, str(source), str(tmp_path / "out")])
        line = stop.value.code
        assert f"error: {case}/model.safetensors: expected " in line
        assert line.endswith("found a Git-LFS pointer; run `git lfs pull` there")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file; copy or download it again"),
        (LFS_POINTER, "a Git-LFS pointer; run `git lfs pull` there"),
        (b"<html><body>404</body></html>", "a web page; download the file itself"),
    ],
)
@pytest.mark.parametrize("direction", ["from-nanogpt", "from-llmc"])
def test_what_stands_in_the_place_of_a_foreign_checkpoint_is_said(
    tmp_path, direction, content, found
):
    path = tmp_path / "ckpt.pt"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        convert.main([direction, str(path), str(tmp_path / "out")])
    assert f"{path}: expected " in stop.value.code and stop.value.code.endswith(f"found {found}")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.03, 0.5, 0.97])
def test_a_foreign_checkpoint_that_was_cut_is_one_line(tmp_path, zipped, share):
    path = tmp_path / "ckpt.pt"
    checkpoint = {"model": {"transformer.wte.weight": torch.randn(99, 9)}, "model_args": {}}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(SystemExit) as stop:
        convert.main(["from-nanogpt", str(path), str(tmp_path / "out")])
    line = stop.value.code
    assert line.endswith("a zip archive without its end; copy or download it again") or not zipped
    assert f"{path}: expected a checkpoint of tensors and plain values, found " in line
    assert "\n" not in line and len(line) < 600


@pytest.mark.parametrize("command", COMMANDS)
def test_weights_that_are_not_finite_are_named(run, tmp_path, command):
    model = tiny_model()
    with torch.no_grad():
        model.transformer.ln_f.bias[3] = torch.nan
    save_model(model, tiny_tokenizer(), run)
    assert refusal(command, run, tmp_path / "out").endswith(
        f"error: {run}: expected finite weights, found nan or infinity in transformer.ln_f.bias; "
        f"take an earlier checkpoint"
    )


@pytest.mark.parametrize("direction", ["from-nanogpt", "from-llmc"])
def test_a_foreign_checkpoint_must_be_a_regular_file(tmp_path, direction):
    os.mkfifo(tmp_path / "pipe")
    for path, found in ((tmp_path / "pipe", "a pipe"), (tmp_path, "a directory")):
        with pytest.raises(SystemExit) as stop:
            convert.main([direction, str(path), str(tmp_path / "out")])
        assert f"{path}: expected a regular file, found {found}; name the file" in stop.value.code
