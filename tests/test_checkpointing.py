"""Checkpoints and metrics files: what is complete, what is found, what is refused."""

import json
import os

import pytest
import torch
from accelerate import PartialState
from transformers import AutoTokenizer

from modeling_gpt2scratch import GPT2ScratchConfig, GPT2ScratchForCausalLM, checkpointing
from modeling_gpt2scratch.atomic_files import new_directory, require_free, write_file
from modeling_gpt2scratch.checkpoint_writer import CheckpointWriter
from modeling_gpt2scratch.checkpointing import CheckpointError
from modeling_gpt2scratch.metrics import JsonlTracker, read_metrics
from modeling_gpt2scratch.optimization import make_optimizer


@pytest.fixture
def trained(small_data):
    """A small model, its tokenizer and an optimizer that has made two steps."""
    torch.manual_seed(0)
    config = GPT2ScratchConfig(vocab_size=300, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    model = GPT2ScratchForCausalLM(config)
    optimizer = make_optimizer(
        model, name="adamw", learning_rate=0.01, muon_learning_rate=0.01, weight_decay=0.1
    )
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


def test_a_loaded_checkpoint_trains_on_bit_for_bit(tmp_path, trained):
    checkpoint = save(tmp_path, trained, step=2)
    model = GPT2ScratchForCausalLM(trained[0].config)
    optimizer = make_optimizer(
        model, name="adamw", learning_rate=0.01, muon_learning_rate=0.01, weight_decay=0.1
    )
    checkpointing.load_weights(checkpoint, model)
    checkpointing.load_optimizer(checkpoint, model, optimizer)
    train(model, optimizer, n_steps=3)
    train(trained[0], trained[2], n_steps=3)
    for left, right in zip(model.parameters(), trained[0].parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_checkpoint_holds_no_pickle_and_is_readable_by_others(tmp_path, trained):
    os.umask(umask := os.umask(0))
    checkpoint = save(tmp_path, trained, step=2)
    suffixes = {file.suffix for file in checkpoint.iterdir()}
    assert suffixes == {".json", ".safetensors", ".py"}
    for file in checkpoint.iterdir():
        assert file.stat().st_mode & 0o777 == 0o666 & ~umask, file


def test_only_complete_checkpoints_are_found_and_the_newest_wins(tmp_path, trained):
    assert checkpointing.find_checkpoint(tmp_path) is None
    save(tmp_path, trained, step=9)
    newest = save(tmp_path, trained, step=10)
    (tmp_path / "checkpoint-11").mkdir()  # no state in it
    (tmp_path / ".checkpoint-12.partial").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    assert checkpointing.find_checkpoint(tmp_path) == newest
    assert checkpointing.find_checkpoint(newest) == newest


def test_another_run_is_refused_by_the_first_value_that_differs(tmp_path, trained):
    checkpoint = save(tmp_path, trained, step=2, seed=1, sequence_length=16)
    assert checkpointing.load_state(checkpoint, expected={"seed": 1})["step"] == 2
    with pytest.raises(CheckpointError, match="expected seed = 3 as asked for now, found 1"):
        checkpointing.load_state(checkpoint, expected={"sequence_length": 16, "seed": 3})


@pytest.mark.parametrize(
    "name", ["training_state.json", "model.safetensors", "optimizer.safetensors"]
)
def test_a_truncated_file_is_named(tmp_path, trained, name):
    checkpoint = save(tmp_path, trained, step=2)
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=f"{name}: cannot be loaded"):
        checkpointing.load_state(checkpoint, expected={})
        checkpointing.load_weights(checkpoint, trained[0])
        checkpointing.load_optimizer(checkpoint, trained[0], trained[2])


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


def test_a_destination_is_taken_over_only_if_it_is_known_and_that_is_wanted(tmp_path):
    target = tmp_path / "run"
    require_free(target, marker="mark", overwrite=False)
    target.mkdir()
    require_free(target, marker="mark", overwrite=False)
    write_file(target / "thesis.txt", b"years of work")
    with pytest.raises(FileExistsError, match="found other content"):
        require_free(target, marker="mark", overwrite=True)
    write_file(target / "mark", b"")
    with pytest.raises(FileExistsError, match="add --overwrite"):
        require_free(target, marker="mark", overwrite=False)
    require_free(target, marker="mark", overwrite=True)


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
