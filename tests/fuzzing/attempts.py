"""One command on one damaged file, in a process of its own, and what became of it."""

import contextlib
import gc
import multiprocessing
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

from support.paths import REPOSITORY
from support.programs.warm_python import call

CPU_SECONDS = 20  # of its own; others may be busy beside it
WALL_SECONDS = 120
MEMORY_BYTES = 2 * 2**30  # beyond what the libraries take
# Starting a process looks at the ends of all others, and an end can be read once.
STARTING = threading.Lock()
PACKAGES = (str(REPOSITORY), str(REPOSITORY / "tests"))


@dataclass(frozen=True)
class Attempt:
    """How a command ended."""

    code: int  # negative: the signal that ended it
    out: str
    err: str
    is_unexpected: bool  # an exception left `main`


@contextlib.contextmanager
def fork_server() -> Iterator[multiprocessing.context.BaseContext]:
    """A process that has loaded all that the commands import, and forks for each of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fuzzing.preloaded"])
    changes = {"PYTHONPATH": os.pathsep.join(PACKAGES), "HF_HUB_OFFLINE": "1"}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        process = context.Process(target=os.getpid)  # the server starts with the first
        process.start()
        process.join()
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
    yield context


def attempt(context, directory: Path, words: list[str]) -> Attempt:
    """Runs a command of the house in a directory."""
    process = context.Process(target=_run, args=(str(directory), words))
    with STARTING:
        process.start()
    has_ended = connection.wait([process.sentinel], WALL_SECONDS)
    with STARTING:
        if not has_ended:
            process.kill()
        process.join()
    out, err = (_text(directory / f"{name}.txt") for name in ("out", "err"))
    unexpected = directory / "unexpected.txt"
    err += _text(unexpected) if unexpected.exists() else ""
    return Attempt(process.exitcode, out, err, unexpected.exists())


def _run(directory: str, words: list[str]) -> None:
    """In the new process: limits, streams, the command."""
    gc.freeze()
    os.chdir(directory)
    os.fsync = lambda file: None  # nobody pulls the plug here
    for number, name in enumerate(("out", "err"), 1):
        os.dup2(os.open(f"{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))
    sys.stdin = os.fdopen(0, closefd=False)
    sys.path[:0] = [path for path in PACKAGES if path not in sys.path]
    code = 0
    try:
        if words[0] == "python":
            words = [words[0], str(REPOSITORY / words[1]), *words[2:]]
        call(words, sys.executable)
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
    except BaseException:
        Path("unexpected.txt").write_text(traceback.format_exc(), errors="replace")
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _text(path: Path) -> str:
    """What a stream got."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def name_of_signal(code: int) -> str:
    """SIGXCPU for -24."""
    return signal.Signals(-code).name
