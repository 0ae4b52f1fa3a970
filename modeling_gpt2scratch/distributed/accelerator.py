"""The Accelerator of a run: precision, FSDP2, ZeRO-2, and processes that find each other."""

import contextlib
import os
import platform
import re
import subprocess
import traceback
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import accelerate
import torch
import torch.distributed as dist
import transformers
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    DynamoBackend,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)
from torch.distributed.fsdp import MixedPrecisionPolicy

from modeling_gpt2scratch import __version__
from modeling_gpt2scratch.common.errors import one_line

from .agreement import StalledError, is_first_to_say
from .device import available_device, device_name, has_bf16
from .processes import LaunchError, naming_launch_variables

# NCCL and its like end a process whose operation timed out. Before that, the exchange among the
# processes' CPUs shall time out, which names the one that is missing.
NCCL_GRACE = timedelta(minutes=1)
TIMED_OUT = re.compile(r"time(d )?out", re.IGNORECASE)  # in what torch says of a group


def make_accelerator(*, mixed_precision: str, timeout_minutes: float) -> Accelerator:
    """The Accelerator of this launch, for a loop that brings its own data loader.

    Args:
        mixed_precision: "no", "fp16", "bf16", "fp8", or "auto"; see `choose_precision`.
        timeout_minutes: how long a process waits for another in any collective operation.

    Raises:
        LaunchError: if the launcher started several processes that do not know of each other or
            do not find each other in time, or its configuration asks for an unknown precision, a
            compiler, a model in parts, fp16 in shards, or more of DeepSpeed than ZeRO-2; or if
            the launcher's variables are incomplete or no numbers.
    """
    timeout = timedelta(minutes=timeout_minutes)
    if torch.accelerator.is_available():
        timeout += NCCL_GRACE
    with _naming_the_timeout(timeout_minutes):
        _join_after_restart(timeout)
    precision = choose_precision(mixed_precision)
    plugin = _fsdp_plugin(precision)
    # Shards are reduced on each micro-step, or every process would hold whole gradients.
    accumulation = {"sync_with_dataloader": False, "sync_each_batch": plugin is not None}
    with _naming_the_timeout(timeout_minutes), naming_launch_variables():
        accelerator = Accelerator(
            # Without a GPU, torchrun's processes must be told to meet on the CPU, or each is alone.
            cpu=not torch.accelerator.is_available(),
            mixed_precision=precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, **accumulation),
            fsdp_plugin=plugin,
            kwargs_handlers=[
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
                InitProcessGroupKwargs(timeout=timeout),
            ],
        )
    n_launched = int(os.environ.get("WORLD_SIZE", 1))
    if n_launched != accelerator.num_processes:
        raise LaunchError(
            f"expected the {n_launched} processes that were launched to form one group, found "
            f"{accelerator.num_processes}; check distributed_type in the Accelerate configuration"
        )
    if accelerator.mixed_precision not in ("no", "fp16", "bf16", "fp8"):
        raise LaunchError(
            f"expected mixed_precision no, fp16, bf16 or fp8, found {accelerator.mixed_precision} "
            f"in the Accelerate configuration; --mixed_precision overrides it"
        )
    if accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        raise LaunchError(
            f"expected no dynamo_config in the Accelerate configuration, found the backend "
            f"{accelerator.state.dynamo_plugin.backend}; leave it out and use --compile"
        )
    _refuse_split_models(accelerator)
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        # Accelerate itself would go on in float32 without a word.
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        _require_zero2(accelerator)
    if plugin is not None and accelerator.distributed_type == DistributedType.MULTI_CPU:
        _shard_on_cpu(accelerator, plugin)
    return accelerator


def prepare_accelerator(
    accelerator: Accelerator,
    *,
    micro_batch_size: int,
    micro_steps: int,
    max_grad_norm: float,
    optimizer: str,
) -> None:
    """Tells Accelerate how many micro-steps a step has; DeepSpeed wants to know more.

    Raises:
        LaunchError: if the optimizer cannot work on DeepSpeed's flat slices.
    """
    accelerator.gradient_accumulation_steps = micro_steps
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return
    if optimizer != "adamw":
        raise LaunchError(
            f"expected --optimizer adamw under DeepSpeed, whose slices are not matrices, found "
            f"{optimizer}; use accelerate_configs/fsdp2.yaml"
        )
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    config |= {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": micro_steps,
        "gradient_clipping": max_grad_norm,
        # Summed in bfloat16, as DeepSpeed would, small gradients are lost.
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "timers": {"throughput": {"enabled": False}},  # it waits for the GPU before each forward
    }
    if accelerator.mixed_precision == "bf16":
        # Without this look for what is not finite, such a gradient would be applied.
        config["bf16"]["check_grad_overflow"] = True


def describe_environment(accelerator: Accelerator) -> dict[str, str | int]:
    """Where a run takes place, as JSON values that name no machine and no user."""
    return {
        "device": device_name(accelerator.device),
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
    } | own_version()


def own_version() -> dict[str, str]:
    """The version of this package and, in a checkout, its commit; "-dirty" if files differ."""
    root = Path(__file__).parents[2]
    version = {"gpt2scratch": __version__}
    if (root / ".git").exists():
        options = ("--always", "--dirty", "--abbrev=40", "--exclude=*")
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["git", "-C", root, "describe", *options]
            found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
            version["commit"] = found.stdout.strip()
    return version


@contextlib.contextmanager
def ending(accelerator: Accelerator) -> Iterator[None]:
    """Ends trackers and process group after the block; the first alone if a device waits for ever.

    What the block raises has `is_first` afterwards: whether no other process had the same before.

    DDP must be gone before its process group: as the group's last owner it would wait, inside
    Python's lock, for a gloo thread that may itself wait for that lock. So what the block made
    has to be local to a function that it calls.
    """
    is_stalled = False
    try:
        yield
        accelerator.wait_for_everyone()
    except BaseException as error:
        is_stalled = isinstance(error, StalledError) and accelerator.device.type != "cpu"
        error.is_first = is_first_to_say(f"{type(error).__name__}: {error}")
        for one in filter(None, (error, error.__cause__)):  # such as torch's own lack of memory
            traceback.clear_frames(one.__traceback__)
        raise
    finally:
        if is_stalled:  # freeing the device's memory would wait for the process that hangs
            for tracker in accelerator.trackers:
                tracker.finish()
        else:
            accelerator.free_memory()
            accelerator.end_training()
        # What all Accelerators of a process share; without it, another run can begin here.
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def choose_precision(requested: str) -> str | None:
    """The precision to hand to Accelerate; None leaves it to Accelerate's own configuration.

    "auto" is what that configuration says if it says anything, else bf16 on accelerators that have
    it. Its launcher says "no" as well where nobody has said anything, so that counts as nothing.
    """
    if requested != "auto":
        return requested
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no":
        return None
    if os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true":
        return "no"
    device = available_device()
    return "bf16" if device.type != "cpu" and has_bf16(device) else "no"


def asks_for_fp8(mixed_precision: str) -> bool:
    """Whether this argument, or with "auto" Accelerate's configuration, wants fp8."""
    configured = os.environ.get("ACCELERATE_MIXED_PRECISION")
    return (configured if mixed_precision == "auto" else mixed_precision) == "fp8"


def _refuse_split_models(accelerator: Accelerator) -> None:
    """Refuses what Accelerate would pass over: the processes would train several models apart.

    Raises:
        LaunchError: if processes are to share a layer or a row.
    """
    for name in ("tp_size", "cp_size", "sp_size"):
        size = getattr(accelerator.parallelism_config, name, 1)
        if size > 1:
            raise LaunchError(
                f"expected parallelism_config_{name} of 1 in the Accelerate configuration, found "
                f"{size}; layers and rows are not shared among processes, fsdp2.yaml shards the "
                f"weights"
            )


def _join_after_restart(timeout: timedelta) -> None:
    """Joins the group of an attempt that the launcher started after an earlier one had failed.

    torch's launcher keeps one store for all attempts. Without a prefix of its own, this attempt
    would find the addresses of dead processes there, and wait for them.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, timeout=timeout)
    dist.init_process_group(
        _backends(available_device()),
        store=dist.PrefixStore(f"attempt-{attempt}", store),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timeout,
    )


@contextlib.contextmanager
def _naming_the_timeout(timeout_minutes: float) -> Iterator[None]:
    """Says what to do where processes have not found each other in time.

    Raises:
        LaunchError: in place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not TIMED_OUT.search(str(error)):
            raise
        raise LaunchError(
            f"expected the processes to find each other within {timeout_minutes:g} minutes, found "
            f"that they did not ({one_line(error)}); make sure that all are started, or raise "
            f"--timeout_minutes"
        ) from error


def _backends(device: torch.device) -> str:
    """How processes talk, in torch's words: the devices by their vendor's library, the CPUs too."""
    if device.type == "cpu":
        return "gloo"
    return f"{device.type}:{dist.get_default_backend_for_device(device.type)},cpu:gloo"


def _fsdp_plugin(precision: str | None) -> FullyShardedDataParallelPlugin | None:
    """What the Accelerate configuration says of FSDP2, None if it does not ask for it.

    Parameters are gathered in bfloat16 and gradients reduced in float32. Accelerate's own reading
    of `mixed_precision: bf16` would reduce in bfloat16 as well, and lose small gradients.

    Raises:
        LaunchError: if it asks for the first version of FSDP, or fp16 is asked for with it: the
            scaler of a loss would look for overflows in each process's own shards only.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    precision = precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision == "fp16":
        raise LaunchError(
            "expected --mixed_precision bf16 or no under FSDP2, found fp16; train replicas, as in "
            "accelerate_configs/ddp_8gpu.yaml"
        )
    policy = None
    if precision != "no":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    plugin = FullyShardedDataParallelPlugin(mixed_precision_policy=policy)
    if plugin.fsdp_version != 2:
        raise LaunchError(
            f"expected fsdp_version: 2, found {plugin.fsdp_version} in the Accelerate "
            f"configuration; see accelerate_configs/fsdp2.yaml"
        )
    return plugin


def _require_zero2(accelerator: Accelerator) -> None:
    """Refuses all of DeepSpeed but ZeRO-2 on GPUs, the only part that checkpoints are made for.

    Raises:
        LaunchError: on every process alike.
    """
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        raise LaunchError(
            f"expected GPUs for distributed_type DEEPSPEED, found {accelerator.device.type}; use "
            f"accelerate_configs/cpu_2proc.yaml or fsdp2_cpu_2proc.yaml"
        )
    zero = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
    offload = [
        (zero.get(f"offload_{what}") or {}).get("device", "none") for what in ("optimizer", "param")
    ]
    found = (zero.get("stage"), accelerator.mixed_precision, *offload)
    if found[0] != 2 or found[1] in ("fp8", "fp16") or any(device != "none" for device in offload):
        raise LaunchError(
            f"expected ZeRO stage 2 in bf16 or float32 without offloading, found (stage, "
            f"precision, offloading) {found}; see accelerate_configs/deepspeed_zero2.yaml, or "
            f"fsdp2.yaml for parameters in shards"
        )


def _shard_on_cpu(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Lets Accelerate take its FSDP path on processes that meet on the CPU.

    torch shards over gloo as over NCCL, but Accelerate enters this state on accelerators only and
    would train replicas without a word.
    """
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
