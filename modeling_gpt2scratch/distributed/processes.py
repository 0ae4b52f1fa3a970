"""How the processes of a run speak, fail and agree as one."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers.utils import logging as transformers_logging

from modeling_gpt2scratch.common.console import tell
from modeling_gpt2scratch.common.errors import MendableError

Result = TypeVar("Result")
# What a launcher tells each process.
LAUNCH_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OF_VARIABLES = re.compile(r"environment variable|\benv\b|invalid literal for int")


class LaunchError(MendableError, ValueError):
    """A launch in which the processes cannot work together."""


@contextlib.contextmanager
def naming_launch_variables() -> Iterator[None]:
    """Within the block, variables of a launcher that do not go together are named.

    Raises:
        LaunchError: in place of the errors of torch and Accelerate.
    """
    # Accelerate sets some that are missing.
    found = [f"{name}={os.environ[name]}" for name in LAUNCH_VARIABLES if name in os.environ]
    try:
        yield
    except ValueError as error:
        if not (found and OF_VARIABLES.search(str(error))):
            raise
        raise LaunchError(
            f"expected {', '.join(LAUNCH_VARIABLES)} all set, and numbers but for the address, "
            f"found {' '.join(found)}; start with accelerate launch, or unset them"
        ) from error


def say(text: str) -> None:
    """Prints on the main process; Accelerate's own `print` does so once for each machine."""
    if PartialState().is_main_process:
        tell(text)


def quiet_transformers() -> None:
    """Keeps reports and bars of transformers from coming between the lines of a command."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def on_main_process(function: Callable[..., Result], *args, **kwargs) -> Result:
    """What `function` returns on the main process, on every process.

    Raises:
        ValueError, OSError: what it raises there, on every process alike.
    """
    result, problem = None, None
    if PartialState().is_main_process:
        try:
            result = function(*args, **kwargs)
        except (ValueError, OSError) as error:
            problem = error.with_traceback(None)
    answer = [result, problem]
    broadcast_object_list(answer)
    result, problem = answer
    if problem is not None:
        raise problem
    return result


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
                f"expected the same {what} on all processes, found others on process {rank}; copy "
                f"them to every machine, or start again if they were changed meanwhile"
            )


def require_expected(what: str, found: int, expected: int | None) -> None:
    """Refuses a launch that is not the one the recipe was written for.

    Args:
        what: is counted.
        found: how many there are.
        expected: how many there must be, None for any number.

    Raises:
        LaunchError: if they differ.
    """
    if expected not in (None, found):
        raise LaunchError(f"expected {expected:,} {what} as --expect_{what} says, found {found:,}")
