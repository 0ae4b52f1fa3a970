"""DeepSpeed's ZeRO-2 has the curve of replicas and their checkpoints, and the rest is refused."""

import importlib.util
import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from support.paths import REPOSITORY
from support.processes import run_process
from support.training_runs import (
    curve,
    events_of,
    flags,
    launcher_of,
    require_same_curve,
    run_here,
    train_with,
)

from modeling_gpt2scratch.distributed.accelerator import _require_zero2, prepare_accelerator
from modeling_gpt2scratch.distributed.processes import LaunchError

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason='the package deepspeed is not installed; pip install -e ".[deepspeed]"',
)
PLAIN = {"dropout": 0, "eval_every": 6, "save_every": 3}
# The seventh step of the second process, which every run must step over.
FAULTS = [["nan", 6, 1]]


def train_under_zero(faults, *arguments, precision="no"):
    """Runs the training script under ZeRO-2 on two CPU processes; see `zero_training.py`."""
    launcher = [*launcher_of("deepspeed_zero2.yaml"), "--num_processes", "2"]
    launcher += ["--mixed_precision", precision, "tests/support/programs/zero_training.py"]
    process = run_process(
        [sys.executable, *launcher, json.dumps(faults), *arguments], cwd=REPOSITORY
    )
    assert process.returncode == 0, process.stderr
    assert "2 (DEEPSPEED)" in process.stdout
    return process.stdout


def continue_from(checkpoint, output_dir):
    """A new run's directory, as if that run had been stopped at another one's checkpoint."""
    shutil.copytree(checkpoint, output_dir / checkpoint.name)
    shutil.copy(checkpoint.parent / "train_config.json", output_dir)


@pytest.fixture(scope="module")
def replicas(small_data, tmp_path_factory):
    """The directory of a run of two processes with whole models."""
    output_dir = tmp_path_factory.mktemp("runs") / "replicas"
    process = train_with(FAULTS, *flags(small_data, output_dir, **PLAIN))
    assert process.returncode == 0, process.stderr
    return output_dir


@pytest.fixture(scope="module")
def zero(small_data, tmp_path_factory):
    """The directory of the same run under ZeRO-2, and what it printed."""
    output_dir = tmp_path_factory.mktemp("runs") / "zero"
    arguments = flags(small_data, output_dir, **PLAIN, save_in_background=False)
    return output_dir, train_under_zero(FAULTS, *arguments)


@needs_deepspeed
@pytest.mark.gate
def test_zero_has_the_curve_of_replicas_and_skips_the_step_that_they_skip(replicas, zero):
    output_dir, printed = zero
    require_same_curve(output_dir, replicas, steps=set(range(1, 13)) - {7})
    left, right = events_of(output_dir), events_of(replicas)
    assert [(e["event"], e["step"], e["process"]) for e in left] == [("skipped", 7, 1)]
    assert left[0]["rows"] == right[0]["rows"]
    assert "note: DeepSpeed itself skips a step whose gradient is not finite" in printed
    assert "10        35,200" in printed  # all of the decayed parameters, not a slice of them


@needs_deepspeed
@pytest.mark.gate
def test_a_checkpoint_of_zero_has_the_files_names_and_values_of_replicas(replicas, zero):
    for name in ("checkpoint-6", "checkpoint-12"):
        left, right = zero[0] / name, replicas / name
        assert {path.name for path in left.iterdir()} == {path.name for path in right.iterdir()}
        for file in ("model.safetensors", "optimizer/state.safetensors"):
            found, expected = load_file(left / file), load_file(right / file)
            assert found.keys() == expected.keys()
            for key, tensor in expected.items():
                torch.testing.assert_close(found[key], tensor, atol=1e-4, rtol=1e-3, msg=key)
    steps = [value.item() for key, value in found.items() if key.endswith(".step")]
    assert set(steps) == {11.0}  # of twelve, one was skipped


@needs_deepspeed
@pytest.mark.gate
def test_one_plain_process_continues_zero(small_data, tmp_path, replicas, zero, monkeypatch):
    output_dir = tmp_path / "one"
    continue_from(zero[0] / "checkpoint-9", output_dir)
    assert run_here(monkeypatch, *flags(small_data, output_dir, **PLAIN, resume="auto")) == 0
    require_same_curve(output_dir, replicas, steps=range(10, 13))


@needs_deepspeed
@pytest.mark.gate
def test_zero_continues_replicas_in_bfloat16_with_float32_behind(small_data, tmp_path, replicas):
    output_dir = tmp_path / "bfloat16"
    continue_from(replicas / "checkpoint-6", output_dir)
    changes = {"save_every": 1, "keep_checkpoints": 0, "resume": "auto"}
    arguments = flags(small_data, output_dir, **PLAIN | changes)
    assert "cpu, bf16, " in train_under_zero(FAULTS, *arguments, precision="bf16")
    # The first step is lost, so that what was read is what is written.
    for file in ("model.safetensors", "optimizer/state.safetensors"):
        found, expected = (
            load_file(path / file)
            for path in (output_dir / "checkpoint-7", replicas / "checkpoint-6")
        )
        assert found.keys() == expected.keys()
        assert all(found[key].equal(expected[key]) for key in expected)
    for directory in (output_dir, output_dir / "checkpoint-12"):
        assert json.loads((directory / "config.json").read_text())["dtype"] == "float32"
    left, right = curve(output_dir), curve(replicas)
    for step in range(8, 13):
        assert left[step][0] == pytest.approx(right[step][0], rel=0.01)


def launched(*, stage=2, precision="bf16", offload="none", kind=DistributedType.DEEPSPEED):
    """What the checks look at of an Accelerator."""
    zero = {"stage": stage, "offload_optimizer": {"device": offload}}
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": zero})
    return SimpleNamespace(
        distributed_type=kind,
        device=torch.device("cpu"),
        mixed_precision=precision,
        state=SimpleNamespace(deepspeed_plugin=plugin),
    )


@pytest.mark.parametrize(
    ("launch", "found"),
    [
        ({"stage": 3}, "found .* \\(3, "),
        ({"stage": 1}, "found .* \\(1, "),
        ({"offload": "cpu"}, "'cpu'"),
        ({"precision": "fp8"}, "'fp8'"),
        ({"kind": DistributedType.MULTI_CPU}, "expected GPUs .* found cpu"),
    ],
)
def test_what_checkpoints_are_not_made_for_is_refused(launch, found):
    _require_zero2(launched())
    with pytest.raises(LaunchError, match=found):
        _require_zero2(launched(**launch))


def test_muon_which_needs_matrices_is_refused():
    sizes = {"micro_batch_size": 1, "micro_steps": 1, "max_grad_norm": 1.0}
    with pytest.raises(LaunchError, match="expected --optimizer adamw under DeepSpeed"):
        prepare_accelerator(launched(), **sizes, optimizer="muon")
