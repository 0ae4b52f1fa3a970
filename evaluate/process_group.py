"""What several processes of one evaluation, started by a launcher, must do alike."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object

Value = TypeVar("Value")


class ProcessGroup:
    """The processes of `accelerate launch evaluate/compare.py`, or the only one.

    Args:
        device: of the command line; "cpu" keeps the processes off the accelerators.
    """

    def __init__(self, device: str):
        is_shared = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self.accelerator = Accelerator(cpu=device == "cpu") if is_shared else None
        self.is_main = self.accelerator is None or self.accelerator.is_main_process

    def from_main(self, make: Callable[[], Value]) -> Value:
        """What `make` returns on the main process, on all of them; elsewhere it is not called."""
        if self.accelerator is None:
            return make()
        values = [make() if self.is_main else None]
        broadcast_object_list(values)
        return values[0]

    def first_problem(self, problem: str | None) -> str | None:
        """The first of all processes' problems, on all of them, so that they give up together."""
        if self.accelerator is None:
            return problem
        return next((found for found in gather_object([problem]) if found is not None), None)

    def end(self) -> None:
        """Parts with the other processes."""
        if self.accelerator is not None:
            PartialState().destroy_process_group()
