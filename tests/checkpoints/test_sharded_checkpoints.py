"""Checkpoints of sharded models: whole weights, sliced moments, and any number of readers."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.paths import REPOSITORY
from support.processes import PATIENCE, run_on_two
from support.tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from modeling_gpt2scratch.checkpoints import checkpoint as checkpointing
from modeling_gpt2scratch.checkpoints.sliced_tensors import SlicedTensors
from modeling_gpt2scratch.checkpoints.writer import CheckpointWriter
from modeling_gpt2scratch.optim.optimizer import make_optimizer

IMPORT_PATH = os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "tests")))
SCRIPT = REPOSITORY / "tests" / "support" / "programs" / "sharded_checkpoints.py"


@pytest.fixture(scope="module")
def written(tmp_path_factory, warm_commands) -> Path:
    """What two processes wrote: a sharded model, a replicated one from it, a sharded one again."""
    directory = tmp_path_factory.mktemp("checkpoints")
    process = run_on_two(
        *(warm_commands, SCRIPT, "round_trip", directory),
        env=os.environ | {"PYTHONPATH": IMPORT_PATH},
    )
    assert process.returncode == 0, process.stderr
    return directory


def moments(checkpoint: Path) -> dict:
    """The optimizer's tensors, whole."""
    stored = SlicedTensors(checkpoint.glob("optimizer/*.safetensors"))
    return {
        name: stored.read(name, offset=(0,) * len(shape), shape=shape)
        for name, shape in stored.shapes.items()
    }


@pytest.mark.gate
def test_sharded_and_replicated_checkpoints_hold_the_same_bits(written):
    first, second = written / "sharded" / "checkpoint-2", written / "replicated" / "checkpoint-2"
    assert len(list(first.glob("optimizer/state-*-of-00002.safetensors"))) == 2
    assert [path.name for path in second.glob("optimizer/*")] == ["state.safetensors"]
    assert not (first / "optimizer" / "state.safetensors").exists()
    assert [path.name for path in first.glob("*.safetensors")] == ["model.safetensors"]
    weights = "model.safetensors"
    assert (first / weights).read_bytes() == (second / weights).read_bytes()
    left, right = moments(first), load_file(second / "optimizer" / "state.safetensors")
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    hybrid = moments(written / "hybrid" / "checkpoint-2")
    assert hybrid.keys() == right.keys()
    assert all(torch.equal(hybrid[name], right[name]) for name in hybrid)
    model = tiny_model(vocab_size=271)
    optimizer = make_optimizer(model, learning_rate=0.01, weight_decay=0.1)
    checkpointing.load_optimizer(written / "hybrid" / "checkpoint-2", model, optimizer)
    for file in first.rglob("*.safetensors"):
        again = written / "again" / "checkpoint-2" / file.relative_to(first)
        assert again.read_bytes() == file.read_bytes()


def files_of(checkpoint: Path) -> list[Path]:
    return [path for path in checkpoint.rglob("*") if path.is_file()]


@pytest.mark.gate
def test_one_process_goes_on_from_what_two_wrote_in_slices(written, tmp_path):
    checkpoint = written / "sharded" / "checkpoint-2"
    model = tiny_model(vocab_size=271).train()
    optimizer = make_optimizer(model, learning_rate=0.01, weight_decay=0.1)
    checkpointing.verify_checkpoint(checkpoint)
    checkpointing.load_weights(checkpoint, model)
    checkpointing.load_optimizer(checkpoint, model, optimizer)
    writer = CheckpointWriter(tmp_path, keep_checkpoints=0, keep_every=0, in_background=False)
    parts = {"model": model, "tokenizer": tiny_tokenizer(), "optimizer": optimizer}
    writer.save(**parts, state={"step": 2})
    replicated = written / "replicated" / "checkpoint-2"
    for file in files_of(replicated):
        again = tmp_path / "checkpoint-2" / file.relative_to(replicated)
        assert again.read_bytes() == file.read_bytes(), file


@pytest.mark.gate
def test_a_sharded_model_is_saved_as_the_class_it_was_before(written):
    loaded = AutoModelForCausalLM.from_pretrained(written / "sharded" / "checkpoint-2")
    assert type(loaded).__name__ == "GPT2ScratchForCausalLM"
    assert (written / "sharded" / "checkpoint-2" / "modeling_gpt2scratch.py").exists()


@pytest.mark.gate
def test_a_missing_file_of_slices_is_noticed(written, tmp_path):
    checkpoint = tmp_path / "checkpoint-2"
    shutil.copytree(written / "sharded" / "checkpoint-2", checkpoint)
    (checkpoint / "checksums.json").unlink()
    (checkpoint / "optimizer" / "state-00001-of-00002.safetensors").unlink()
    model = tiny_model(vocab_size=271)
    optimizer = make_optimizer(model, learning_rate=0.01, weight_decay=0.1)
    with pytest.raises(checkpointing.CheckpointError, match="expected 2 files .* found 1"):
        checkpointing.load_optimizer(checkpoint, model, optimizer)


@pytest.mark.gate
def test_a_rank_that_dies_within_a_save_is_noticed_and_nothing_is_published(tmp_path):
    # Not by torchrun, which would end the rank that is left.
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, str(SCRIPT), "dying_rank", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": IMPORT_PATH} | group
    ranks = [subprocess.Popen(command, env=environment | {"RANK": str(rank)}) for rank in range(2)]
    assert [rank.wait(timeout=PATIENCE) for rank in ranks] == [0, -signal.SIGKILL]
