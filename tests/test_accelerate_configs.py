"""The Accelerate configurations: Accelerate takes each as it is meant."""

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
from support.tiny_models import tiny_model

CONFIGS = sorted((REPOSITORY / "accelerate_configs").glob("*.yaml"))
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
