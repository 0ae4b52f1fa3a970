"""One batch through everything that a run will do, before its first step.

What would end a run at its first validation or its first checkpoint, hours later, ends it here.
Weights, moments and the random numbers of the run stay as they are.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator

import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn

from modeling_gpt2scratch.checkpoints.weight_files import not_finite
from modeling_gpt2scratch.data.loading.loader import ShardLoader
from modeling_gpt2scratch.distributed.processes import LaunchError, require_expected
from modeling_gpt2scratch.optim.newton_schulz import iteration_dtype

from .configuration import TrainConfig

# In nats above the loss of a model that finds all tokens equally likely. Fresh weights exceed that
# by half the variance of their logits, n_embd * initializer_range**2: 0.15 for 768 channels.
SURPRISING_LOSS = 1.0
SHUTDOWN_TIMEOUT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
# Where things are may be said otherwise on each machine; what is there is compared elsewhere.
PLACES = {"data", "data_cache", "output_dir", "init_from", "resume"}
PLACES |= {"lambada_data", "hellaswag_data", "blimp_data"}
PRECISION, MUONS_PRECISION = "precision", "precision of Muon"
REMEDIES = {
    PRECISION: "use devices of one kind, or say --mixed_precision",
    MUONS_PRECISION: "use devices of one kind, or --optimizer adamw",
}


def require_launch(config: TrainConfig, accelerator: Accelerator) -> None:
    """Refuses a launch that the arguments do not fit.

    Processes of which one was started with another argument, or computes otherwise, are one.

    Raises:
        LaunchError: on every process alike.
    """
    own = {f"--{k}": v for k, v in dataclasses.asdict(config).items() if k not in PLACES}
    own["--resume"] = config.resume if config.resume in ("none", "auto") else "a checkpoint"
    own[PRECISION] = str(accelerator.mixed_precision)
    if config.optimizer == "muon":
        own[MUONS_PRECISION] = str(iteration_dtype(accelerator.device))
    first, *others = gather_object([own])
    for rank, other in enumerate(others, start=1):
        for name in (name for name in first if other.get(name) != first[name]):
            raise LaunchError(
                f"expected the same {name} on all processes, found {first[name]} on process 0 and "
                f"{other.get(name)} on process {rank}; "
                + REMEDIES.get(name, "start all machines with the same command")
            )
    require_expected("processes", accelerator.num_processes, config.expect_processes)
    if config.compile == "model" and accelerator.distributed_type == DistributedType.FSDP:
        raise LaunchError(
            "expected --compile blocks under FSDP2, which gathers weights between them, found model"
        )


def try_one_batch(
    model: nn.Module, loader: ShardLoader, accelerator: Accelerator, *, step: int
) -> float:
    """Forward and backward on the first batch to come.

    Args:
        model: as the loop calls it, behind DDP or sharded.
        step: whose data are used.

    Returns:
        The mean loss of all processes, in nats per token.

    Raises:
        LaunchError: if it does not fit in memory, or anything is not finite.
    """
    batch = loader.batch(step, 0)
    with fitting_in_memory(loader.micro_batch_size):
        loss = model(**{name: ids.to(accelerator.device) for name, ids in batch.items()}).loss
        mean = accelerator.reduce(loss.detach(), "mean").item()
        # DeepSpeed's backward would make a step.
        if accelerator.distributed_type != DistributedType.DEEPSPEED:
            loss.backward()
    missing = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    model.zero_grad()
    if not math.isfinite(mean):
        damaged = not_finite(model)
        hint = "; try --mixed_precision no, or run gpt2scratch doctor"
        hint = f"; the weights {damaged} are not finite" if damaged else hint
        raise LaunchError(f"expected a finite loss on the first batch, found {mean}{hint}")
    if missing and accelerator.distributed_type != DistributedType.DEEPSPEED:
        raise LaunchError(
            f"expected a gradient for every parameter, found none for {', '.join(missing[:3])}; "
            f"use each in forward(), or set its requires_grad to False"
        )
    return mean


@contextlib.contextmanager
def fitting_in_memory(micro_batch_size: int) -> Iterator[None]:
    """Within the block, the error of a device that runs out of memory says what to do.

    Raises:
        LaunchError: in place of what torch raises, which has a class of its own on CUDA alone.
    """
    try:
        yield
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        less = f"give a --micro_batch_size below {micro_batch_size}"
        if micro_batch_size == 1:
            less = "try --activation_checkpointing true or a smaller model"
        raise LaunchError(
            f"expected a micro-batch of {micro_batch_size} rows to fit in memory, found "
            f"{str(error).splitlines()[0]}; {less}"
        ) from error


def surprises_of_loss(loss: float, vocab_size: int) -> list[str]:
    """A sentence about fresh weights whose loss is not that of fresh weights, if so."""
    expected = math.log(vocab_size)
    if loss <= expected + SURPRISING_LOSS:
        return []
    return [f"the first loss is {loss:.2f}; fresh weights should give about {expected:.2f}"]


def surprises_of_saving(seconds: float) -> list[str]:
    """A sentence about a checkpoint that the launcher may not wait for, if so.

    After a signal, torch's launcher kills its processes when a time is over, in which they have to
    finish a step, too.
    """
    if not dist.is_torchelastic_launched():
        return []
    limit = float(os.environ.get(SHUTDOWN_TIMEOUT, "30"))  # the launcher has read it, too
    if 2 * seconds < limit:
        return []
    return [
        f"a checkpoint took {seconds:.0f} s, and the launcher kills its processes {limit:g} s "
        f"after SIGTERM or Ctrl-C; export {SHUTDOWN_TIMEOUT}={4 * seconds:.0f} before the launch"
    ]
