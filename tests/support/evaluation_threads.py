"""Threads that stand for the processes of an evaluation; each has an accelerator of its own."""

import pickle
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from support import evaluation as evaluate_path  # noqa: F401

# isort: split
from modeling_gpt2scratch.evaluation.scoring import processes as process_group
from modeling_gpt2scratch.evaluation.scoring.processes import ProcessGroup

SECONDS = 10  # that a thread waits for the others, which is an error


def in_threads(monkeypatch, n_processes: int, work: Callable[[ProcessGroup], Any]) -> list[Any]:
    """What `work` returns in each thread; fails if one waits for others that never come."""
    meeting = threading.Barrier(n_processes)
    own = threading.local()
    shares: list[bytes] = [b""] * n_processes
    results: list[Any] = [None] * n_processes
    errors = []

    def gather(items):
        shares[own.rank] = pickle.dumps(items)
        meeting.wait(SECONDS)
        found = [item for share in shares for item in pickle.loads(share)]
        meeting.wait(SECONDS)
        return found

    def broadcast(values):
        values[:] = gather([list(values)])[0]

    def run(rank):
        own.rank = rank
        processes = ProcessGroup.__new__(ProcessGroup)
        processes.is_main = rank == 0
        processes.accelerator = SimpleNamespace(
            num_processes=n_processes, process_index=rank, is_main_process=processes.is_main
        )
        try:
            results[rank] = work(processes)
        except BaseException as error:
            errors.append(error)
            meeting.abort()

    monkeypatch.setattr(process_group, "gather_object", gather)
    monkeypatch.setattr(process_group, "broadcast_object_list", broadcast)
    threads = [threading.Thread(target=run, args=[rank]) for rank in range(n_processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
