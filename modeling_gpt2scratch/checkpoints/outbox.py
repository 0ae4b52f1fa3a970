"""Checkpoints that are to go to the Hub and are not there yet: `OUTPUT_DIR/to_push/step-N/`.

What is set aside has a life of its own: a checkpoint that is pruned meanwhile stays here until it
has arrived, and a process that ends leaves to the next one what is still to be done. Where the file
system has hard links, nothing is copied; the optimizer's state and the state of the run, which
names places of this machine, stay behind.
"""

import contextlib
import os
import shutil
from pathlib import Path

from modeling_gpt2scratch.common.atomic_files import OLD_SUFFIX, new_directory
from modeling_gpt2scratch.common.checksums import read_checksums, write_checksums

from .checkpoint import OPTIMIZER_FOLDER
from .retention import STATE_NAME, step_of

OUTBOX_NAME = "to_push"
REVISION_PREFIX = "step-"  # of a folder here, and of the branch that it becomes
SENDING_SUFFIX = ".sending"


class Outbox:
    """What a run has still to send, oldest first."""

    def __init__(self, output_dir: Path):
        self._folder = output_dir / OUTBOX_NAME

    def clear_leftovers(self) -> None:
        """What a killed process was sending is to be sent again; what it had not set aside goes."""
        for path in self._folder.glob(f".{REVISION_PREFIX}*"):
            whole = self._folder / path.stem.removeprefix(".")
            if path.suffix in (OLD_SUFFIX, SENDING_SUFFIX) and not whole.exists():
                os.rename(path, whole)
            else:
                shutil.rmtree(path, ignore_errors=True)

    def steps(self) -> list[int]:
        """The steps that wait, in order."""
        names = (path.name for path in self._folder.glob(f"{REVISION_PREFIX}*"))
        steps = (name.removeprefix(REVISION_PREFIX) for name in names)
        return sorted(int(step) for step in steps if step.isdecimal())

    def add(self, checkpoint: Path) -> None:
        """Sets a complete checkpoint aside, in the place of another one of its step.

        Raises:
            OSError: if the disk is full.
        """
        entries = {
            name: entry for name, entry in read_checksums(checkpoint).items() if _is_public(name)
        }
        with new_directory(self._place_of(step_of(checkpoint))) as partial:
            for name in entries:
                _link(checkpoint / name, partial / name)
            write_checksums(partial, entries)

    def take(self, step: int) -> Path:
        """The folder of a step, which does not wait any more; a later `add` leaves it alone."""
        folder = self._folder / f".{REVISION_PREFIX}{step}{SENDING_SUFFIX}"
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(self._place_of(step), folder)
        return folder

    def give_back(self, folder: Path) -> None:
        """Lets what was taken wait again, unless its step was set aside anew."""
        whole = self._folder / folder.stem.removeprefix(".")
        if whole.exists():
            self.remove(folder)
        else:
            os.rename(folder, whole)

    def remove(self, folder: Path) -> None:
        """Removes what was taken, and the outbox itself if nothing is left in it."""
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # something is left, or somebody deleted it
            self._folder.rmdir()

    def _place_of(self, step: int) -> Path:
        return self._folder / f"{REVISION_PREFIX}{step}"


def _is_public(name: str) -> bool:
    """Whether a file of a checkpoint goes to the Hub."""
    return name != STATE_NAME and not name.startswith(f"{OPTIMIZER_FOLDER}/")


def _link(source: Path, target: Path) -> None:
    """One more name for a file, or a copy where the file system knows only one."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
