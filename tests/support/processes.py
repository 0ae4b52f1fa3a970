"""Processes that a test starts, waits for and never leaves behind."""

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Seconds after which what a test waits for counts as hung. Long, for a busy machine is only slow.
PATIENCE = 400


@contextlib.contextmanager
def started(command: list, **options) -> Iterator[subprocess.Popen]:
    """A process that does not outlive the block, nor do those that it launched."""
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()  # a launcher that is killed would leave its processes behind
                try:
                    process.communicate(timeout=60)
                except subprocess.TimeoutExpired:
                    process.kill()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Returns when the condition holds, which must be while the process runs."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


def run_process(
    command: list, *, check: bool = False, **options
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` with output as text and `PATIENCE`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(command, **pipes | options) as process:
        stdout, stderr = process.communicate(timeout=PATIENCE)
    finished = subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
    if check:
        finished.check_returncode()
    return finished


def run_on_two(commands: Path, *script: str | Path, **options) -> subprocess.CompletedProcess[str]:
    """Runs a script that nobody kills on two processes, by the `torchrun` of `warm_commands`."""
    torchrun = [commands / "torchrun", "--standalone", "--nproc_per_node", "2"]
    return run_process([*torchrun, *script], **options)
