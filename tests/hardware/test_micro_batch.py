"""How many rows fit, by trying and by estimate."""

import os

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from support.paths import REPOSITORY
from support.processes import run_on_two
from support.tiny_models import tiny_model

from modeling_gpt2scratch.distributed.processes import LaunchError
from modeling_gpt2scratch.hardware import micro_batch
from modeling_gpt2scratch.hardware.compilation import checkpoint_activations
from modeling_gpt2scratch.hardware.micro_batch import Trial, find_micro_batch_size


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def with_memory(monkeypatch, n_bytes):
    monkeypatch.setattr(micro_batch, "available_memory", lambda: n_bytes / micro_batch.CPU_SHARE)


def found(accelerator, *, rows_per_rank=24, sequence_length=32):
    return find_micro_batch_size(
        tiny_model(),
        accelerator,
        rows_per_rank=rows_per_rank,
        sequence_length=sequence_length,
    )


def test_with_memory_to_spare_the_tokens_worth_having_decide(accelerator, monkeypatch):
    with_memory(monkeypatch, 2**40)
    assert found(accelerator) == 24
    monkeypatch.setattr(micro_batch, "CPU_TOKENS", 32 * 11)
    assert found(accelerator) == 8  # the largest divisor of 24 up to 11
    assert found(accelerator, rows_per_rank=7) == 7
    assert found(accelerator, rows_per_rank=13) == 1


@pytest.mark.slow
def test_with_little_memory_the_estimate_decides(accelerator, monkeypatch):
    trial = Trial(tiny_model().train(), accelerator, 32)
    of_one, of_two = (micro_batch.tensor_bytes(trial, n) for n in (1, 2))
    state = micro_batch.STATE_PER_WEIGHT * trial.weight_bytes
    with_memory(monkeypatch, state + of_one + 8.5 * (of_two - of_one))  # 9 rows and a half
    assert found(accelerator) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # each has half, and the same need for its state
    assert found(accelerator) < 4
    with_memory(monkeypatch, 0)
    assert found(accelerator) == 1


@pytest.mark.slow
def test_rows_take_the_bytes_that_are_counted_for_them(accelerator):
    model = tiny_model(n_layer=4, n_embd=64, vocab_size=300).train()
    trial = Trial(model, accelerator, 48)
    counted = [micro_batch.tensor_bytes(trial, n) for n in (8, 16, 32)]
    assert counted[2] - counted[1] == pytest.approx(2 * (counted[1] - counted[0]), rel=0.1)
    # At least the inputs of norms and projections, and keys, queries and values: 16 times C.
    assert counted[2] - counted[1] > 16 * 48 * 4 * (14 * 64) * 4
    checkpoint_activations(model)
    assert micro_batch.tensor_bytes(trial, 32) < 0.6 * counted[2]


def test_the_model_and_the_random_state_are_as_before(accelerator):
    model = tiny_model(resid_pdrop=0.1)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    find_micro_batch_size(model, accelerator, rows_per_rank=4, sequence_length=32)
    assert torch.rand(1) == expected
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training


def test_trying_goes_down_the_sizes_until_one_fits(accelerator, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda device: (0, 10_000))
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    monkeypatch.setattr(micro_batch, "clear_device_cache", lambda **kwargs: None)
    tried = []

    class SmallTrial(Trial):
        def __call__(self, n_rows):
            tried.append(n_rows)
            if n_rows > self.limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            super().__call__(n_rows)

    trial = SmallTrial(tiny_model().train(), accelerator, 8)
    trial.limit = 4
    assert micro_batch.largest_by_trying(trial, [12, 6, 4, 3, 2, 1]) == 4
    assert tried == [12, 6, 4, 4]
    trial.limit = 0
    assert micro_batch.largest_by_trying(trial, [2, 1]) == 0
    assert all(parameter.grad is None for parameter in trial.model.parameters())


def test_another_error_is_not_taken_for_a_lack_of_memory(accelerator, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda device: (0, 10_000))
    trial = Trial(tiny_model().train(), accelerator, 49)  # beyond n_positions
    with pytest.raises(ValueError, match="n_positions"):
        micro_batch.largest_by_trying(trial, [1])


def test_no_row_that_fits_ends_the_run_with_advice(accelerator, monkeypatch):
    monkeypatch.setattr(micro_batch, "largest_by_estimate", lambda trial, sizes: 0)
    with pytest.raises(LaunchError, match="memory for one row of 32 tokens, found too little"):
        found(accelerator)


def test_a_sharded_model_is_refused(accelerator, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(LaunchError, match="a number for --micro_batch_size under FSDP, found auto"):
        found(accelerator)


SCRIPT = """
import sys
from pathlib import Path
from accelerate import Accelerator
from support.tiny_models import tiny_model
from modeling_gpt2scratch.hardware import micro_batch

accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
micro_batch.largest_by_estimate = lambda trial, sizes: sizes[rank]
found = micro_batch.find_micro_batch_size(
    tiny_model(), accelerator, rows_per_rank=6, sequence_length=8
)
Path(sys.argv[1], f"rank{rank}").write_text(str(found))
accelerator.end_training()
"""


@pytest.mark.gate
def test_processes_take_what_fits_on_all_of_them(tmp_path, warm_commands):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(REPOSITORY / "tests"), str(REPOSITORY)])
    process = run_on_two(
        *(warm_commands, script, tmp_path),
        env=os.environ | {"PYTHONPATH": path, "ACCELERATE_USE_CPU": "true"},
    )
    assert process.returncode == 0, process.stderr
    found = [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)]
    assert found == ["3", "3"]  # the second of 6, 3, 2 and 1, on both
