"""How the threads of a computation wait for each other; to be settled before torch is loaded.

OpenMP's threads spin while they wait for the slowest of them. Beside other programs they take the
very cores that the slowest is waiting for, and a computation on two cores becomes ten times slower.
"""

import functools
import os
import statistics
import time
from pathlib import Path

# What decides how threads wait, of GNU's OpenMP and of LLVM's and Intel's.
CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SPIN_COUNT = "10000"  # some 10 microseconds, longer than most waits on an idle machine
BLOCK_MILLISECONDS = "1"  # of LLVM's OpenMP, whose own is 200
N_LOOKS, LOOK_SECONDS = 7, 0.01


def let_waiting_threads_rest() -> None:
    """Threads that wait spin for a moment only, or not at all where others want half of the cores.

    Where the user has chosen by one of these variables, nothing changes. Processes that this one
    starts inherit the choice.
    """
    is_busy = load_of_others() >= n_cores() / 2  # before there is a load of our own
    if any(name in os.environ for name in CHOICES):
        return
    if is_busy:
        os.environ["OMP_WAIT_POLICY"] = "passive"
    else:
        os.environ |= {"GOMP_SPINCOUNT": SPIN_COUNT, "KMP_BLOCKTIME": BLOCK_MILLISECONDS}


def n_cores() -> int:
    """Cores on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def load_of_others() -> float:
    """Threads that want a core, apart from this launch, at the time of the first call.

    Where the system does not count them (macOS), the cores that are busy.
    """
    n_processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)  # a script may leave it empty
    try:
        others = []
        for _ in range(N_LOOKS):  # the load average would be a minute late
            own = n_processes * _threads_of_this_process()
            fields = Path("/proc/loadavg").read_text(encoding="ascii").split()
            others.append(int(fields[3].partition("/")[0]) - own)
            time.sleep(LOOK_SECONDS)
        return float(max(0, statistics.median(others)))
    except (OSError, ValueError, IndexError):
        import psutil  # here, because Linux does not need it

        seconds = N_LOOKS * LOOK_SECONDS
        started = time.process_time()
        busy = psutil.cpu_percent(interval=seconds) / 100 * psutil.cpu_count()
        own = n_processes * (time.process_time() - started) / seconds
        return float(max(0, round(busy - own)))


def _threads_of_this_process() -> int:
    """Those that want a core, at least this one: numpy's spin for a while once it is loaded."""
    running = 0
    for thread in os.listdir("/proc/self/task"):
        try:
            fields = Path("/proc/self/task", thread, "stat").read_text(encoding="utf-8")
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        running += fields.rpartition(")")[2].split()[0] == "R"
    return max(1, running)
