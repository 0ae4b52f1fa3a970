"""Two processes that write checkpoints of a sharded model and of a replicated one.

Started by tests: `sharded_checkpoints.py round_trip DIRECTORY`.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.tiny_models import random_ids, tiny_model, tiny_tokenizer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from modeling_gpt2scratch.checkpoints import checkpoint as checkpointing
from modeling_gpt2scratch.checkpoints import snapshot as checkpoint_snapshot
from modeling_gpt2scratch.checkpoints.checkpoint import CheckpointError
from modeling_gpt2scratch.checkpoints.writer import CheckpointWriter
from modeling_gpt2scratch.optim.optimizer import make_optimizer
from modeling_gpt2scratch.training.configuration import TrainConfig
from modeling_gpt2scratch.training.directory import find_resume_point

OPTIONS = {"keep_checkpoints": 0, "keep_every": 0}
# An odd number of rows, which two ranks cannot halve.
VOCABULARY = 271


def round_trip(directory: Path) -> None:
    """Sharded, replicated from that, and sharded from that; and what has to be refused."""
    mesh = init_device_mesh("cpu", (2,))
    sharded = make(mesh)
    train(*sharded, n_steps=2)
    first = save(directory / "sharded", sharded, in_background=True)
    failing_rank(directory / "failing", sharded)
    separate_directories(directory / "separate", sharded)

    replicated = make(None, checkpoint=first)
    second = save(directory / "replicated", replicated, in_background=True)
    again = make(mesh, checkpoint=second)
    save(directory / "again", again, in_background=False)
    # Two copies of one slice, of which only the first is written.
    hybrid = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    save(directory / "hybrid", make(hybrid, checkpoint=first), in_background=True)

    # A return to an earlier checkpoint within a run, and the same steps from there.
    train(*sharded, n_steps=1)
    checkpointing.load_weights(first, sharded[0])
    checkpointing.load_optimizer(first, *sharded)
    train(*sharded, n_steps=1, seed=5)
    train(*again, n_steps=1, seed=5)
    resuming(directory / "again")
    left, right = sharded[0].state_dict(), again[0].state_dict()
    assert all(torch.equal(left[name].to_local(), right[name].to_local()) for name in left)


def make(mesh, checkpoint: Path | None = None) -> tuple:
    """A model and its optimizer, sharded over the mesh if there is one."""
    model = tiny_model(vocab_size=VOCABULARY).train()
    if checkpoint:
        for parameter in model.parameters():
            parameter.data.zero_()
        checkpointing.load_weights(checkpoint, model)
    if mesh:
        for block in model.transformer.h:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = make_optimizer(model, learning_rate=0.01, weight_decay=0.1)
    if checkpoint:
        checkpointing.load_optimizer(checkpoint, model, optimizer)
    return model, optimizer


def train(model, optimizer, *, n_steps: int, seed: int = 0) -> None:
    """Some steps on different data of each rank; the last thing is a forward pass alone."""
    for step in range(n_steps):
        ids = random_ids(2, 16, seed=seed + 10 * step + dist.get_rank())
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        model(ids)  # leaves gathered parameters behind


def save(output_dir: Path, trained: tuple, *, in_background: bool) -> Path:
    """Writes checkpoint-2 while the model changes, which is to be seen in no file."""
    model, optimizer = trained
    writer = CheckpointWriter(output_dir, in_background=in_background, **OPTIONS)
    parts = {"model": model, "tokenizer": tiny_tokenizer(), "optimizer": optimizer}
    writer.rehearse(**parts, state={"step": 0})
    assert not list(output_dir.iterdir()) or dist.get_rank() > 0
    writer.save(**parts, state={"step": 2})
    writer.wait()
    writer.close()
    return output_dir / "checkpoint-2"


def failing_rank(output_dir: Path, trained: tuple) -> None:
    """The second rank's disk is full: both raise, and there is no checkpoint."""

    def disk_full(*arguments):
        raise OSError(28, "No space left on device")

    model, optimizer = trained
    writer = CheckpointWriter(output_dir, in_background=True, **OPTIONS)
    parts = {"model": model, "tokenizer": tiny_tokenizer(), "optimizer": optimizer}
    write_slices = checkpoint_snapshot.write_slices
    if dist.get_rank() == 1:
        checkpoint_snapshot.write_slices = disk_full
    writer.save(**parts, state={"step": 3})
    with pytest.raises(OSError, match="process 1: .* No space left"):
        writer.wait()
    checkpoint_snapshot.write_slices = write_slices
    dist.barrier()
    assert not list(output_dir.iterdir())
    dist.barrier()
    writer.save(**parts, state={"step": 4})
    writer.wait()
    assert writer.problem is None
    writer.close()


def separate_directories(output_dir: Path, trained: tuple) -> None:
    """Ranks that would write into different places are told so."""
    model, optimizer = trained
    own = output_dir / str(dist.get_rank())
    writer = CheckpointWriter(own, in_background=True, **OPTIONS)
    parts = {"model": model, "tokenizer": tiny_tokenizer(), "optimizer": optimizer}
    with pytest.raises(CheckpointError, match="one directory that all processes share"):
        writer.rehearse(**parts, state={"step": 0})
    writer.close()


def resuming(output_dir: Path) -> None:
    """Both ranks take the same checkpoint, and learn of damage that only one of them has read."""
    options = {"data": "data", "output_dir": str(output_dir), "resume": "auto"}
    if dist.get_rank() == 0:
        (output_dir / "train_config.json").write_text("{}")
        shutil.copytree(output_dir / "checkpoint-2", output_dir / "checkpoint-3")
        # The second largest file is the second rank's to verify.
        files = (path for path in (output_dir / "checkpoint-3").rglob("*") if path.is_file())
        weights = sorted(files, key=lambda file: -file.stat().st_size)
        weights[1].write_bytes(weights[1].read_bytes()[:-1] + b"!")
        (output_dir / "latest").unlink()
    dist.barrier()
    found = find_resume_point(TrainConfig(**options))
    assert found == output_dir / "checkpoint-2", found
    with pytest.raises(CheckpointError, match="expected sha256"):
        find_resume_point(TrainConfig(**options | {"resume": str(output_dir / "checkpoint-3")}))
    with pytest.raises(CheckpointError, match="found none"):
        find_resume_point(TrainConfig(**options | {"resume": str(output_dir / "nowhere")}))
    dist.barrier()


def dying_rank(output_dir: Path) -> None:
    """The second rank is killed within a save: the first learns of it, and publishes nothing."""

    def die(*arguments):
        os.kill(os.getpid(), signal.SIGKILL)

    model, optimizer = make(init_device_mesh("cpu", (2,)))
    train(model, optimizer, n_steps=1)  # or there would be no moments to write
    writer = CheckpointWriter(output_dir, in_background=True, **OPTIONS)
    parts = {"model": model, "tokenizer": tiny_tokenizer(), "optimizer": optimizer}
    if dist.get_rank() == 1:
        checkpoint_snapshot.write_slices = die
    writer.save(**parts, state={"step": 1})
    with pytest.raises(OSError, match="checkpoint-1: "):
        writer.wait()
    writer.close()
    assert not list(output_dir.iterdir())
    os._exit(0)  # the group cannot be left in an orderly way


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    dist.init_process_group("gloo")
    {"round_trip": round_trip, "dying_rank": dying_rank}[sys.argv[1]](Path(sys.argv[2]))
    dist.destroy_process_group()
