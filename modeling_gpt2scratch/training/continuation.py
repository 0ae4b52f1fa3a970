"""The command that goes on with a run, after an interruption at whatever moment."""

import os
from collections.abc import Callable
from pathlib import Path

from modeling_gpt2scratch.checkpoints.retention import LATEST_NAME
from modeling_gpt2scratch.common.interruptions import started_as

from .configuration import RUN_CONFIG_NAME, TrainConfig


def continuing_command(config: TrainConfig) -> Callable[[], str]:
    """A function that returns what to type after an interruption, by the run's files at that time.

    That is the same again until there is a checkpoint of this run, and then the same with resume.

    Args:
        config: of the run, before it has begun.
    """
    command = started_as()
    marker = Path(config.output_dir, RUN_CONFIG_NAME)
    latest = Path(config.output_dir, LATEST_NAME)
    marker_before, latest_before = _identity(marker), _identity(latest)

    def to_type() -> str:
        if config.resume == "auto":
            return command
        if _identity(latest) not in (None, latest_before):
            off = " --overwrite false" * config.overwrite  # wherever it was given
            return f"{command}{off} --resume auto"
        # The run has made its directory, and would take it for another run's.
        is_refused = _identity(marker) != marker_before and not config.overwrite
        return f"{command} --overwrite" if is_refused else command

    return to_type


def _identity(path: Path) -> tuple[int, int] | None:
    """What changes whenever a file is replaced; None if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
