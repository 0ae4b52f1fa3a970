"""Checks in under a minute that a machine can train: `gpt2scratch doctor`.

Every check runs beside the others and has its own time, so that one that hangs delays nothing. The
exit code is 1 if one failed; a warning is something that a run can do without.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from modeling_gpt2scratch.common.command_line import argument, check_numbers, parse_config

PROGRAM = "gpt2scratch doctor"
COLUMN_WIDTHS = (None, None, 44, 44)


@dataclass(frozen=True)
class DoctorConfig:
    """Every argument of this command."""

    output_dir: str = argument("directory in which runs are to write", default=".")
    timeout_seconds: float = argument("for each check", default=50.0)

    def __post_init__(self):
        check_numbers(self, positive=("timeout_seconds",), non_negative=())


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the findings and exits."""
    config = parse_config(DoctorConfig, description=__doc__, argv=argv, program=PROGRAM)
    from tabulate import tabulate

    from modeling_gpt2scratch.doctor.checks import checks_for, examine

    checks = checks_for(config.output_dir, timeout_seconds=config.timeout_seconds)
    findings = examine(checks, timeout_seconds=config.timeout_seconds)
    rows = [(name, each.status, each.found, each.advice) for name, each in findings.items()]
    headers = ("check", "status", "found", "what to do")
    print(tabulate(rows, headers=headers, tablefmt="grid", maxcolwidths=COLUMN_WIDTHS), flush=True)
    code = int(any(each.status == "failed" for each in findings.values()))
    sys.stderr.flush()
    os._exit(code)  # a check that hangs would keep the interpreter from ending
