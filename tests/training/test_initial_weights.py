"""Weights to start from that are damaged, foreign or hostile: one line, and nothing is executed."""

import io
import json
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
from support.servers import fake_hub
from support.training_runs import flags, refusal, run_here, stock_model

from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.data.tokens.tokenizer import load_tokenizer
from modeling_gpt2scratch.training.initial_weights import (
    InitialWeightsError,
    load_initial_model,
    stored_config,
)

WITHOUT_SIZES = ("model", "n_layer", "n_embd", "n_head", "n_positions")


@pytest.fixture
def stock(tmp_path):
    """The directory of a stock gpt2 that fits the data."""
    stock_model(tmp_path / "stock")
    return tmp_path / "stock"


def load(directory, data):
    """What a run would start from."""
    return load_initial_model(
        str(directory),
        n_positions=stored_config(str(directory)).n_positions,
        dropout=0.0,
        manifest=Manifest.load(data),
        tokenizer=load_tokenizer(str(data)),
    )


def finetuning_flags(data, output_dir, checkpoint) -> list[str]:
    """A command line that takes its sizes from the checkpoint."""
    arguments = flags(data, output_dir, init_from=checkpoint, total_batch_tokens=640, max_steps=1)
    for name in WITHOUT_SIZES:
        position = arguments.index(f"--{name}")
        del arguments[position : position + 2]
    return arguments


def test_a_revision_on_the_hub_can_be_named(small_data, stock, tmp_path, monkeypatch):
    load_tokenizer(str(small_data)).save_pretrained(stock)
    files = {path.name: path.read_bytes() for path in stock.iterdir()}
    with fake_hub.serve("you/tiny", {}, kind="models", revisions={"step-8": files}) as hub:
        hub.use_here(monkeypatch, tmp_path)
        theirs, ours = (load(name, small_data) for name in ("you/tiny@step-8", stock))
    for name, tensor in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("{stock}/model.safetensors", "a file; name the directory that it is in"),
        ("{stock}/nothing", "no directory of that name; look for a wrong letter"),
        ("../nothing/here", "no directory of that name; look for a wrong letter"),
        ("runs/of/mine", "no directory of that name; look for a wrong letter"),
    ],
)
def test_a_path_is_not_taken_for_a_name_on_the_hub(stock, name, found):
    name = name.format(stock=stock)
    with pytest.raises(InitialWeightsError) as refused:
        stored_config(name)
    expected = "expected the directory of a gpt2 or gpt2scratch checkpoint, or a Hub name"
    assert str(refused.value) == f"{name}: {expected} (OWNER/NAME), found {found}"


def test_a_checkpoint_of_nanogpt_gets_the_command_that_converts_it(tmp_path):
    (tmp_path / "ckpt.pt").touch()
    command = f"`gpt2scratch convert from-nanogpt {tmp_path}/ckpt.pt OUT` makes one"
    for name, found in ((tmp_path / "ckpt.pt", "a file"), (tmp_path, "a directory without")):
        with pytest.raises(InitialWeightsError, match=found) as refused:
            stored_config(str(name))
        assert str(refused.value).endswith(command)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_named_with_what_to_do(small_data, stock, damage):
    weights = stock / "model.safetensors"
    weights.write_bytes(damaged(weights.read_bytes(), damage))
    expected = f"^{weights}: expected a safetensors file, found {DAMAGES[damage]}"
    with pytest.raises(InitialWeightsError, match=expected) as refused:
        load(stock, small_data)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "an empty file; copy or download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git-LFS pointer; run"),
        (b"PK\x03\x04" + bytes(90), "a zip archive without its end; copy or download it again"),
        (b"nonsense", "what torch cannot read: Unsupported operand 110"),
    ],
)
def test_damaged_weights_of_torch_are_named(small_data, stock, content, expected):
    (stock / "model.safetensors").unlink()
    (stock / "pytorch_model.bin").write_bytes(content)
    message = f"^{stock}/pytorch_model.bin: expected tensors.*, found {expected}"
    with pytest.raises(InitialWeightsError, match=message) as refused:
        load(stock, small_data)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


def test_a_pointer_is_named_before_anything_else(small_data, tmp_path):
    case = lfs_pointer(tmp_path / "clone")
    spoil_config(case, {"vocab_size": 300, "eos_token_id": 299})  # which fit
    with pytest.raises(InitialWeightsError) as refused:
        load(case, small_data)
    assert str(refused.value) == (
        f"{case}/model.safetensors: expected a safetensors file, found a Git-LFS pointer; "
        f"run `git lfs pull` there"
    )


@pytest.mark.parametrize("kind", BAD_CONFIGS)
@pytest.mark.parametrize("layout", ["gpt2", "gpt2scratch"])
def test_a_configuration_that_makes_no_model_is_one_line(small_data, stock, kind, layout):
    spoil_config(stock, {"model_type": layout})
    spoil_config(stock, BAD_CONFIGS[kind])
    with pytest.raises(InitialWeightsError) as refused:
        load(stock, small_data)
    message = str(refused.value)
    places = (f"{stock}: expected a ", f"{stock}/config.json: expected the configuration of a ")
    assert message.startswith(places) and "\n" not in message
    assert len(message) < 600


def test_a_run_ends_in_one_line_that_names_the_file(
    small_data, stock, tmp_path, monkeypatch, capsys
):
    weights = stock / "model.safetensors"
    weights.write_bytes(LFS_POINTER)
    arguments = finetuning_flags(small_data, tmp_path / "run", stock)
    code, line = refusal(monkeypatch, capsys, *arguments)
    assert code == 1
    assert line.endswith(
        f"{weights}: expected a safetensors file, found a Git-LFS pointer; run `git lfs pull` there"
    )
    spoil_config(stock, {"n_layer": "two"})
    code, line = refusal(monkeypatch, capsys, *arguments)
    assert code == 2 and f"--init_from: {stock}: expected a gpt2 or gpt2scratch" in line


@pytest.mark.parametrize("layout", ["gpt2", "gpt2scratch"])
def test_code_beside_the_weights_is_never_run_and_nobody_is_asked(
    small_data, stock, tmp_path, monkeypatch, layout
):
    if layout == "gpt2scratch":
        assert run_here(monkeypatch, *flags(small_data, tmp_path / "first", max_steps=1)) == 0
        stock = tmp_path / "first"
    else:
        load_tokenizer(str(small_data)).save_pretrained(stock)
    touched = add_hostile_code(stock)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 50))
    arguments = finetuning_flags(small_data, tmp_path / "run", stock)
    arguments[arguments.index("--total_batch_tokens") + 1] = str(
        16 * stored_config(str(stock)).n_positions
    )
    assert run_here(monkeypatch, *arguments) == 0
    assert not touched.exists() and sys.stdin.read() == "y\n" * 50
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert "hostile" not in json.dumps(saved)


def test_a_hostile_pickle_is_refused_and_not_run(small_data, stock):
    touched = replace_by_hostile_pickle(stock)
    expected = "pytorch_model.bin: expected tensors and plain values, found a pickled .*open, which"
    with pytest.raises(InitialWeightsError, match=expected):
        load(stock, small_data)
    assert not touched.exists()
