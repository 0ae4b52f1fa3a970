"""Checkpoints and metrics files: what is complete, what is found, what is refused."""

import json
import os
import random

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from support.damaged_files import DAMAGES, damaged
from transformers import AutoTokenizer

from modeling_gpt2scratch import GPT2ScratchConfig, GPT2ScratchForCausalLM
from modeling_gpt2scratch.checkpoints import checkpoint as checkpointing
from modeling_gpt2scratch.checkpoints.checkpoint import CheckpointError
from modeling_gpt2scratch.checkpoints.writer import CheckpointWriter
from modeling_gpt2scratch.common.atomic_files import new_directory
from modeling_gpt2scratch.common.checksums import write_checksums
from modeling_gpt2scratch.optim.optimizer import make_optimizer
from modeling_gpt2scratch.tracking.metrics import JsonlTracker, read_metrics
from modeling_gpt2scratch.training.configuration import TrainConfig
from modeling_gpt2scratch.training.directory import find_resume_point

SIZES = {"vocab_size": 300, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}


@pytest.fixture
def trained(small_data):
    """A small model, its tokenizer and an optimizer that has made two steps."""
    torch.manual_seed(0)
    model = GPT2ScratchForCausalLM(GPT2ScratchConfig(**SIZES))
    optimizer = make_optimizer(model, learning_rate=0.01, weight_decay=0.1)
    train(model, optimizer, n_steps=2)
    return model, AutoTokenizer.from_pretrained(small_data), optimizer


def train(model, optimizer, *, n_steps: int) -> None:
    for seed in range(n_steps):
        ids = torch.randint(300, (2, 16), generator=torch.Generator().manual_seed(seed))
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def save(output_dir, trained, **state):
    """Writes one checkpoint as training without a background does, and keeps all."""
    model, tokenizer, optimizer = trained
    options = {"keep_checkpoints": 0, "keep_every": 0, "in_background": False}
    writer = CheckpointWriter(output_dir, **options)
    writer.save(model=model, tokenizer=tokenizer, optimizer=optimizer, state=state)
    writer.close()
    return output_dir / f"checkpoint-{state['step']}"


def files_of(checkpoint) -> list:
    return [path for path in checkpoint.rglob("*") if path.is_file()]


def test_a_loaded_checkpoint_trains_on_bit_for_bit(tmp_path, trained, capsys):
    checkpoint = save(tmp_path, trained, step=2)
    checkpointing.verify_checkpoint(checkpoint)
    assert "checksums.json" not in capsys.readouterr().err
    model = GPT2ScratchForCausalLM(trained[0].config)
    optimizer = make_optimizer(model, learning_rate=0.01, weight_decay=0.1)
    checkpointing.load_weights(checkpoint, model)
    checkpointing.load_optimizer(checkpoint, model, optimizer)
    train(model, optimizer, n_steps=3)
    train(trained[0], trained[2], n_steps=3)
    for left, right in zip(model.parameters(), trained[0].parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_checkpoint_holds_no_pickle_and_is_readable_by_others(tmp_path, trained):
    os.umask(umask := os.umask(0))
    checkpoint = save(tmp_path, trained, step=2)
    files = files_of(checkpoint)
    assert {file.suffix for file in files} == {".json", ".safetensors", ".py"}
    for file in files:
        assert file.stat().st_mode & 0o777 == 0o666 & ~umask, file


def test_only_weights_end_in_safetensors_at_the_top_of_a_checkpoint(tmp_path, trained):
    # vLLM, for one, loads every such file of a directory.
    checkpoint = save(tmp_path, trained, step=2)
    assert [path.name for path in checkpoint.glob("*.safetensors")] == ["model.safetensors"]
    assert load_file(checkpoint / "model.safetensors").keys() == (
        trained[0].state_dict().keys() - {"lm_head.weight"}
    )
    moments = load_file(checkpoint / "optimizer" / "state.safetensors")
    names = [name for name, _ in trained[0].named_parameters()]
    assert moments.keys() == {f"{n}.{m}" for n in names for m in ("exp_avg", "exp_avg_sq", "step")}
    assert json.loads((checkpoint / "checksums.json").read_text()).keys() == {
        path.relative_to(checkpoint).as_posix() for path in files_of(checkpoint)
    } - {"checksums.json"}


def test_only_complete_checkpoints_are_found_and_the_newest_wins(tmp_path, trained):
    assert checkpointing.find_checkpoint(tmp_path) is None
    save(tmp_path, trained, step=9)
    newest = save(tmp_path, trained, step=10)
    (tmp_path / "checkpoint-11").mkdir()  # no state in it
    (tmp_path / ".checkpoint-12.partial").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    assert checkpointing.find_checkpoint(tmp_path) == newest
    assert checkpointing.find_checkpoint(newest) == newest


def test_another_run_is_refused_by_every_value_that_differs(tmp_path, trained):
    sizes = {"n_layer": 4, "n_head": 2}
    checkpoint = save(tmp_path, trained, step=2, seed=1, model=sizes, mixture=[["a", 0.5]])
    expected = {"seed": 1, "model": sizes, "mixture": [("a", 0.5)], "document_mask": None}
    assert checkpointing.load_state(checkpoint, expected=expected)["step"] == 2
    with pytest.raises(CheckpointError) as refusal:
        expected |= {"seed": 3, "model": {"n_layer": 2, "n_head": 2, "n_embd": 8}}
        checkpointing.load_state(checkpoint, expected=expected)
    assert str(refusal.value) == (
        f"{checkpoint}: expected seed = 3 as asked for now, found 1; "
        "expected model.n_layer = 2 as asked for now, found 4; "
        "expected model.n_embd = 8 as asked for now, found None; "
        "resume with the same, or start a new run"
    )


def test_a_refusal_of_other_data_names_those_of_the_run(tmp_path, trained):
    checkpoint = save(tmp_path, trained, step=2, data="5e1f", config={"data": "data/first"})
    with pytest.raises(CheckpointError) as refusal:
        checkpointing.load_state(checkpoint, expected={"data": "c0de"})
    assert str(refusal.value) == (
        f"{checkpoint}: expected data = c0de as asked for now, found 5e1f; its --data was "
        "data/first; resume with the same, or start a new run from these weights with --init_from"
    )
    with pytest.raises(CheckpointError, match="or start a new run$"):  # which it would refuse
        checkpointing.load_state(checkpoint, expected={"tokenizer": {"name": "gpt2"}})


def test_a_resume_that_forgets_init_from_is_told_only_that(tmp_path, trained):
    state = {"init_from": True, "config": {"init_from": "openai-community/gpt2"}}
    checkpoint = save(tmp_path, trained, step=2, model={"n_layer": 4}, **state)
    with pytest.raises(CheckpointError) as refusal:
        expected = {"init_from": None, "model": {"n_layer": 12}}
        checkpointing.load_state(checkpoint, expected=expected)
    assert str(refusal.value) == (
        f"{checkpoint}: expected --init_from openai-community/gpt2, found none; "
        "resume with the same, or start a new run"
    )


def test_a_flipped_byte_in_any_file_is_found(tmp_path, trained):
    checkpoint = save(tmp_path, trained, step=2)
    checkpointing.verify_checkpoint(checkpoint)
    generator = random.Random(0)
    for file in files_of(checkpoint):
        content = file.read_bytes()
        for place in [0, len(content) - 1, *generator.choices(range(len(content)), k=6)]:
            damaged = bytearray(content)
            damaged[place] ^= 1 << generator.randrange(8)
            file.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=str(checkpoint)):
                checkpointing.verify_checkpoint(checkpoint)
        file.write_bytes(content[:-1])
        with pytest.raises(CheckpointError, match=file.name):
            checkpointing.verify_checkpoint(checkpoint)
        file.write_bytes(content)
    checkpointing.verify_checkpoint(checkpoint)
    (checkpoint / "results.json").write_text("{}")  # somebody's addition
    (checkpoint / "config.json").unlink()
    with pytest.raises(CheckpointError, match="config.json: expected .* bytes, found No such file"):
        checkpointing.verify_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "training_state.json", "optimizer/state.safetensors"]
)
def test_a_file_without_an_entry_among_the_checksums_is_damage(tmp_path, trained, name):
    checkpoint = save(tmp_path, trained, step=2)
    checksums = json.loads((checkpoint / "checksums.json").read_text())
    del checksums[name]
    write_checksums(checkpoint, checksums)
    with pytest.raises(CheckpointError, match=f"found damage: no entry for {name}"):
        checkpointing.verify_checkpoint(checkpoint)


def test_resuming_without_checksums_is_said_in_one_line(tmp_path, trained, capsys):
    checkpoint = save(tmp_path, trained, step=2)
    (checkpoint / "checksums.json").unlink()
    (tmp_path / "train_config.json").write_text("{}")
    options = {"data": "data", "output_dir": str(tmp_path)}
    for resume in ("auto", str(checkpoint), str(tmp_path)):
        capsys.readouterr()
        assert find_resume_point(TrainConfig(**options, resume=resume)) == checkpoint
        assert capsys.readouterr().err == (
            f"warning: {checkpoint}: expected checksums.json, found none; "
            f"damage to its files would not be seen\n"
        )


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer/state.safetensors"])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_cut_file_is_found_without_checksums_and_the_checkpoint_before_is_taken(
    tmp_path, trained, name, is_there
):
    whole, cut = (save(tmp_path, trained, step=step) for step in (2, 4))
    (tmp_path / "train_config.json").write_text("{}")
    (cut / "checksums.json").unlink()
    if is_there:
        (cut / name).write_bytes((cut / name).read_bytes()[:-8])
    else:
        (cut / name).unlink()
    config = TrainConfig(data="data", output_dir=str(tmp_path), resume="auto")
    assert find_resume_point(config) == whole


def test_a_checkpoint_without_checksums_is_loaded(tmp_path, trained):
    model, tokenizer, optimizer = trained
    checkpoint = tmp_path / "checkpoint-2"
    checkpointing.save_model(model, tokenizer, checkpoint)
    moments = {
        f"{name}.{moment}": tensor
        for name, parameter in model.named_parameters()
        for moment, tensor in optimizer.state[parameter].items()
    }
    (checkpoint / "optimizer").mkdir()
    save_file(moments, checkpoint / "optimizer" / "state.safetensors")
    (checkpoint / "training_state.json").write_text(json.dumps({"step": 2}))
    assert checkpointing.find_checkpoint(tmp_path) == checkpoint
    checkpointing.verify_checkpoint(checkpoint)
    loaded = GPT2ScratchForCausalLM(model.config)
    loaded_optimizer = make_optimizer(loaded, learning_rate=0.01, weight_decay=0.1)
    checkpointing.load_weights(checkpoint, loaded)
    checkpointing.load_optimizer(checkpoint, loaded, loaded_optimizer)
    train(loaded, loaded_optimizer, n_steps=1)
    train(model, optimizer, n_steps=1)
    for left, right in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_another_model_is_refused_by_the_tensor_that_differs(tmp_path, trained):
    checkpoint = save(tmp_path, trained, step=2)
    deeper = GPT2ScratchForCausalLM(GPT2ScratchConfig(**SIZES | {"n_layer": 3}))
    with pytest.raises(CheckpointError, match="expected transformer.h.2.* found None"):
        checkpointing.load_weights(checkpoint, deeper)
    wider = GPT2ScratchForCausalLM(GPT2ScratchConfig(**SIZES | {"n_embd": 32}))
    with pytest.raises(CheckpointError, match=r"of shape \(300, 32\), found \(300, 16\)"):
        checkpointing.load_weights(checkpoint, wider)
    shallower = GPT2ScratchForCausalLM(GPT2ScratchConfig(**SIZES | {"n_layer": 1}))
    optimizer = make_optimizer(shallower, learning_rate=0.01, weight_decay=0.1)
    with pytest.raises(CheckpointError, match="expected tensors of .*, found transformer.h.1"):
        checkpointing.load_weights(checkpoint, shallower)
    with pytest.raises(CheckpointError, match="expected parameters of this optimizer, found"):
        checkpointing.load_optimizer(checkpoint, shallower, optimizer)


def test_a_checksum_that_is_damaged_at_its_end_is_shown_whole(tmp_path, trained):
    checkpoint = save(tmp_path, trained, step=1)
    path = checkpoint / "checksums.json"
    checksums = json.loads(path.read_text())
    right = checksums["config.json"]["sha256"]
    wrong = right[:-1] + "01"[right[-1] == "0"]
    path.write_text(path.read_text().replace(right, wrong))
    with pytest.raises(CheckpointError, match="json: expected sha256 ") as error:
        find_resume_point(
            TrainConfig(data="data", output_dir=str(tmp_path / "new"), resume=str(checkpoint))
        )
    assert f"expected sha256 {wrong} as in checksums.json, found {right}" in str(error.value)


def test_resuming_passes_a_damaged_checkpoint_over_unless_it_was_named(tmp_path, trained, capsys):
    older, newer = (save(tmp_path, trained, step=step) for step in (1, 2))
    (tmp_path / "train_config.json").write_text("{}")
    weights = newer / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    options = {"data": "data", "output_dir": str(tmp_path)}
    capsys.readouterr()
    assert find_resume_point(TrainConfig(**options, resume="auto")) == older
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {weights}: expected sha256 ")
    assert warning.endswith("; trying the checkpoint before it\n") and warning.count("\n") == 1
    for named in (newer, tmp_path):
        with pytest.raises(CheckpointError, match="model.safetensors: expected sha256"):
            find_resume_point(TrainConfig(**options, resume=str(named)))
    (older / "config.json").unlink()
    with pytest.raises(CheckpointError, match="an undamaged checkpoint .* found none of 2"):
        find_resume_point(TrainConfig(**options, resume="auto"))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer/state.safetensors"])
def test_a_damaged_file_of_tensors_is_named_with_what_to_do(tmp_path, trained, name, damage):
    checkpoint = save(tmp_path, trained, step=2)
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(damaged(content, damage))
    expected = f"{checkpoint / name}: expected a safetensors file, found {DAMAGES[damage]}"
    with pytest.raises(CheckpointError, match=expected) as refusal:
        checkpointing.load_weights(checkpoint, trained[0])
        checkpointing.load_optimizer(checkpoint, trained[0], trained[2])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "state", ["[]", "null", "{}", '{"step": -1}', '{"step": "2"}', "[" * 9999, '{"step": 2']
)
def test_a_state_that_is_none_is_refused(tmp_path, trained, state):
    checkpoint = save(tmp_path, trained, step=2)
    (checkpoint / "training_state.json").write_text(state)
    with pytest.raises(CheckpointError, match="training_state.json: cannot be loaded: "):
        checkpointing.load_state(checkpoint, expected={})


def test_a_directory_appears_only_when_it_is_complete(tmp_path):
    target = tmp_path / "made"
    with pytest.raises(KeyError), new_directory(target) as partial:
        (partial / "file").write_text("half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    for content in ("old", "new"):
        with new_directory(target) as partial:
            (partial / "file").write_text(content)
    assert (target / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_metrics_after_the_resumed_step_and_half_a_line_are_dropped(tmp_path):
    PartialState()
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0 / step}) + "\n" for step in (1, 2, 3)]
    path.write_text("".join(lines) + '{"step": 4, "lo')
    tracker = JsonlTracker(path, resume_step=2)
    tracker.start()
    tracker.log({"loss": 0.5}, step=3)
    assert read_metrics(path) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 0.5},
    ]
