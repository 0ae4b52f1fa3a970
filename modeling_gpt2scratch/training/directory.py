"""The directory of a run: which checkpoint it continues from, what may be replaced, its records."""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from filelock import FileLock, Timeout

from modeling_gpt2scratch.checkpoints.checkpoint import (
    WEIGHTS_NAME,
    CheckpointError,
    find_checkpoints,
    verify_checkpoint,
)
from modeling_gpt2scratch.checkpoints.retention import (
    LATEST_NAME,
    checkpoints_by_step,
    latest_name,
    put_back_replaced,
)
from modeling_gpt2scratch.common.atomic_files import write_file, write_json
from modeling_gpt2scratch.common.console import warn
from modeling_gpt2scratch.common.output_directory import LOCK_NAME, REPLACED_NAME, require_alone
from modeling_gpt2scratch.distributed.accelerator import describe_environment
from modeling_gpt2scratch.distributed.processes import LaunchError, on_main_process, say
from modeling_gpt2scratch.hardware.compilation import NOT_COMPILED
from modeling_gpt2scratch.tracking.status import was_killed

from .checks import MAY_CHANGE, MEASURED_WITH, in_use_message, is_own
from .configuration import RUN_CONFIG_NAME, RUN_MARKER, TrainConfig
from .progress import TrainingProgress

DATA_MANIFEST_NAME = "data_manifest.json"  # a copy, for when the data are gone or elsewhere
# What describes one data set must not be taken for the description of a mixture.
DATA_MANIFEST_OF_SOURCE = "data_manifest-{}.json"
ENVIRONMENT_NAME = "environment.json"


def find_resume_point(config: TrainConfig) -> Path | None:
    """The checkpoint to continue from, verified, None for a run from scratch.

    With processes in a group, all of them call it, and share the work. Instead of a damaged one,
    `--resume auto` takes the one before, and says so.

    Raises:
        CheckpointError: if the one that was asked for is damaged or not there, or all are damaged.
    """
    if config.resume == "none":
        return None
    checkpoints = on_main_process(_candidates, config)
    if config.resume != "auto":
        verify_checkpoint(checkpoints[0])
        return checkpoints[0]
    problems = []
    for checkpoint in checkpoints:
        try:
            verify_checkpoint(checkpoint)
        except CheckpointError as error:
            problems.append(str(error))
            if os.environ.get("RANK", "0") == "0":
                warn(f"{error}; trying the checkpoint before it")
        else:
            return checkpoint
    if problems:
        raise CheckpointError(
            f"{config.output_dir}: expected an undamaged checkpoint that all processes can read, "
            f"found none of {len(problems)} ({problems[0]}); make sure that all "
            f"processes see this directory, or start in another one"
        )
    return None


class OutputLock:
    """Keeps other runs out of a directory, from `acquire` to `close` or the end of this process.

    A run that is replaced stays in it, set aside, until the new one is known to begin.
    """

    def __init__(self, output_dir: Path):
        self._output_dir = output_dir
        self._replaced = output_dir / REPLACED_NAME
        self._path = output_dir / LOCK_NAME
        self._lock = FileLock(self._path)
        self._identity: tuple[int, int] | None = None  # of the file; on the main process

    def acquire(self) -> None:
        """Makes the directory, and takes it.

        Raises:
            LaunchError: if another run has it.
        """
        self._output_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=1)  # others only look whether it is free
        except Timeout:
            raise LaunchError(in_use_message(self._output_dir)) from None
        self._identity = _identity_of(self._path)

    def set_aside(self) -> None:
        """Puts everything that is there into a hidden folder, from which `close` takes it back.

        Raises:
            OutputError: if another directory of ours is in it by now.
        """
        require_alone(self._output_dir)
        self._replaced.mkdir(exist_ok=True)  # one may be there, of a process that was killed
        for path in self._content():
            place = self._replaced / path.name
            if os.path.lexists(place):
                _remove(path)
            elif path.name == RUN_MARKER.name:  # what is left after a kill is known by it
                shutil.copy2(path, place)
            else:
                path.rename(place)

    def delete_replaced(self) -> None:
        """Deletes what was set aside, by this process or one that was killed."""
        if self._replaced.exists():
            shutil.rmtree(self._replaced)

    @property
    def is_lost(self) -> bool:
        """Whether this process took the directory, and it was deleted or replaced since.

        A file system that does not answer says nothing.
        """
        if self._identity is None:
            return False
        try:
            return _identity_of(self._path) != self._identity
        except OSError:
            return False

    def require(self) -> None:
        """Ends a run whose directory is no longer there.

        Raises:
            OSError: if it was deleted or replaced.
        """
        if self.is_lost:
            raise self.error_if_lost()

    def error_if_lost(self) -> OSError:
        """What to raise if the directory is lost."""
        return OSError(
            f"expected {self._output_dir} to stay where it is, found that it was deleted or "
            f"replaced while the run went on; start the run again"
        )

    def close(self) -> None:
        """Gives the directory back, with what was set aside and not deleted."""
        if self._identity is not None and self._replaced.exists():
            for path in self._content():
                _remove(path)
            for path in self._replaced.iterdir():
                path.rename(self._output_dir / path.name)
            self._replaced.rmdir()
        self._identity = None
        self._lock.release()

    def _content(self) -> list[Path]:
        """What is in the directory, beside the lock and what is set aside."""
        own = (LOCK_NAME, REPLACED_NAME)
        return [path for path in self._output_dir.iterdir() if path.name not in own]


@contextlib.contextmanager
def taken(config: TrainConfig, checkpoint: Path | None) -> Iterator[OutputLock]:
    """The run's directory, without a run that is replaced; given back only if the block raises.

    Args:
        checkpoint: what the run continues from.

    Raises:
        LaunchError, OutputError: if another run is at work there, or has been since.
    """
    output_dir = Path(config.output_dir)
    lock = OutputLock(output_dir)
    on_main_process(lock.acquire)
    try:
        on_main_process(refuse_newer_run, config, checkpoint)
        if was_killed(output_dir):
            say(
                f"{output_dir}: the last process of this run left no status; it was probably killed"
            )
        if config.overwrite and not (is_own(checkpoint, output_dir) or config.resume == "auto"):
            on_main_process(lock.set_aside)
        yield lock
    except BaseException:
        lock.close()
        raise


def refuse_newer_run(config: TrainConfig, checkpoint: Path | None) -> None:
    """Looks again, once the directory is taken: another run may have come and gone since.

    Args:
        checkpoint: what the run continues from.

    Raises:
        LaunchError: if there is a run now which this one would mix with.
    """
    output_dir = Path(config.output_dir)
    if config.overwrite or is_own(checkpoint, output_dir):
        return
    is_there = (output_dir / RUN_CONFIG_NAME).exists()
    if is_there and (config.resume != "auto" or find_checkpoints(output_dir)):
        raise LaunchError(
            f"expected no other run in {output_dir}, found one that was made while this one was "
            f"starting; choose another --output_dir, or continue it with --resume auto"
        )


def prepare_output_dir(
    config: TrainConfig,
    checkpoint: Path | None,
    accelerator: Accelerator,
    manifests: Sequence[Path],
    *,
    arguments: dict,
    is_done: bool,
    was_done: bool,
) -> None:
    """Puts a record of what the run is into its directory.

    The result of a run that goes on after its end is no longer that. A checkpoint of it has it.

    Args:
        config: every argument resolved; where the first weights are from, as the run began.
        checkpoint: what the run continues from.
        accelerator: of the launch, which says where it runs.
        manifests: of the data. One is copied as `data_manifest.json`, several as
            `data_manifest-1.json` and so on.
        arguments: of the run, as they are recorded.
        is_done: whether nothing is left to do.
        was_done: whether every step was made before this launch.
    """
    output_dir = Path(config.output_dir)
    own = is_own(checkpoint, output_dir)
    if own and not is_done:
        for name in (WEIGHTS_NAME, "config.json"):
            (output_dir / name).unlink(missing_ok=True)
    record = RUN_MARKER.content() | arguments | _origin(config, checkpoint)
    write_json(output_dir / RUN_CONFIG_NAME, record)
    # A run that was done keeps the record of where it was trained.
    if not (own and was_done and (output_dir / ENVIRONMENT_NAME).exists()):
        write_json(output_dir / ENVIRONMENT_NAME, describe_environment(accelerator))
    for number, manifest in enumerate(manifests, start=1):
        is_alone = len(manifests) == 1
        name = DATA_MANIFEST_NAME if is_alone else DATA_MANIFEST_OF_SOURCE.format(number)
        write_file(output_dir / name, manifest.read_bytes())


def recorded_arguments(
    config: TrainConfig,
    accelerator: Accelerator,
    compiled: str,
    checkpoint: Path | None,
    state: dict,
    progress: TrainingProgress,
) -> dict[str, Any]:
    """The arguments that ran, whatever was asked for.

    Args:
        checkpoint: what the run continues from.
        state: of that checkpoint, else empty.
        progress: where the run is; one that was done keeps what its steps were made with.
    """
    arguments = dataclasses.asdict(config) | {"mixed_precision": accelerator.mixed_precision}
    if compiled.startswith(NOT_COMPILED):
        arguments["compile"] = "no"
    names: tuple[str, ...] = ()
    if progress.was_done and is_own(checkpoint, Path(config.output_dir)):
        names += (*MAY_CHANGE, "compile", "tf32", "micro_batch_size")
        if progress.is_done(config):  # nothing is measured again, either
            names += MEASURED_WITH
    before = state.get("config", {})
    return arguments | {name: before[name] for name in names if name in before}


def leave_later_checkpoints(checkpoint: Path | None, output_dir: Path) -> None:
    """Makes the checkpoint that a run continues from the newest one of its own directory.

    What lies beyond it belongs to a continuation that is left here, which is said, and to which
    nothing goes back.
    """
    if checkpoint is None or checkpoint.resolve().parent != output_dir.resolve():
        return
    newest = find_checkpoints(output_dir)[0]
    if newest.name != checkpoint.name:
        write_file(output_dir / LATEST_NAME, f"{checkpoint.name}\n".encode())
        say(f"{output_dir}: continues from {checkpoint.name}, and no longer uses {newest.name}")


def best_checkpoint(output_dir: Path, step: int | None) -> Path:
    """The checkpoint of `step`, which had the lowest validation loss.

    Raises:
        CheckpointError: if `step` is None, or its checkpoint is not there.
    """
    if step is None:
        raise CheckpointError(
            f"{output_dir}: expected the checkpoint of a validation for --final best, found none; "
            f"with --final last the last weights become the result, in place of one that is there"
        )
    checkpoint = checkpoints_by_step(output_dir).get(step)
    if checkpoint is None:  # somebody has deleted it
        raise CheckpointError(
            f"{output_dir}: expected checkpoint-{step}, which had the lowest validation loss, for "
            f"--final best, found none; put it back, or add --final last --resume auto"
        )
    return checkpoint


def _origin(config: TrainConfig, checkpoint: Path | None) -> dict[str, str | bool]:
    """Where the first weights are from; later, nobody can tell a directory from a Hub name."""
    if config.init_from is None:
        return {}
    if checkpoint is not None:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            earlier = json.loads((checkpoint.parent / RUN_CONFIG_NAME).read_bytes())
            return {n: earlier[n] for n in ("init_from", "init_from_is_local") if n in earlier}
    return {"init_from_is_local": Path(config.init_from).exists()}


def _remove(path: Path) -> None:
    """Deletes a file, a link or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _identity_of(path: Path) -> tuple[int, int] | None:
    """What tells a file from any other, as long as it is open; None if it is not there."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


def _candidates(config: TrainConfig) -> list[Path]:
    """The checkpoints that this run can continue from, best first.

    Raises:
        CheckpointError: if one was asked for that is not there, or if the run has had some and none
            is left: to begin anew would replace its result.
    """
    is_auto = config.resume == "auto"
    directory = Path(config.output_dir if is_auto else config.resume)
    if is_auto:
        put_back_replaced(directory)
    checkpoints, newest = find_checkpoints(directory), latest_name(directory)
    if checkpoints and newest and newest not in {path.name for path in checkpoints}:
        warn(
            f"{directory}: expected {newest}, which `{LATEST_NAME}` names, found no such complete "
            f"checkpoint; trying {checkpoints[0].name}"
        )
    if is_auto and not checkpoints and (newest or (directory / WEIGHTS_NAME).is_file()):
        raise CheckpointError(
            f"{directory}: expected {newest or 'a checkpoint'} to resume from, found a run without "
            f"complete checkpoints; put it back, or start in another directory"
        )
    if is_auto:
        return checkpoints
    if not checkpoints:
        raise CheckpointError(
            f"{config.resume}: expected a complete checkpoint, found none; "
            f"give a run's directory or one of its checkpoint-N"
        )
    return checkpoints
