"""What is about to run, said before it is left alone."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from tabulate import tabulate
from torch import nn

from modeling_gpt2scratch.common.command_line import goes_with
from modeling_gpt2scratch.common.threads import load_of_others, n_cores
from modeling_gpt2scratch.distributed.device import device_name, has_bf16, lacking
from modeling_gpt2scratch.hardware.compilation import missing_for_compilation
from modeling_gpt2scratch.optim.optimizer import describe_groups

from .checks import MAY_CHANGE, MEASURED_WITH
from .configuration import TrainConfig
from .run import TrainingRun

# What Accelerate's names do not say by themselves.
KINDS = {
    DistributedType.NO: "not distributed",
    DistributedType.MULTI_CPU: "DDP on the CPU",
    DistributedType.MULTI_GPU: "DDP",
}
PRECISIONS = {"no": "float32"}


def banner(run: TrainingRun, notes: Sequence[str]) -> str:
    """A table of the run, one of the optimizer's parameter groups, and what may surprise."""
    config, accelerator, loader = run.config, run.accelerator, run.loader
    world_size, kind = accelerator.num_processes, accelerator.distributed_type
    precision = PRECISIONS.get(accelerator.mixed_precision, accelerator.mixed_precision)
    n_parameters = run.model.num_parameters()
    n_embedding = n_parameters - run.model.num_parameters(exclude_embeddings=True)
    n_tokens = config.max_steps * config.total_batch_tokens
    epochs = loader.epochs(config.max_steps)
    rows = {
        "processes": f"{world_size} ({KINDS.get(kind, kind.value)})",
        "device": f"{accelerator.device}, {precision}, {run.compiled}",
        "parameters": f"{n_parameters:,} ({n_embedding:,} in embeddings)",
        "tokens per step": f"{config.total_batch_tokens:,} = {config.sequence_length} per row x "
        f"{loader.micro_batch_size} rows x {loader.micro_steps} micro-steps x "
        f"{world_size} processes",
        "steps": f"{run.progress.step:,} to {config.max_steps:,}, {n_tokens:,} tokens, "
        f"{n_tokens / n_parameters:.3g} per parameter",
        "schedule": f"{config.schedule}, peak {config.learning_rate:g} after "
        f"{config.warmup_steps:,} steps",
        "data": "; ".join(
            f"{epoch:.2f} epochs of {source.n_tokens:,} tokens in {source.name}"
            for source, epoch in zip(loader.sources, epochs, strict=True)
        ),
        "output": config.output_dir,
    }
    if config.push_to_hub is not None:
        rows["hub"] = f"every {config.push_every:,} steps to branches of {config.push_to_hub}"
    groups = describe_groups(run.model, run.optimizer.optimizer)
    return "\n".join(
        [
            tabulate(rows.items(), tablefmt="plain"),
            tabulate(groups, headers="keys", tablefmt="plain", floatfmt="g", intfmt=","),
            *(f"note: {note}" for note in notes),
        ]
    )


def surprises(
    config: TrainConfig, accelerator: Accelerator, model: nn.Module, *, has_validation: bool
) -> list[str]:
    """Sentences about what is allowed and seldom meant."""
    notes = []
    device = accelerator.device
    n_visible = torch.accelerator.device_count()
    n_local = torch.distributed.get_node_local_rank(fallback_rank=0) if n_visible else 0
    if device.type != "cpu" and accelerator.num_processes < n_visible and not n_local:
        notes.append(f"{accelerator.num_processes} of the {n_visible} GPUs here are used")
    is_large = model.num_parameters() > 50_000_000
    if torch.accelerator.is_available() and device.type == "cpu":
        notes.append("this machine has a GPU, but the Accelerate configuration says not to use it")
    elif is_large and device.type == "cpu":
        notes.append(
            "torch finds no GPU, so this model trains on the CPU; if there is one, see "
            "`gpt2scratch doctor`"
        )
    if config.eval_every and not has_validation:
        notes.append(
            "the data have no validation split, so there is no eval_loss and no sample; prepare "
            "them with --val_fraction above 0"
        )
    if config.patience and config.patience >= (n := config.max_steps // config.eval_every):
        notes.append(
            f"--patience {config.patience} never ends this run early, which has {n:,} validations"
        )
    if config.init_from is None and (length := config.sequence_length) < config.n_positions:
        notes.append(
            f"positions from {length} on are not trained; in a new run, --n_positions {length} "
            f"makes the model end there"
        )
    if is_large and config.total_batch_tokens < 2**18 and config.init_from is None:
        notes.append(
            f"a batch of {config.total_batch_tokens:,} tokens is small for a model of this size; "
            f"0.5M is usual, and much smaller ones have diverged"
        )
    if device.type != "cpu" and accelerator.mixed_precision == "no":
        faster = "bf16" if has_bf16(device) else "fp16"
        notes.append(f"matrices are multiplied in float32; try --mixed_precision {faster}")
    lacks = lacking(device)
    if accelerator.mixed_precision == "bf16" and "bf16" in lacks:
        lacks.remove("bf16")
        notes.append(
            f"{device_name(device)} is not known to multiply bf16 itself; --mixed_precision fp16 "
            f"may be faster"
        )
    if device.type != "cpu" and missing_for_compilation(device):
        lacks.append("torch.compile")
    if lacks:
        notes.append(f"{device_name(device)} lacks {', '.join(lacks)}; the run does without")
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        notes.append(
            "DeepSpeed itself skips a step whose gradient is not finite, and clips; such a step is "
            "counted here, and ends the run after --max_skipped_steps in a row. The check before "
            "the first step leaves out the backward pass"
        )
    return notes


def surprises_of_resuming(
    config: TrainConfig, accelerator: Accelerator, before: dict, *, was_done: bool
) -> list[str]:
    """A sentence about each argument that shapes losses or scores and was another one until now.

    Args:
        accelerator: whose precision is what `mixed_precision` "auto" means here.
        before: the arguments that the checkpoint was made with, empty if there is none.
        was_done: whether every step was made before this launch.
    """
    names = ("max_steps", *MEASURED_WITH)
    if not was_done:
        names = (*MAY_CHANGE, *names)
    now = {name: getattr(config, name) for name in names}
    if "mixed_precision" in now and before.get("mixed_precision") != "auto":
        now["mixed_precision"] = accelerator.mixed_precision
    for name, (other, values) in config.only_with.items():
        if not goes_with(getattr(config, other), values):
            now.pop(name, None)
    return [
        f"--{name} was {_brief(before[name])} until here, and is {_brief(value)} from here on"
        for name, value in now.items()
        if before.get(name, value) != value
    ]


def surprises_of_load() -> list[str]:
    """A sentence about a machine on which others want more than all cores, if so."""
    load, cores = load_of_others(), n_cores()
    if load < cores:  # more than all are busy only where the system counts threads
        return []
    return [
        f"this machine has {cores} core{'s' * (cores != 1)}, and other programs kept {load:g} busy "
        f"when the run began; the run is slower while they work"
    ]


def _brief(value: object) -> str:
    """A value as one would write it, without a float's rounding."""
    return f"{value:g}" if isinstance(value, float) else str(value)
