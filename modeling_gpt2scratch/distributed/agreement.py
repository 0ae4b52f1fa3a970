"""How the processes of a run act at the same step, and notice that one of them no longer does."""

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch.distributed.distributed_c10d import _get_default_store

from modeling_gpt2scratch.common.errors import MendableError

ROLL_CALL_SECONDS = 5
TIMED_OUT, CUT_OFF = b"timed out", b"cut off"


class StalledError(MendableError, RuntimeError):
    """A process that did not answer the others in time, or is no longer there."""


class Agreement:
    """Lets all processes act at the same step on what any of them has noticed.

    What is said with one call is known to all with the next, so that no process ever waits for
    another one's device: the exchange goes over the CPU while the step is computed.

    Args:
        timeout_minutes: how long to wait for the slowest process.
    """

    def __init__(self, *, timeout_minutes: float):
        self._timeout_minutes = timeout_minutes
        self._flags: torch.Tensor | None = None  # of the previous call
        self._pending = self._group = None
        if PartialState().num_processes > 1:
            timeout = timedelta(minutes=timeout_minutes)
            self._group = dist.new_group(backend="gloo", timeout=timeout)

    def exchange(self, flags: Sequence[bool]) -> list[bool]:
        """Which of the flags any process raised in the previous call; alone, in this one."""
        if self._group is None:
            return list(flags)
        self.wait()
        if self._flags is None:
            self._flags = torch.zeros(len(flags))
        known = [value > 0 for value in self._flags.tolist()]
        self._flags = torch.tensor([float(flag) for flag in flags])
        self._pending = dist.all_reduce(self._flags, group=self._group, async_op=True)
        return known

    def wait(self) -> None:
        """Waits for the others' last answer on the CPU, where a process that is lost is noticed.

        What waits for a device instead waits in its library, which no exception leaves.
        """
        if self._pending:
            self._pending.wait()

    @contextlib.contextmanager
    def naming_the_stalled(self) -> Iterator[None]:
        """Turns the failure of a collective operation into one line that says who is missing.

        Raises:
            StalledError: instead of torch's error.
        """
        try:
            yield
            self.wait()
        except RuntimeError as error:
            is_collective = isinstance(error, dist.DistBackendError) or "gloo" in str(error)
            if self._group is None or not is_collective:
                raise
            raise self._stalled("imed out" in str(error)) from error

    def _stalled(self, timed_out: bool) -> StalledError:
        """What to say of an operation that failed, once it is known who is missing."""
        state = PartialState()
        answers = _call_roll(state.process_index, state.num_processes, timed_out)
        missing = [str(i) for i in range(state.num_processes) if i not in answers]
        named = f"process {', '.join(missing)}" if missing else "another process"
        if TIMED_OUT in answers.values():
            problem = (
                f"expected every process to answer within {self._timeout_minutes:g} minutes, "
                f"found none from {named}; go on with --resume auto, and raise --timeout_minutes "
                f"if it was only slow"
            )
        else:
            problem = (
                f"expected every process to go on, found that {named} has ended; see its own "
                f"message, and go on with --resume auto"
            )
        return StalledError(problem)


def is_first_to_say(text: str) -> bool:
    """Whether no other process of this attempt has asked this about the same text.

    The store remembers it, so that nobody waits for an answer.
    """
    if not dist.is_initialized():
        return True
    rank = str(dist.get_rank())
    try:
        store = dist.PrefixStore("said", _get_default_store())
        return store.compare_set(text, "", rank) == rank.encode()
    except dist.DistError:  # the store was with a process that has ended
        return True


def _call_roll(process: int, num_processes: int, timed_out: bool) -> dict[int, bytes]:
    """What became of an operation on each process that is still there, this one included.

    They tell it in the store where they met. The launcher keeps that, and it needs none of the
    connections among them: gloo closes all of these as soon as one operation times out.
    """
    answer = TIMED_OUT if timed_out else CUT_OFF
    try:
        store = dist.PrefixStore("roll_call", _get_default_store())
        store.set(str(process), answer)
        with contextlib.suppress(dist.DistStoreError):  # not all have come
            keys = [str(other) for other in range(num_processes)]
            store.wait(keys, timedelta(seconds=ROLL_CALL_SECONDS))
        present = [other for other in range(num_processes) if store.check([str(other)])]
        return {other: store.get(str(other)) for other in present}
    except dist.DistError:  # the store was with a process that has ended
        return {process: answer}
