"""How processes find each other, and in which precision they compute."""

import re
import subprocess
from types import SimpleNamespace

import pytest
import torch
from accelerate import ParallelismConfig
from accelerate.state import AcceleratorState, GradientState

from modeling_gpt2scratch import __version__
from modeling_gpt2scratch.distributed import accelerator
from modeling_gpt2scratch.distributed.processes import LaunchError


@pytest.mark.parametrize(
    ("precision", "version", "expected"),
    [("bf16", "2", "torch.bfloat16 torch.float32"), ("no", "2", None), ("no", "1", "version")],
)
def test_shards_compute_in_bfloat16_and_add_gradients_in_float32(
    monkeypatch, precision, version, expected
):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", version)
    if version == "1":
        with pytest.raises(LaunchError, match="expected fsdp_version: 2, found 1"):
            accelerator._fsdp_plugin(precision)
        return
    policy = accelerator._fsdp_plugin(precision).mixed_precision_policy
    assert (policy and f"{policy.param_dtype} {policy.reduce_dtype}") == expected


def test_shards_in_fp16_are_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(LaunchError, match="^expected .* under FSDP2, found fp16; train replicas"):
        accelerator._fsdp_plugin("fp16")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(LaunchError, match="under FSDP2, found fp16"):
        accelerator._fsdp_plugin(None)


def test_an_argument_or_a_cpu_run_decides_the_precision_and_then_the_device(monkeypatch):
    has = {"cuda": True, "xpu": True, "mps": False}
    monkeypatch.setattr(accelerator, "has_bf16", lambda device: has[device.type])
    assert accelerator.choose_precision("no") == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # as the launcher always says
    monkeypatch.setenv("ACCELERATE_USE_CPU", "False")
    for kind, is_there in has.items():
        monkeypatch.setattr(accelerator, "available_device", lambda k=kind: torch.device(k))
        assert accelerator.choose_precision("auto") == ("bf16" if is_there else "no")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")  # on a machine with a GPU
    assert accelerator.choose_precision("auto") == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert accelerator.choose_precision("auto") is None  # Accelerate's own


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("cpu", "gloo"), ("cuda", "cuda:nccl,cpu:gloo"), ("xpu", "xpu:xccl,cpu:gloo")],
)
def test_devices_talk_by_the_library_of_their_vendor(kind, expected):
    assert accelerator._backends(torch.device(kind)) == expected


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch):
    class Alone:
        num_processes = 1

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(accelerator, "Accelerator", lambda **options: Alone())
    with pytest.raises(LaunchError, match="expected the 2 processes .* found 1"):
        accelerator.make_accelerator(mixed_precision="no", timeout_minutes=1.0)


@pytest.mark.parametrize("reason", ["Gloo: Connect timeout [none]", "Timed out after 1 seconds"])
def test_processes_that_do_not_meet_in_time_are_told_of_the_flag(monkeypatch, reason):
    def fail(**options):
        raise RuntimeError(reason)

    monkeypatch.setattr(accelerator, "Accelerator", fail)
    with pytest.raises(LaunchError) as error:
        accelerator.make_accelerator(mixed_precision="no", timeout_minutes=0.5)
    assert str(error.value) == (
        f"expected the processes to find each other within 0.5 minutes, found that they did not "
        f"({reason}); make sure that all are started, or raise --timeout_minutes"
    )
    reason = "CUDA error: out of memory"
    with pytest.raises(RuntimeError, match=reason):
        accelerator.make_accelerator(mixed_precision="no", timeout_minutes=0.5)


def test_a_compiler_in_the_configuration_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    AcceleratorState._reset_state(reset_partial_state=True)  # other tests have left one
    try:
        with pytest.raises(LaunchError, match="found the backend INDUCTOR; .* use --compile"):
            accelerator.make_accelerator(mixed_precision="no", timeout_minutes=1.0)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@pytest.mark.parametrize("name", ["tp_size", "cp_size", "sp_size"])
def test_a_model_in_parts_is_refused_and_copies_of_shards_are_not(name):
    sizes = {"dp_replicate_size": 2, "dp_shard_size": 2}
    launch = SimpleNamespace(parallelism_config=ParallelismConfig(**sizes))
    accelerator._refuse_split_models(launch)
    accelerator._refuse_split_models(SimpleNamespace(parallelism_config=None))
    setattr(launch.parallelism_config, name, 2)
    with pytest.raises(
        LaunchError, match=f"parallelism_config_{name} of 1 .* found 2; .*fsdp2.yaml"
    ):
        accelerator._refuse_split_models(launch)


def test_a_checkout_says_its_commit_and_whether_files_differ(tmp_path, monkeypatch):
    module = tmp_path / "modeling_gpt2scratch" / "distributed" / "accelerator.py"
    module.parent.mkdir(parents=True)
    module.write_text("as committed")
    monkeypatch.setattr(accelerator, "__file__", str(module))
    assert accelerator.own_version() == {"gpt2scratch": __version__}  # no checkout
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@host", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "All"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    found = accelerator.own_version()
    assert found.keys() == {"gpt2scratch", "commit"}
    assert re.fullmatch("[0-9a-f]{40}", found["commit"])
    module.write_text("changed")
    assert accelerator.own_version()["commit"] == f"{found['commit']}-dirty"
