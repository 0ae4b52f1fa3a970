"""The directory of a run: which checkpoint it continues from, what may be replaced, its records."""

import contextlib
import dataclasses
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from accelerate import PartialState
from filelock import FileLock, Timeout

from modeling_gpt2scratch.checkpoints.checkpoint import (
    CheckpointError,
    find_checkpoints,
    verify_checkpoint,
)
from modeling_gpt2scratch.common.atomic_files import LOCK_NAME, require_free, write_file, write_json
from modeling_gpt2scratch.distributed.processes import LaunchError, on_main_process

from .configuration import CONFIG_NAME, TrainConfig
from .progress import TrainingProgress

DATA_MANIFEST_NAME = "data_manifest.json"  # a copy, for when the data are gone or elsewhere
ENVIRONMENT_NAME = "environment.json"
STATUS_NAME = "status.json"


def find_resume_point(config: TrainConfig) -> Path | None:
    """The checkpoint to continue from, verified, None for a run from scratch.

    With processes in a group, all of them call it, and share the work. Instead of a damaged one,
    `--resume auto` takes the one before, and says so.

    Raises:
        CheckpointError: if the one that was asked for is damaged or not there, or all are damaged.
        FileExistsError: if the directory of the run is in use.
    """
    if config.resume == "none":
        return None
    checkpoints = on_main_process(_candidates, config)
    if config.resume != "auto":
        verify_checkpoint(checkpoints[0])
        return checkpoints[0]
    for checkpoint in checkpoints:
        try:
            verify_checkpoint(checkpoint)
        except CheckpointError as error:
            if os.environ.get("RANK", "0") == "0":
                print(f"warning: {error}; trying the checkpoint before it", file=sys.stderr)
        else:
            return checkpoint
    if checkpoints:
        raise CheckpointError(
            f"{config.output_dir}: expected an undamaged checkpoint, found {len(checkpoints)} "
            f"damaged; start again with --resume none --overwrite"
        )
    return None


class OutputLock:
    """Keeps other runs out of a directory, from `acquire` to `close` or the end of this process.

    Args:
        output_dir: of the run.
    """

    def __init__(self, output_dir: Path):
        self._output_dir = output_dir
        self._lock = FileLock(output_dir / LOCK_NAME)

    def acquire(self) -> None:
        """Makes the directory, and takes it.

        Raises:
            LaunchError: if another run has it.
        """
        self._output_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise LaunchError(
                f"expected no other run in {self._output_dir}, found one that is still going on; "
                f"wait for it, stop it, or choose another --output_dir"
            ) from None

    def close(self) -> None:
        """Gives the directory back."""
        self._lock.release()


def make_output_dir(
    config: TrainConfig, checkpoint: Path | None, environment: dict, manifests: Sequence[Path]
) -> None:
    """Puts a record of what the run is into its directory; `--overwrite` empties that first.

    Args:
        config: written as it is, every argument resolved.
        checkpoint: what the run continues from.
        environment: JSON values that say where it runs.
        manifests: of the data. One is copied as `data_manifest.json`, several as
            `data_manifest-1.json` and so on.
    """
    output_dir = Path(config.output_dir)
    is_continued = config.resume == "auto" or (checkpoint and is_within(checkpoint, output_dir))
    if config.overwrite and not is_continued:
        empty_directory(output_dir)  # `require_free` has seen that it holds a run
    write_json(output_dir / CONFIG_NAME, dataclasses.asdict(config))
    write_json(output_dir / ENVIRONMENT_NAME, environment)
    for number, manifest in enumerate(manifests, start=1):
        # What describes one data set must not be taken for the description of a mixture.
        name = DATA_MANIFEST_NAME if len(manifests) == 1 else f"data_manifest-{number}.json"
        write_file(output_dir / name, manifest.read_bytes())


@contextlib.contextmanager
def recorded_status(output_dir: Path, progress: TrainingProgress) -> Iterator[dict[str, str]]:
    """Keeps `status.json` for schedulers, which cannot tell a clean stop by the launcher's code.

    It says "running" during the block, then "failed" with a message if the block raised, else what
    the block put under "status" of the yielded dictionary. Only the main process writes.
    """
    outcome = {"status": "running"}

    def write() -> None:
        if PartialState().is_main_process:
            write_json(output_dir / STATUS_NAME, outcome | {"step": progress.step})

    write()
    try:
        yield outcome
    except BaseException as error:
        outcome |= {"status": "failed", "message": str(error) or type(error).__name__}
        raise
    finally:
        with contextlib.suppress(OSError):  # a full disk has been reported already
            write()


def empty_directory(directory: Path) -> None:
    """Deletes everything in a directory but the lock."""
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK_NAME:
            path.unlink()


def _candidates(config: TrainConfig) -> list[Path]:
    """The checkpoints that this run can continue from, best first.

    Raises:
        CheckpointError: if one was asked for that is not there.
        FileExistsError: if the directory of the run is in use.
    """
    output_dir = Path(config.output_dir)
    if config.resume == "auto":
        require_free(output_dir, marker=CONFIG_NAME, overwrite=True)
        return find_checkpoints(output_dir)
    checkpoints = find_checkpoints(Path(config.resume))
    if not checkpoints:
        raise CheckpointError(
            f"{config.resume}: expected a complete checkpoint, found none; "
            f"give a run's directory or one of its checkpoint-N"
        )
    if not is_within(checkpoints[0], output_dir):
        require_free(output_dir, marker=CONFIG_NAME, overwrite=config.overwrite)
    return checkpoints


def is_within(checkpoint: Path, output_dir: Path) -> bool:
    """Whether the checkpoint belongs to the run in `output_dir`."""
    return checkpoint.resolve().is_relative_to(output_dir.resolve())
