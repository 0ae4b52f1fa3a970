"""What several processes of one evaluation, started by a launcher, must do alike."""

import os
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers.utils import logging

from modeling_gpt2scratch.common.console import has_terminal
from modeling_gpt2scratch.common.errors import in_words
from modeling_gpt2scratch.distributed.processes import naming_launch_variables

Value = TypeVar("Value")


class Problem(NamedTuple):
    """Why a process cannot go on.

    Attributes:
        place: of several problems the one with the lowest counts, which one process would meet.
        line: what `in_words` makes of the error.
    """

    place: int
    line: str


class SharedProblemError(RuntimeError):
    """A problem that all processes know of; its text is the line of the one that counts."""


def exchange(value: Value, problem: Problem | None = None) -> list[Value]:
    """What each process has, in their order, on all of them.

    While a task is evaluated, processes wait for each other nowhere else. So whichever exchange a
    process with a problem comes to, it meets the others in theirs, and all of them go on together.

    Args:
        value: of this process, fit for pickle.
        problem: that keeps this process from going on.

    Raises:
        SharedProblemError: on all processes, if one of them has a problem.
    """
    shares = gather_object([(problem, value)])
    if problems := [found for found, _ in shares if found is not None]:
        raise SharedProblemError(min(problems).line)
    return [value for _, value in shares]


def alike(work: Callable[[], Value], kinds: tuple[type[BaseException], ...]) -> Value:
    """What `work` returns on this process, if no process fails; else all of them do.

    Args:
        work: that all processes do at the same time.
        kinds: of errors that are a problem of all; any other is raised on this process alone.

    Raises:
        SharedProblemError: on all processes, if one of them has such an error.
    """
    value, problem = None, None
    try:
        value = work()
    except SharedProblemError:  # the others know
        raise
    except kinds as error:
        problem = Problem(0, in_words(error))
    exchange(None, problem)
    return value


class ProcessGroup:
    """The processes of `accelerate launch evaluate/compare.py`, or the only one.

    Args:
        device: of the command line; "cpu" keeps the processes off the accelerators.

    Raises:
        LaunchError: if the launcher's variables are incomplete or no numbers.
        SystemExit: with one line, if the launched processes do not know of each other, or shall
            all have one device.
    """

    def __init__(self, device: str):
        with naming_launch_variables():
            n_launched = int(os.environ.get("WORLD_SIZE", "1"))
        if n_launched > 1 and device != "auto" and torch.device(device).index is not None:
            raise SystemExit(
                f"expected --device auto or cpu with {n_launched} processes, each of which takes a "
                f"device of its own, found {device}"
            )
        # Without an accelerator, processes must be told to meet on the CPU, or each is alone.
        on_cpu = device == "cpu" or not torch.accelerator.is_available()
        with naming_launch_variables():
            self.accelerator = Accelerator(cpu=on_cpu) if n_launched > 1 else None
        if self.accelerator is not None and self.accelerator.num_processes != n_launched:
            raise SystemExit(
                f"expected {n_launched} processes in one group, as launched, found "
                f"{self.accelerator.num_processes}: check distributed_type in the configuration"
            )
        self.is_main = self.accelerator is None or self.accelerator.is_main_process
        if not (self.is_main and has_terminal()):
            logging.disable_progress_bar()  # those of loading weights

    def from_main(self, make: Callable[[], Value]) -> Value:
        """What `make` returns on the main process, on all of them; elsewhere it is not called."""
        if self.accelerator is None:
            return make()
        values = [make() if self.is_main else None]
        broadcast_object_list(values)
        return values[0]

    def alike(self, work: Callable[[], Value]) -> Value:
        """What `work` returns on this process, if no process fails; else all of them do.

        Raises:
            SharedProblemError: on all processes, if `work` raises anything on one of them, or ends
                the program, as code of one's own may.
            Exception: if the processes have lost each other, after which none can go on.
        """
        if self.accelerator is not None:
            return alike(work, (Exception, SystemExit))
        try:
            return work()
        except (Exception, SystemExit) as error:
            raise SharedProblemError(in_words(error)) from error

    def end(self) -> None:
        """Parts with the other processes once all are here, the one that reports among them."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()
            PartialState().destroy_process_group()
