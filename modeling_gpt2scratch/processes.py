"""The processes of a training run: how they find each other, fail together and stop together."""

import contextlib
import os
import platform
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import accelerate
import torch
import transformers
from accelerate import Accelerator, PartialState
from accelerate.tracking import GeneralTracker
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    broadcast_object_list,
    gather_object,
)

Result = TypeVar("Result")


class LaunchError(ValueError):
    """A launch in which the processes cannot work together."""


def make_accelerator(
    *, mixed_precision: str, trackers: list[str | GeneralTracker], project_dir: str
) -> Accelerator:
    """The Accelerator of this launch, for a loop that brings its own data loader.

    Args:
        mixed_precision: "no", "bf16", or "auto"; see `choose_precision`.
        trackers: names or instances.
        project_dir: where trackers may put their files.

    Raises:
        LaunchError: if the launcher started several processes that do not know of each other, or
            its configuration asks for a precision that needs loss scaling.
    """
    accelerator = Accelerator(
        # Without a GPU, torchrun's processes must be told to meet on the CPU, or each is alone.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=choose_precision(mixed_precision),
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=1, sync_with_dataloader=False
        ),
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        log_with=trackers,
        project_dir=project_dir,
    )
    n_launched = int(os.environ.get("WORLD_SIZE", 1))
    if n_launched != accelerator.num_processes:
        raise LaunchError(
            f"expected the {n_launched} processes that were launched to form one group, found "
            f"{accelerator.num_processes}; check distributed_type in the Accelerate configuration"
        )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise LaunchError(
            f"expected mixed_precision no or bf16, found {accelerator.mixed_precision} in the "
            f"Accelerate configuration; --mixed_precision overrides it"
        )
    return accelerator


def describe_environment(accelerator: Accelerator) -> dict[str, str | int]:
    """Where a run takes place, as JSON values that name no machine and no user."""
    device = accelerator.device.type
    if device == "cuda":
        device = torch.cuda.get_device_name(accelerator.device)
    return {
        "device": device,
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
    }


@contextlib.contextmanager
def closing(accelerator: Accelerator) -> Iterator[None]:
    """Ends trackers and process group after the block, however it ends.

    DDP must be gone before its process group: as the group's last owner it would wait, inside
    Python's lock, for a gloo thread that may itself wait for that lock. So what the block made
    has to be local to a function that it calls.
    """
    try:
        yield
        accelerator.wait_for_everyone()
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        accelerator.free_memory()
        accelerator.end_training()


def choose_precision(requested: str) -> str | None:
    """The precision to hand to Accelerate; None leaves it to Accelerate's own configuration.

    "auto" is what that configuration says if it says anything, else bf16 on GPUs that have it.
    """
    if requested != "auto":
        return requested
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no":
        return None
    if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "no"


def on_main_process(function: Callable, *args, **kwargs) -> None:
    """Runs `function` on the main process; an OSError there is raised on every process alike."""
    problem: list[str | None] = [None]
    if PartialState().is_main_process:
        try:
            function(*args, **kwargs)
        except OSError as error:
            problem = [str(error)]
    broadcast_object_list(problem)
    if problem[0] is not None:
        raise OSError(problem[0])


def on_all_processes(function: Callable[..., Result], *args, **kwargs) -> Result:
    """What `function` returns; what the user can mend and fails on one process fails on all alike.

    Raises:
        ValueError, OSError: of the first process that had one.
    """
    result, problem = None, None
    try:
        result = function(*args, **kwargs)
    except (ValueError, OSError) as error:
        problem = error.with_traceback(None)
    problems = [found for found in gather_object([problem]) if found is not None]
    if problems:
        raise problems[0]
    return result


def require_agreement(value: Any, what: str) -> None:
    """Refuses processes that do not see the same.

    Raises:
        LaunchError: on every process alike.
    """
    values = gather_object([value])
    for rank, other in enumerate(values):
        if other != values[0]:
            raise LaunchError(
                f"expected the same {what} on all processes, found another one on process {rank}; "
                f"copy it to every machine, or start again if it was changed meanwhile"
            )


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a request to stop; a second Ctrl-C interrupts at once."""

    def __init__(self):
        self.received = False
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame) -> None:
        self.received = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
