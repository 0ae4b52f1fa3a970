"""The command that goes on with a run, after an interruption at whatever moment."""

import os
from pathlib import Path

from modeling_gpt2scratch.checkpoints.retention import LATEST_NAME
from modeling_gpt2scratch.common.interruptions import started_as

from .configuration import RUN_CONFIG_NAME, TrainConfig


class Continuation:
    """Remembers how this process was started and what was in the run's directory by then.

    Args:
        config: of the run, before it has begun.
    """

    def __init__(self, config: TrainConfig):
        self._config = config
        self._command = started_as()
        directory = Path(config.output_dir)
        self._marker, self._latest = directory / RUN_CONFIG_NAME, directory / LATEST_NAME
        self._before = _identity(self._marker), _identity(self._latest)

    @property
    def command(self) -> str:
        """What to type: the same again until there is a checkpoint of this run, and then resume."""
        marker, latest = _identity(self._marker), _identity(self._latest)
        if self._config.resume == "auto":
            return self._command
        if latest is not None and latest != self._before[1]:
            off = " --overwrite false" * self._config.overwrite  # wherever it was given
            return f"{self._command}{off} --resume auto"
        # The run has made its directory, and would take it for another run's.
        is_refused = marker != self._before[0] and not self._config.overwrite
        return f"{self._command} --overwrite" if is_refused else self._command


def _identity(path: Path) -> tuple[int, int] | None:
    """What changes whenever a file is replaced; None if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
