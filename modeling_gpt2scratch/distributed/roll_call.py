"""What processes can tell each other when they no longer hear each other: the store where they met.

The launcher keeps it, and it needs none of the connections among them.
"""

import contextlib
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

ROLL_CALL_SECONDS = 5
TIMED_OUT, CUT_OFF = b"timed out", b"cut off"


def call_roll(process: int, num_processes: int, timed_out: bool) -> dict[int, bytes]:
    """What became of an operation on each process that is still there, this one included.

    Gloo closes all connections among them as soon as one operation times out.
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
