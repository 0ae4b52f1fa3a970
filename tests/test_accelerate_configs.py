"""The Accelerate configurations: Accelerate takes each as it is meant, and those for CPUs run."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.commands.to_fsdp2 import ARGUMENT_KEY_MAPPING, ConversionStatus
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)
from support.paths import REPOSITORY
from support.processes import run_process
from support.tiny_models import tiny_model
from support.training_runs import SIZES, curve, flags, run_here

CONFIGS = sorted((REPOSITORY / "accelerate_configs").glob("*.yaml"))
SLURM_SCRIPT = REPOSITORY / "accelerate_configs" / "multi_node_ddp.slurm"
# Name: number of processes and machines, and what the launcher must tell them beyond that.
MEANT = {
    "cpu": (1, 1, {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no"}),
    "cpu_2proc": (2, 1, {"ACCELERATE_MIXED_PRECISION": "no"}),
    "single_gpu": (1, 1, {"ACCELERATE_USE_CPU": "False", "ACCELERATE_MIXED_PRECISION": "bf16"}),
    "mps": (1, 1, {"ACCELERATE_USE_CPU": "False", "ACCELERATE_MIXED_PRECISION": "no"}),
    "xpu": (1, 1, {"ACCELERATE_USE_CPU": "False", "ACCELERATE_MIXED_PRECISION": "bf16"}),
    "ddp_8gpu": (8, 1, {"ACCELERATE_MIXED_PRECISION": "bf16"}),
    "multi_node_ddp": (16, 2, {"ACCELERATE_MIXED_PRECISION": "bf16"}),
    "fsdp2": (8, 1, {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_MIXED_PRECISION": "bf16"}),
    "fsdp2_cpu_2proc": (2, 1, {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_MIXED_PRECISION": "no"}),
    "deepspeed_zero2": (
        *(8, 1),
        {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_MIXED_PRECISION": "bf16"},
    ),
}
# Nested dictionaries, and how the launcher's arguments of that name begin.
SECTIONS = {"fsdp_config": "fsdp_", "deepspeed_config": ""}


def launcher_arguments(config: Path, *options: str):
    """What `accelerate launch` makes of a configuration."""
    parser = launch_command_parser()
    arguments = parser.parse_args(["--config_file", str(config), *options, "train_accelerate.py"])
    arguments, defaults, _ = _validate_launch_command(arguments)
    arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    return arguments


def launcher_environment(config: Path) -> dict[str, str]:
    """The variables that `accelerate launch` sets for the processes of a configuration."""
    arguments = launcher_arguments(config, "--main_process_port", "0")
    if arguments.use_deepspeed:
        return prepare_deepspeed_cmd_env(arguments)[1]
    if arguments.use_fsdp or arguments.multi_gpu:
        return prepare_multi_gpu_env(arguments)
    return prepare_simple_launcher_cmd_env(arguments)[1]


def free_job_number() -> int:
    """A Slurm job's number from which the script derives a port that nobody uses."""
    for number in range(10_000):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("", 20_000 + number))
            return number
    raise RuntimeError("expected a free port from 20000 to 29999, found none")


def test_every_configuration_is_known_here():
    assert {config.stem for config in CONFIGS} == MEANT.keys()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_takes_a_configuration_as_it_is_meant(config):
    n_processes, n_machines, environment = MEANT[config.stem]
    loaded = load_config_from_file(str(config))  # refuses unknown keys of the first level
    assert (loaded.num_processes, loaded.num_machines) == (n_processes, n_machines)
    assert loaded.dynamo_config == {}  # the script compiles; a second time would be twice
    found = launcher_environment(config)
    assert {name: found[name] for name in environment} == environment
    arguments = launcher_arguments(config, "--main_process_port", "0")
    assert arguments.multi_gpu == (
        n_processes > 1 and not loaded.fsdp_config | loaded.deepspeed_config
    )


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_nested_keys_are_those_that_accelerate_reads(config):
    content = yaml.safe_load(config.read_text())
    known = vars(launch_command_parser().parse_args(["script.py"]))
    # Accelerate reads these, and then ignores them in `accelerate launch`.
    assert not content.keys() & {"rdzv_backend", "same_network", "enable_cpu_affinity"}
    assert not content.keys() & {"downcast_bf16", "main_training_function", "dynamo_config"}
    for section, prefix in SECTIONS.items():
        for key in content.get(section, {}):
            assert key in known and key.startswith(prefix), f"{section}.{key}"
    for key in content.get("fsdp_config", {}):
        status = ARGUMENT_KEY_MAPPING.get(key, key)
        assert not isinstance(status, ConversionStatus) and status == key, f"only of FSDP1: {key}"


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2_cpu_2proc"])
def test_fsdp2_wraps_our_blocks_and_keeps_every_process_its_own_weights(name, monkeypatch):
    for variable, value in launcher_environment(CONFIGS[0].with_stem(name)).items():
        if variable.startswith("FSDP_"):
            monkeypatch.setenv(variable, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert not plugin.cpu_ram_efficient_loading and not plugin.activation_checkpointing
    model = tiny_model()
    plugin.set_auto_wrap_policy(model)
    wrapped = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    assert wrapped == {type(block) for block in model.transformer.h}


def test_deepspeed_leaves_clipping_and_accumulation_to_the_script(monkeypatch):
    for variable, value in launcher_environment(CONFIGS[0].with_stem("deepspeed_zero2")).items():
        if variable.startswith("ACCELERATE_"):
            monkeypatch.setenv(variable, value)
    config = DeepSpeedPlugin().deepspeed_config
    assert config["gradient_clipping"] == config["gradient_accumulation_steps"] == "auto"
    assert config["zero_optimization"]["stage"] == 2
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "none"


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Commands that stand in for Slurm's: two machines that are both this one."""
    commands = {
        "scontrol": 'if [[ $1 == show ]]; then echo localhost; else echo "$@" >> "$REQUEUED"; fi',
        "srun": (
            'for node in 0 1; do SLURM_NODEID=$node "${@:2}" & pids+=($!); done\n'
            'code=0; for pid in "${pids[@]}"; do wait "$pid" || code=$?; done; exit "$code"'
        ),
    }
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, body in commands.items():
        (binaries / name).write_text(f"#!/bin/bash\n{body}\n")
        (binaries / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("REQUEUED", str(tmp_path / "requeued"))
    for variable, value in {
        "SLURM_JOB_ID": str(free_job_number()),
        "SLURM_JOB_NODELIST": "node[0-1]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
    }.items():
        monkeypatch.setenv(variable, value)
    return tmp_path


def run_slurm_script(recipe: Path, *arguments: str) -> subprocess.CompletedProcess:
    return run_process(
        ["bash", str(SLURM_SCRIPT), str(recipe), *arguments],
        cwd=REPOSITORY,
    )


@pytest.mark.parametrize(
    ("left_by_the_run", "code", "is_queued"),
    [
        (["checkpoint-4/"], 0, True),
        ([], 1, False),
        (["checkpoint-4/", "model.safetensors"], 0, False),
    ],
    ids=["stopped", "failed", "finished"],
)
def test_a_job_is_queued_again_only_if_it_got_further(cluster, left_by_the_run, code, is_queued):
    output_dir = cluster / "run"
    (output_dir / "checkpoint-2").mkdir(parents=True)
    made = "".join(
        f"mkdir -p {output_dir}/{name}\n" if name.endswith("/") else f"touch {output_dir}/{name}\n"
        for name in left_by_the_run
    )
    (cluster / "bin" / "srun").write_text(f"#!/bin/bash\n{made}exit 1\n")
    recipe = cluster / "recipe.yaml"
    recipe.write_text(f"data: d\noutput_dir: {output_dir}  # shared\n")
    process = run_slurm_script(recipe)
    assert process.returncode == code, process.stderr
    assert (cluster / "requeued").exists() == is_queued


@pytest.mark.parametrize("place", ["--output_dir {}", "--output_dir={}", "{}/second.yaml", "other"])
def test_a_job_looks_where_the_run_writes(cluster, place):
    output_dir = cluster / "run"
    (output_dir).mkdir()
    (cluster / "first.yaml").write_text(f"data: d\noutput_dir: {cluster}/elsewhere\n")
    (output_dir / "second.yaml").write_text(f"output_dir: {output_dir}\n")
    (cluster / "bin" / "srun").write_text(f"#!/bin/bash\nmkdir {output_dir}/checkpoint-4\nexit 1\n")
    arguments = place.format(output_dir).split()
    if place == "other":  # a recipe without the key changes nothing
        (cluster / "other.yaml").write_text("seed: 3\n")
        arguments = [str(output_dir / "second.yaml"), str(cluster / "other.yaml")]
    process = run_slurm_script(cluster / "first.yaml", *arguments)
    assert process.returncode == 0, process.stderr
    assert (cluster / "requeued").exists()


def test_the_slurm_script_is_what_shellcheck_would_have_it():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", str(SLURM_SCRIPT)], check=True)


@pytest.mark.gate
def test_two_machines_have_the_curve_of_one_process(cluster, small_data, monkeypatch):
    changes = {"max_steps": 2, "dropout": 0, "save_every": 0, "eval_every": 0}
    recipe = cluster / "recipe.yaml"
    values = SIZES | changes | {"data": str(small_data), "mixed_precision": "no"}
    recipe.write_text(yaml.safe_dump(values))
    output_dir = cluster / "both"
    process = run_slurm_script(recipe, "--output_dir", str(output_dir))
    assert process.returncode == 0, process.stderr
    assert "processes        2 " in process.stdout and "finished:" in process.stdout
    assert not (cluster / "requeued").exists()
    assert run_here(monkeypatch, *flags(small_data, cluster / "one", **changes)) == 0
    expected = curve(cluster / "one")
    assert curve(output_dir).keys() == expected.keys() == {1, 2}
    for step, values in curve(output_dir).items():
        assert values == pytest.approx(expected[step], abs=1e-5)
