"""Which checkpoints of a run there are, which may go, and what killed processes left behind."""

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from modeling_gpt2scratch.common.atomic_files import OLD_SUFFIX, PARTIAL_SUFFIX
from modeling_gpt2scratch.common.console import warn

CHECKPOINT_PREFIX = "checkpoint-"
STATE_NAME = "training_state.json"
LATEST_NAME = "latest"  # a text file with the name of the checkpoint that was written last
PRUNED_SUFFIX = ".pruned"


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written, by its name."""
    return int(checkpoint.name.removeprefix(CHECKPOINT_PREFIX))


def checkpoints_by_step(output_dir: Path) -> dict[int, Path]:
    """The complete checkpoints of a run."""
    found = {}
    for path in output_dir.glob(f"{CHECKPOINT_PREFIX}*"):
        step = path.name.removeprefix(CHECKPOINT_PREFIX)
        if step.isdecimal() and (path / STATE_NAME).is_file():
            found[int(step)] = path
    return found


def latest_name(output_dir: Path) -> str | None:
    """The checkpoint that `latest` names, whether or not it is there; None without a name."""
    try:
        return (output_dir / LATEST_NAME).read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):
        return None


def latest_step(output_dir: Path) -> int | None:
    """The step of the checkpoint that `latest` names, None if there is no such checkpoint."""
    steps = {path.name: step for step, path in checkpoints_by_step(output_dir).items()}
    return steps.get(latest_name(output_dir))


def expired(
    steps: Iterable[int],
    *,
    written: int,
    before: int | None,
    best: int | None = None,
    keep_checkpoints: int,
    keep_every: int,
) -> list[int]:
    """Steps whose checkpoints may go, in order.

    Checkpoints beyond the one before belong to a continuation that this run has left by resuming an
    earlier one. They do not count as newer, and go as soon as the run has passed them.

    Args:
        steps: of all checkpoints.
        written: the step of the one just written, which stays.
        before: the step of the one that was written before it, None if that is not known.
        best: the step of the one with the lowest validation loss, which stays if it is known.
        keep_checkpoints: that many of the newest stay, 0 for all.
        keep_every: multiples of it stay, 0 for none.
    """
    if keep_checkpoints == 0:
        return []
    past = sorted(step for step in set(steps) | {written} if step <= written)
    left = set() if before is None else {step for step in past if before < step < written}
    own = [step for step in past if step not in left]
    kept = {written, best, *own[-keep_checkpoints:]}
    if keep_every:
        kept |= {step for step in own if step % keep_every == 0}
    return [step for step in past if step not in kept]


def most_to_come(
    here: Iterable[int],
    *,
    step: int,
    last_step: int,
    save_every: int,
    keep_checkpoints: int,
    keep_every: int,
    keep_best: bool,
    eval_every: int = 0,
) -> int:
    """How many more checkpoints than those that are here a run will have at one time.

    Stops are not foreseen, nor which validations are the best: with `keep_best` it is at most this.

    Args:
        here: steps of the checkpoints that there are.
        step: at which the run is.
        save_every: steps between checkpoints, 0 for none before the last step.
        keep_every: as in `expired`, a multiple of `save_every`.
        keep_best: whether the one with the lowest validation loss stays; each is saved.
        eval_every: steps between validations, 0 for none before the last step.
    """
    if step >= last_step:
        return 0
    every = save_every or last_step
    n_saves = last_step // every - step // every + (last_step % every > 0)
    if keep_checkpoints == 0:
        validated = range(eval_every, last_step, eval_every) if keep_best and eval_every else ()
        return n_saves + sum(at > step and at % every > 0 for at in validated)
    # The next is written before the oldest of the newest goes, and those here make room.
    n_newest, n_multiples, left = keep_checkpoints + 1, 0, [*here]
    if keep_every:
        left = [step for step in left if step % keep_every]
        last_older = (step // every + n_saves - n_newest) * every
        n_multiples = max(0, last_older // keep_every - step // keep_every)
    most = n_newest + keep_best - len(left)
    return (most if keep_best else min(most, n_saves)) + n_multiples


def prune(output_dir: Path, **rule: int | None) -> None:
    """Deletes what is `expired` by a rule, each under a hidden name: none is seen half gone."""
    checkpoints = checkpoints_by_step(output_dir)
    for step in expired(checkpoints, **rule):
        hidden = _out_of_the_way(checkpoints[step], f".{checkpoints[step].name}")
        shutil.rmtree(hidden, ignore_errors=True)  # what cannot go now goes at the next start


def put_back_replaced(output_dir: Path) -> None:
    """Returns a checkpoint to its place if a save was killed before its successor stood there."""
    for path in output_dir.glob(f".{CHECKPOINT_PREFIX}*{OLD_SUFFIX}"):
        replaced = output_dir / path.name.removeprefix(".").removesuffix(OLD_SUFFIX)
        if not replaced.exists():
            os.rename(path, replaced)


def clear_leftovers(output_dir: Path) -> None:
    """Removes what killed saves and prunes left; an old checkpoint without a successor returns."""
    put_back_replaced(output_dir)
    with contextlib.suppress(OSError):  # which is in nobody's way
        (output_dir / f".{LATEST_NAME}{PARTIAL_SUFFIX}").unlink(missing_ok=True)
    for path in [*output_dir.glob(f".{CHECKPOINT_PREFIX}*")]:
        if path.suffix in (PARTIAL_SUFFIX, OLD_SUFFIX, PRUNED_SUFFIX):
            # On a network file system, what a process of another machine has open cannot go.
            if path.suffix != PRUNED_SUFFIX:
                path = _out_of_the_way(path, path.stem)
            shutil.rmtree(path, ignore_errors=True)
            if path.exists():
                warn(
                    f"{path}: expected to delete what an earlier process left, found that some of "
                    f"it cannot be deleted; it is tried again at the next start"
                )


def _out_of_the_way(path: Path, name: str) -> Path:
    """A directory under a hidden name that no save uses; it can be renamed while it is in use."""
    hidden = path.with_name(f"{name}{PRUNED_SUFFIX}")
    for number in itertools.count(2):
        if not hidden.exists():  # as an earlier one does that could not be deleted
            break
        hidden = path.with_name(f"{name}.{number}{PRUNED_SUFFIX}")
    os.rename(path, hidden)
    return hidden
