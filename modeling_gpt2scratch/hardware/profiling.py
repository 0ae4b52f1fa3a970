"""A trace of a few training steps."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProfileKwargs

from modeling_gpt2scratch.distributed.processes import say

PROFILE_DIRECTORY = "profile"
# The first steps compile, choose kernels and take their memory.
SCHEDULE = {"wait": 2, "warmup": 1, "active": 3, "repeat": 1}
LEAST_STEPS = SCHEDULE["wait"] + SCHEDULE["warmup"] + 1
SHOWN_OPERATORS = 15


@contextlib.contextmanager
def profiler(
    accelerator: Accelerator, output_dir: Path | None
) -> Iterator[torch.profiler.profile | None]:
    """Traces the fourth to sixth step within the block, which calls `step` after each.

    Every process writes `output_dir/profile/trace-RANK.json.gz`, for https://ui.perfetto.dev, and
    the main process prints the operators that took longest.

    Args:
        accelerator: of the run.
        output_dir: of the run; without one, nothing is traced.
    """
    if output_dir is None:
        yield None
        return
    directory = output_dir / PROFILE_DIRECTORY

    def finish(profile: torch.profiler.profile) -> None:
        if profile.step_num < LEAST_STEPS:  # it was about to trace the first one
            return
        write_trace(profile, directory / f"trace-{accelerator.process_index}.json.gz")
        accelerator.print(costliest_operators(profile, accelerator.device))

    # Accelerate's own `output_trace_dir` writes at the end of the block, where it fails if there
    # were too few steps, and waits there for processes that may have gone.
    kwargs = ProfileKwargs(schedule_option=SCHEDULE, on_trace_ready=finish, record_shapes=True)
    with accelerator.profile(kwargs) as profile:
        yield profile
    if profile.step_num < LEAST_STEPS:
        say(
            f"note: expected at least {LEAST_STEPS} steps for --profile, found "
            f"{profile.step_num}; there is no trace, so make more steps"
        )


def write_trace(profile: torch.profiler.profile, path: Path) -> None:
    """Writes a trace in one step, and makes its directory if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")  # torch compresses by the end of the name
    profile.export_chrome_trace(str(partial))
    os.replace(partial, path)


def costliest_operators(profile: torch.profiler.profile, device: torch.device) -> str:
    """A table of the operators by the time they took themselves, on the GPU if there is one."""
    where = "cpu" if device.type == "cpu" else "device"
    return profile.key_averages().table(
        sort_by=f"self_{where}_time_total", row_limit=SHOWN_OPERATORS, max_name_column_width=50
    )
