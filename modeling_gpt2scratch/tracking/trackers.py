"""Trackers beside `metrics.jsonl`: wandb, TensorBoard and trackio, none of which can end a run.

They are Accelerate's, with what a run that stops, resumes and returns to earlier steps needs. A
tracker that cannot start, or fails later, is said in one line and left out; under `--strict` one
that cannot start ends the run before its first step.
"""

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from modeling_gpt2scratch.common.console import tell
from modeling_gpt2scratch.common.errors import MendableError, one_line
from modeling_gpt2scratch.distributed.processes import on_main_process, say

from .metrics import JsonlTracker

# wandb's own waiting, before a run goes on offline and after it is over; data that were not sent
# stay on the disk. By itself it waits a minute and a half before and for ever after.
WANDB_START_SECONDS = 30
WANDB_FINISH_SECONDS = 300
TENSORBOARD_NAME = "tensorboard"  # directory in output_dir


class TrackerError(MendableError, ValueError):
    """A tracker that was asked for and cannot be had, under `--strict`."""


def start_trackers(
    accelerator: Accelerator,
    names: Sequence[str],
    *,
    project: str,
    output_dir: str,
    arguments: dict,
    strict: bool,
    jsonl: JsonlTracker,
    saved: dict[str, str],
) -> dict[str, str]:
    """Starts metrics.jsonl and the trackers of these names; all processes call it.

    Args:
        accelerator: of the run; it logs to these trackers from now on.
        names: of wandb, tensorboard and trackio.
        project: in which the trackers show the run.
        output_dir: of the run, whose name is the run's.
        arguments: of the run, for its page in the trackers.
        strict: refuse a tracker that cannot start.
        jsonl: the tracker that is always there.
        saved: what this function returned before the checkpoint that the run continues from; empty
            for a new run.

    Returns:
        By tracker, the identity under which a later process can continue its run.

    Raises:
        TrackerError: under `strict`, if one cannot start; on every process alike.
        OSError: if metrics.jsonl cannot be written; on every process alike.
    """
    places = {"project": project, "output_dir": output_dir, "resume_step": jsonl.resume_step}
    trackers = [
        OptionalTracker(_tracker(name, saved.get(name), may_be_offline=not strict, **places))
        for name in names
    ]
    accelerator.log_with = [jsonl, *trackers]

    def start() -> tuple[dict[str, str], list[str]]:
        accelerator.init_trackers(project, config=arguments)
        failed = [tracker for tracker in trackers if tracker.problem is not None]
        problems = [f"without {tracker.name}: {tracker.problem}" for tracker in failed]
        ids = {t.name: t.run_id for t in trackers if t not in failed and t.run_id is not None}
        working = [t for t in accelerator.trackers if t not in failed]
        # The only one that raises an error comes last, so that the others have had the values.
        accelerator.trackers = sorted(working, key=lambda t: t is jsonl)
        for tracker in failed:
            tracker.finish()
        return ids, problems

    ids, problems = on_main_process(start)  # the others log nothing, and have no trackers
    if problems and strict:
        raise TrackerError("; ".join(problems))
    for problem in problems:
        say(f"{problem}; the run goes on with {jsonl.tracker.name}")
    return saved | ids


class OptionalTracker(GeneralTracker):
    """A tracker that raises nothing: its first error is kept in `problem`, and it is left out.

    Args:
        inner: the tracker; its attribute `run_id`, if any, tells how to continue its run.
    """

    requires_logging_directory = False
    main_process_only = True

    def __init__(self, inner: GeneralTracker):
        self.name = inner.name
        super().__init__()
        self._inner = inner
        self._is_started = False
        self.problem: str | None = None

    @property
    def tracker(self) -> Any:
        """What the library itself calls the run."""
        return self._inner.tracker

    @property
    def run_id(self) -> str | None:
        """How to continue this run, None if there is nothing to continue."""
        return getattr(self._inner, "run_id", None) if self._is_started else None

    def start(self) -> None:
        """Starts the run."""
        self._attempt(self._inner.start)
        self._is_started = self.problem is None

    def store_init_configuration(self, values: dict) -> None:
        """Records the arguments of the run; a tracker that cannot take them has not started."""
        self._attempt(self._inner.store_init_configuration, values)

    def log(self, values: dict, step: int | None = None, **kwargs) -> None:
        """Logs values of a step; the first error is printed, and nothing is logged after it."""
        if self.problem is None:
            self._attempt(self._inner.log, values, step=step, **kwargs)
            if self.problem is not None:
                tell(f"step {step}: no longer logged to {self.name}: {self.problem}")

    def finish(self) -> None:
        """Ends the run, if it was started."""
        if self._is_started:
            self._is_started = False
            self.problem = None
            self._attempt(self._inner.finish)
            if self.problem is not None:
                tell(f"{self.name} did not close cleanly: {self.problem}")

    def _attempt(self, function: Callable, *args, **kwargs) -> None:
        """Calls `function` unless there was a problem before; whatever it raises is one."""
        if self.problem is not None:
            return
        try:
            function(*args, **kwargs)
        except ModuleNotFoundError as error:
            self.problem = (
                f'expected the package {error.name}, found none; pip install -e ".[{self.name}]"'
            )
        except Exception as error:  # a library may fail in any way, and training is worth more
            self.problem = one_line(error)


class WandbRun(WandBTracker):
    """Accelerate's tracker for wandb, without questions, long waits and lost steps.

    wandb drops what is logged for a lower step than the last, which a resumed run does. So the step
    is a value like the others, and every curve is drawn over it.

    Args:
        project: in which the run is shown.
        may_be_offline: whether to write the run to disk if wandb cannot be reached.
        kwargs: of `wandb.init`.
    """

    def __init__(self, project: str, *, may_be_offline: bool, **kwargs):
        super().__init__(project, **kwargs)
        self._may_be_offline = may_be_offline

    @property
    def run_id(self) -> str:
        """wandb's name for the run."""
        return self.run.id

    def start(self) -> None:
        """Starts or continues the run, in the mode that WANDB_MODE or `wandb offline` chose.

        Raises:
            ValueError: without credentials.
            CommError: if wandb cannot be reached, or refuses the credentials, and the run may not
                be offline.
        """
        import wandb

        self.init_kwargs["settings"] = wandb.Settings(
            init_timeout=WANDB_START_SECONDS, finish_timeout=WANDB_FINISH_SECONDS
        )
        is_online = wandb.setup().settings.mode not in ("offline", "dryrun", "disabled")
        if is_online and not wandb.login(prompt=False, verify=False):
            raise ValueError(
                "expected credentials, found none; run `wandb login`, or set WANDB_API_KEY or "
                "WANDB_MODE=offline"
            )
        try:
            super().start()
        except wandb.errors.CommError as error:
            if not self._may_be_offline:
                raise
            self.init_kwargs["mode"] = "offline"
            super().start()
            upload = f"after the run, `wandb sync {Path(self.run.dir).parent}` uploads it"
            print(f"wandb offline: {one_line(error)}; {upload}")
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, values: dict, step: int | None = None, **kwargs) -> None:
        """Logs the values with their step; a sample of text becomes a table of one row."""
        import wandb

        row = values | {"step": step}
        if "sample" in values:
            row["sample"] = wandb.Table(columns=["step", "text"], data=[[step, values["sample"]]])
        super().log(row, **kwargs)


class TensorBoardRun(TensorBoardTracker):
    """Accelerate's tracker for TensorBoard, for numbers only.

    Args:
        first_step: of this process; what an earlier one logged from there on is hidden.
    """

    def __init__(self, output_dir: str, *, first_step: int):
        super().__init__(TENSORBOARD_NAME, output_dir, purge_step=first_step)
        self._last_step = -1

    def store_init_configuration(self, values: dict) -> None:
        """Records the arguments that are numbers."""
        super().store_init_configuration(_numbers(values))

    def log(self, values: dict, step: int | None = None, **kwargs) -> None:
        """Logs the numbers; a run that returned to an earlier step takes back what it logged."""
        if step < self._last_step:
            self.writer.close()
            self.init_kwargs["purge_step"] = step
            self.start()
        self._last_step = step
        super().log(_numbers(values), step=step, **kwargs)


class TrackioRun(TrackioTracker):
    """Accelerate's tracker for trackio, for numbers only.

    Args:
        project: in which the run is shown.
        run_id: the name of the run; one that exists is continued.
    """

    def __init__(self, project: str, *, run_id: str):
        super().__init__(project, name=run_id, resume="allow", embed=False)
        self.run_id = run_id

    def log(self, values: dict, step: int | None = None, **kwargs) -> None:
        """Logs the numbers."""
        super().log(_numbers(values), step=step, **kwargs)


def _tracker(
    name: str,
    run_id: str | None,
    *,
    project: str,
    output_dir: str,
    resume_step: int,
    may_be_offline: bool,
) -> GeneralTracker:
    """The tracker called `name`, not started yet; `run_id` is that of the run it continues."""
    run_name = Path(output_dir).resolve().name
    if name == "wandb":
        options = {"name": run_name, "dir": output_dir, "id": run_id, "resume": "allow"}
        return WandbRun(project, may_be_offline=may_be_offline, **options)
    if name == "tensorboard":
        return TensorBoardRun(output_dir, first_step=resume_step + 1)
    # Two runs may have directories of one name, which must not become one run.
    return TrackioRun(project, run_id=run_id or f"{run_name}-{secrets.token_hex(4)}")


def _numbers(values: dict) -> dict[str, int | float]:
    """The values that make a curve."""
    return {name: value for name, value in values.items() if isinstance(value, int | float)}
