"""What a run measures and where it writes it down."""

import math
import time
from datetime import UTC, datetime
from pathlib import Path

from accelerate import PartialState
from accelerate.tracking import GeneralTracker, on_main_process

from modeling_gpt2scratch.common.atomic_files import write_json_lines
from modeling_gpt2scratch.common.console import warn
from modeling_gpt2scratch.common.errors import file_problem
from modeling_gpt2scratch.common.json_lines import append_json_line, read_json_lines

METRICS_NAME = "metrics.jsonl"
EVENTS_NAME = "events.jsonl"


class JsonlTracker(GeneralTracker):
    """An Accelerate tracker that appends one JSON object per logged step to a file.

    Args:
        resume_step: steps after this one are dropped from the file: a killed run logged them, and
            the resumed run will log them again.
    """

    name = "jsonl"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, path: Path, *, resume_step: int):
        super().__init__()
        self._path = path
        self.resume_step = resume_step
        self.last_step = 0  # that the file has a line for; on the main process

    @property
    def tracker(self) -> Path:
        """The file."""
        return self._path

    @on_main_process
    def start(self) -> None:
        """Drops the lines that will be written again, and those that cannot be read."""
        self.rewind(self.resume_step)

    @on_main_process
    def rewind(self, step: int) -> None:
        """Drops the lines after a step to which the run goes back."""
        rows = [row for row in read_metrics(self._path) if row["step"] <= step]
        self.last_step = max((row["step"] for row in rows), default=0)
        write_json_lines(self._path, rows)

    @on_main_process
    def store_init_configuration(self, values: dict) -> None:
        """Nothing: `train_config.json` stands beside the file."""

    @on_main_process
    def log(self, values: dict, step: int | None = None, **kwargs) -> None:
        """Appends one line, or completes that of the step from which the run was resumed."""
        if step != self.last_step:
            append_json_line(self._path, {"step": step} | finite(values))
            return
        rows = read_metrics(self._path)
        rows[-1] |= finite(values)
        write_json_lines(self._path, rows)


class EventLog:
    """What happened in a run besides its steps, one JSON object per line; nothing is ever dropped.

    Args:
        path: the file. Only the main process writes.
    """

    def __init__(self, path: Path):
        self._path = path

    def write(self, event: str, *, step: int, **values) -> None:
        """Appends one event, with the time in UTC."""
        if not PartialState().is_main_process:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        row = {"time": now, "event": event, "step": step} | finite(values)
        try:
            append_json_line(self._path, row)
        except OSError as error:  # such as a disk that is full for a while
            warn(f"{event} at step {step} is not logged: {file_problem(error)}; the run goes on")


def finite(values: dict) -> dict:
    """The values, None for numbers that JSON does not know."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics file with their steps, none if there is no file.

    Those that cannot be read are named on the standard error and left out.

    Raises:
        OSError: if the file cannot be read.
    """
    return read_json_lines(path, rising="step", texts=("sample",))


class Throughput:
    """Counts the tokens of all processes between two log lines, and what is waited for.

    Args:
        elapsed_seconds: that the run has already taken.
    """

    def __init__(self, *, elapsed_seconds: float = 0.0):
        self._origin = time.perf_counter() - elapsed_seconds
        self.restart()

    @property
    def elapsed_seconds(self) -> float:
        """Of the whole run until now; starts at what was given."""
        return time.perf_counter() - self._origin

    def restart(self) -> None:
        """Starts the clock again, after a log line or work that is no training."""
        self._tokens = 0
        self._waited_seconds = 0.0
        self._started = time.perf_counter()

    def count(self, tokens: int, waited_seconds: float) -> None:
        """Adds the tokens of a step, and the time that this process waited for them."""
        self._tokens += tokens
        self._waited_seconds += waited_seconds

    @property
    def tokens_per_second(self) -> float:
        """Tokens counted since the start, divided by the seconds since then."""
        return self._tokens / (time.perf_counter() - self._started)

    @property
    def data_wait(self) -> float:
        """The share of the time since the start that this process waited for data, 0 to 1."""
        return self._waited_seconds / (time.perf_counter() - self._started)
