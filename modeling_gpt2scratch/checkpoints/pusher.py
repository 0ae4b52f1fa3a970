"""Checkpoints of a run as branches `step-N` of one repository of the Hub, while the run goes on.

The writer sets a checkpoint aside (see `outbox`), and a thread of the main process sends it: one
commit with the weights, the tokenizer, the code, the metrics until then and the checksums of all of
it. A branch counts as sent when the Hub itself names the checksums that the files have here.
Whatever goes wrong is said in one line and noted among the run's events; the training goes on.
"""

import math
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from accelerate import PartialState

from modeling_gpt2scratch.common.atomic_files import write_json_lines
from modeling_gpt2scratch.common.checksums import checksum, read_checksums, write_checksums
from modeling_gpt2scratch.common.console import activity, tell, warn
from modeling_gpt2scratch.common.errors import SourceError, named, one_line
from modeling_gpt2scratch.common.hub_requests import (
    DEFAULT_RETRIES,
    PUSH_HINTS,
    make_repository,
    reason_of,
    temporary_cause,
    with_retries,
)
from modeling_gpt2scratch.common.json_lines import read_json_lines
from modeling_gpt2scratch.common.retries import Retries
from modeling_gpt2scratch.distributed.processes import on_main_process

from .outbox import REVISION_PREFIX, Outbox
from .retention import step_of
from .revisions import push_revision

PAUSE_SECONDS = 60.0  # after an error of the file system
FINISH_SECONDS = 5.0  # for which the other processes wait for the main one at a time


class RevisionPusher:
    """Sends checkpoints of a run in the background, on the main process; others' does nothing.

    The thread lives as long as the `with` block. What it has not sent by then waits in the run's
    directory for the next one.

    Args:
        repository: OWNER/NAME; None sends nothing.
        private: make it private.
        metrics: file of JSON lines with the metrics of the steps.
        step: the last one that has a line there.
        record: notes an event of a step, with values fit for JSON.
        retries: how long to go on while the Hub fails.
    """

    def __init__(
        self,
        output_dir: Path,
        repository: str | None,
        *,
        private: bool,
        metrics: Path,
        step: int,
        record: Callable[..., None],
        retries: Retries = DEFAULT_RETRIES,
    ):
        self._output_dir = output_dir
        self._outbox = Outbox(output_dir)
        self._repository = repository
        self._private = private
        self._is_there = False  # as far as this process knows
        self._metrics = metrics
        self._logged_step: float = step
        self._record_event = record
        self._retries = retries
        self._condition = threading.Condition()
        self._failed: set[int] = set()  # not tried again before another one has arrived
        self._sending: int | None = None
        self._is_finishing = self._is_closed = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "RevisionPusher":
        if self._repository is not None and PartialState().is_main_process:
            self._outbox.clear_leftovers()
            for step in self._outbox.steps():
                if step > self._logged_step:  # of a continuation that is left
                    self._outbox.remove(self._outbox.take(step))
            self._thread = threading.Thread(target=self._work, name="pusher", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()

    def hold(self, checkpoint: Path) -> None:
        """Sets a complete checkpoint aside to be sent, before any other is pruned.

        If the disk has no room for one more checkpoint, what has waited longest is given up.
        """
        try:
            self._make_room(sum(entry["size"] for entry in read_checksums(checkpoint).values()))
            self._outbox.add(checkpoint)
        except Exception as error:  # the checkpoint itself is complete, and worth more
            self._note_failure(step_of(checkpoint), f"{checkpoint}: {named(error)}")
        with self._condition:
            self._condition.notify_all()

    def logged(self, step: int) -> None:
        """Says that the metrics have the line of a step, whose checkpoint may go now."""
        with self._condition:
            self._logged_step = step
            self._condition.notify_all()

    def finish(self) -> None:
        """Waits until all is sent, or has failed once more; all processes call it together.

        Raises:
            KeyboardInterrupt: after Ctrl-C; the rest then waits for the next process.
        """
        with activity(f"sending checkpoints to {self._repository}"):
            # Nobody waits longer for the main process than a group of processes allows.
            while on_main_process(self._finish_for_a_while):
                pass
        if self._thread is not None and (left := self._outbox.steps()):
            warn(
                f"{self._repository}: expected all checkpoints there, found that "
                f"{', '.join(f'{REVISION_PREFIX}{step}' for step in left)} could not be sent; "
                f"the same command with --resume auto tries again"
            )

    def _finish_for_a_while(self) -> bool:
        """Whether something is still to be sent after a few seconds of waiting."""
        if self._thread is None:
            return False
        with self._condition:
            if not self._is_finishing:
                self._is_finishing = True
                self._failed.clear()
                self._logged_step = math.inf
                self._condition.notify_all()
            return not self._condition.wait_for(self._is_done, FINISH_SECONDS)

    def _is_done(self) -> bool:
        is_idle = self._sending is None and self._next_step() is None
        return is_idle or not self._thread.is_alive()

    def _next_step(self) -> int | None:
        """The oldest step that can be sent now."""
        waiting = set(self._outbox.steps()) - self._failed
        return min((step for step in waiting if step <= self._logged_step), default=None)

    def _work(self) -> None:
        """Sends what waits, one after the other, until the block ends.

        An error of the file system is waited out, but not by a run that is over.
        """
        folder, told = None, ""
        while True:
            try:
                if folder is not None and folder.exists():  # the error came while it was taken
                    self._outbox.give_back(folder)
                if (folder := self._next_folder()) is None:
                    return
                self._send(self._sending, folder)
                folder = None
            except OSError as error:
                if (problem := one_line(error)) != told:
                    hint = "the run goes on, and sending is tried again"
                    warn(f"{self._output_dir}: {problem}; {hint}")
                told = problem
                with self._condition:
                    if self._is_finishing or self._is_closed:
                        return
                    self._condition.wait_for(
                        lambda: self._is_closed or self._is_finishing, PAUSE_SECONDS
                    )

    def _next_folder(self) -> Path | None:
        """What is to be sent next, as soon as there is something; None at the end of the block."""
        with self._condition:
            self._sending = None
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._is_closed or self._next_step() is not None)
            if self._is_closed:
                return None
            self._sending = self._next_step()
            return self._outbox.take(self._sending)

    def _send(self, step: int, folder: Path) -> None:
        """Sends one checkpoint, or says and notes why it has not arrived."""
        what, started = f"{self._repository}@{REVISION_PREFIX}{step}", time.perf_counter()
        try:
            self._add_metrics(folder, step)
            request = partial(self._push, folder, step)
            commit = with_retries(request, what, self._retries, hints=PUSH_HINTS)
        except Exception as error:  # a run must not end for it
            self._outbox.give_back(folder)
            if self._is_closed:  # and perhaps Python is at its end
                return
            self._failed.add(step)
            if self._is_finishing:  # the others would only wait for the same
                self._failed.update(self._outbox.steps())
            self._note_failure(step, _problem(what, error))
            return
        self._outbox.remove(folder)
        if self._is_closed:
            return
        self._failed.clear()
        seconds = round(time.perf_counter() - started, 1)
        self._record_event(
            "pushed", step=step, repository=self._repository, commit=commit, seconds=seconds
        )
        tell(f"step {step}: {'sent to' if commit else 'is already at'} {what}")

    def _push(self, folder: Path, step: int) -> str | None:
        """As `push_revision`, into a repository that is there afterwards."""
        if not self._is_there:
            make_repository(self._repository, repo_type="model", private=self._private)
            self._is_there = True
        return push_revision(folder, self._repository, f"{REVISION_PREFIX}{step}")

    def _add_metrics(self, folder: Path, step: int) -> None:
        """Puts the numbers of each logged step until this one beside the weights."""
        rows = read_json_lines(self._metrics, rising="step", warn=lambda text: None)
        numbers = (
            {key: value for key, value in row.items() if isinstance(value, int | float)}
            for row in rows
            if row["step"] <= step
        )
        path = folder / self._metrics.name
        write_json_lines(path, numbers)
        write_checksums(folder, read_checksums(folder) | {path.name: checksum(path)})

    def _make_room(self, n_bytes: int) -> None:
        """Gives up of what has waited longest as much as the disk lacks for so many bytes.

        What is a checkpoint as well takes no room of its own yet, but the next one to be pruned is
        one that has waited long.
        """
        missing = n_bytes - shutil.disk_usage(self._output_dir).free
        while missing > 0:
            with self._condition:
                step = next(iter(self._outbox.steps()), None)
                if step is None:
                    return
                folder = self._outbox.take(step)
                missing -= sum(entry["size"] for entry in read_checksums(folder).values())
                self._outbox.remove(folder)
            what = f"{self._repository}@{REVISION_PREFIX}{step}"
            self._note_failure(step, f"{what}: the disk is full, so it will not be sent")

    def _note_failure(self, step: int, problem: str) -> None:
        """Says what went wrong, in one line, and notes it among the events."""
        warn(f"{problem}; the run is not affected")
        self._record_event("push_failed", step=step, message=problem)


def _problem(what: str, error: Exception) -> str:
    """Why something has not arrived, in one line that names it."""
    if (cause := temporary_cause(error)) is not None:
        return f"{what}: {reason_of(cause)}"
    return one_line(error) if isinstance(error, SourceError) else f"{what}: {named(error)}"
