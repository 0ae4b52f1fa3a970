"""The directory of a run: which checkpoint it continues from, and what may be replaced in it."""

import dataclasses
import shutil
from pathlib import Path

from .atomic_files import require_free, write_json
from .checkpointing import CheckpointError, find_checkpoint
from .train_config import CONFIG_NAME, TrainConfig


def find_resume_point(config: TrainConfig) -> Path | None:
    """The checkpoint to continue from, None for a run from scratch."""
    output_dir = Path(config.output_dir)
    if config.resume == "none":
        return None
    if config.resume == "auto":
        require_free(output_dir, marker=CONFIG_NAME, overwrite=True)
        return find_checkpoint(output_dir)
    checkpoint = find_checkpoint(Path(config.resume))
    if checkpoint is None:
        raise CheckpointError(
            f"{config.resume}: expected a complete checkpoint, found none; "
            f"give a run's directory or one of its checkpoint-N"
        )
    if not _is_within(checkpoint, output_dir):
        require_free(output_dir, marker=CONFIG_NAME, overwrite=config.overwrite)
    return checkpoint


def make_output_dir(config: TrainConfig, checkpoint: Path | None) -> None:
    """The directory of the run with its resolved arguments; `--overwrite` empties it first."""
    output_dir = Path(config.output_dir)
    is_continued = config.resume == "auto" or (checkpoint and _is_within(checkpoint, output_dir))
    if config.overwrite and not is_continued and output_dir.exists():
        shutil.rmtree(output_dir)  # `require_free` has seen that it holds a run
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / CONFIG_NAME, dataclasses.asdict(config))


def _is_within(checkpoint: Path, output_dir: Path) -> bool:
    """Whether the checkpoint belongs to the run in `output_dir`."""
    return checkpoint.resolve().is_relative_to(output_dir.resolve())
