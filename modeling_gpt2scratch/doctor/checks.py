"""All checks of a machine at once, each with its own time."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from modeling_gpt2scratch.common.errors import named

from . import machine as machine_checks
from . import network as network_checks
from .machine import CheckResult


def checks_for(output_dir: str, *, timeout_seconds: float) -> dict[str, Callable[[], CheckResult]]:
    """The checks by the names under which they are reported.

    Args:
        output_dir: directory in which runs are to write.
        timeout_seconds: that one check has, the start of its processes included.
    """
    seconds = timeout_seconds - 5
    return {
        "versions": machine_checks.check_versions,
        "load": machine_checks.check_load,
        "devices": machine_checks.check_devices,
        "bf16": machine_checks.check_bf16,
        "matrix products": machine_checks.check_matrix_products,
        "torch.compile": machine_checks.check_compilation,
        "two processes (gloo)": lambda: machine_checks.check_gloo(timeout_seconds=seconds),
        "GPUs together (NCCL)": lambda: machine_checks.check_nccl(timeout_seconds=seconds),
        "output directory": lambda: machine_checks.check_directory(output_dir),
        "shared memory": machine_checks.check_shared_memory,
        "open files": machine_checks.check_open_files,
        "gpt2 tokenizer": network_checks.check_tokenizer,
        "Hugging Face Hub": network_checks.check_hub,
        "wandb": network_checks.check_wandb,
    }


def examine(
    checks: Mapping[str, Callable[[], CheckResult]], *, timeout_seconds: float
) -> Iterator[tuple[str, CheckResult]]:
    """What each check found, as they end; all run at once, in threads that may be left behind."""
    findings: queue.Queue[tuple[str, CheckResult]] = queue.Queue()

    def run(name: str) -> None:
        try:
            finding = checks[name]()
        except Exception as error:  # whatever it is, the other checks are still worth having
            finding = CheckResult("failed", named(error), "run it alone to see where it comes from")
        findings.put((name, finding))

    for name in checks:
        threading.Thread(target=run, args=[name], daemon=True).start()
    left = list(checks)
    deadline = time.monotonic() + timeout_seconds
    with contextlib.suppress(queue.Empty):
        while left:
            name, finding = findings.get(timeout=max(0.0, deadline - time.monotonic()))
            left.remove(name)
            yield name, finding
    for name in left:
        no_answer = f"no answer within {timeout_seconds:g} seconds"
        advice = "a driver, disk or network hangs, or others use the machine: --timeout_seconds 300"
        yield name, CheckResult("failed", no_answer, advice)
