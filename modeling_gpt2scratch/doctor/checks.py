"""Checks in under a minute that a machine can train: `python -m modeling_gpt2scratch.doctor.checks`.

Every check runs beside the others and has its own time, so that one that hangs delays nothing. The
exit code is 1 if one failed; a warning is something that a run can do without.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from modeling_gpt2scratch.common.command_line import argument, check_numbers, parse_config

from . import machine as machine_checks
from . import network as network_checks
from .machine import Finding

COLUMN_WIDTHS = (None, None, 44, 44)


@dataclass(frozen=True)
class DoctorConfig:
    """Every argument of this program."""

    output_dir: str = argument("directory in which runs are to write", default=".")
    timeout_seconds: float = argument("for each check", default=50.0)

    def __post_init__(self):
        check_numbers(self, positive=("timeout_seconds",), non_negative=())


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the findings and exits."""
    config = parse_config(DoctorConfig, description=__doc__, argv=argv)
    findings = examine(checks_for(config), timeout_seconds=config.timeout_seconds)
    rows = [(name, each.status, each.found, each.advice) for name, each in findings.items()]
    headers = ("check", "status", "found", "what to do")
    print(tabulate(rows, headers=headers, tablefmt="grid", maxcolwidths=COLUMN_WIDTHS), flush=True)
    code = int(any(each.status == "failed" for each in findings.values()))
    sys.stderr.flush()
    os._exit(code)  # a check that hangs would keep the interpreter from ending


def checks_for(config: DoctorConfig) -> dict[str, Callable[[], Finding]]:
    """The checks by the names under which they are reported."""
    seconds = config.timeout_seconds
    return {
        "versions": machine_checks.check_versions,
        "devices": machine_checks.check_devices,
        "bf16": machine_checks.check_bf16,
        "matrix products": machine_checks.check_matrix_products,
        "torch.compile": machine_checks.check_compilation,
        "two processes (gloo)": lambda: machine_checks.check_gloo(timeout_seconds=seconds - 5),
        "GPUs together (NCCL)": lambda: machine_checks.check_nccl(timeout_seconds=seconds - 5),
        "output directory": lambda: machine_checks.check_directory(config.output_dir),
        "shared memory": machine_checks.check_shared_memory,
        "open files": machine_checks.check_open_files,
        "gpt2 tokenizer": network_checks.check_tokenizer,
        "Hugging Face Hub": network_checks.check_hub,
        "wandb": network_checks.check_wandb,
    }


def examine(
    checks: Mapping[str, Callable[[], Finding]], *, timeout_seconds: float
) -> dict[str, Finding]:
    """What each check found; all run at once, each in a thread that may be left behind."""
    findings: dict[str, Finding] = {}

    def run(name: str) -> None:
        try:
            finding = checks[name]()
        except Exception as error:  # whatever it is, the other checks are still worth having
            text = " ".join(f"{type(error).__name__}: {error}".split())
            finding = Finding("failed", text[:300], "run it alone to see where it comes from")
        findings.setdefault(name, finding)

    threads = {name: threading.Thread(target=run, args=[name], daemon=True) for name in checks}
    for thread in threads.values():
        thread.start()
    deadline = time.monotonic() + timeout_seconds
    for name, thread in threads.items():
        thread.join(max(0, deadline - time.monotonic()))
        no_answer = f"no answer within {timeout_seconds:g} seconds"
        advice = "a driver, disk or network hangs, or others use the machine: --timeout_seconds 300"
        findings.setdefault(name, Finding("failed", no_answer, advice))
    return {name: findings[name] for name in checks}


if __name__ == "__main__":
    main()
