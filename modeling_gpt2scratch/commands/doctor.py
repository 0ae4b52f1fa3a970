"""Checks in under a minute that a machine can train: `gpt2scratch doctor`.

All checks run at the same time, each with a time limit. The exit code is 1 if a check failed. A
warning names something that a run can do without.
"""

import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from modeling_gpt2scratch.common.command_line import ArgumentError, argument, parse_config
from modeling_gpt2scratch.common.console import CLOCK, activity, progress_bar
from modeling_gpt2scratch.common.interruptions import Interruptible
from modeling_gpt2scratch.common.threads import let_waiting_threads_rest

PROGRAM = "gpt2scratch doctor"
STATUS_WIDTH, TEXT_WIDTH = 9, 100


@dataclass(frozen=True)
class DoctorConfig:
    """Every argument of this command."""

    output_dir: str = argument("directory that runs will write to", default=".")
    timeout_seconds: float = argument("time limit of each check, in seconds", default=50.0)

    def __post_init__(self):
        if not 10 <= self.timeout_seconds <= 3600:  # processes start, which takes five seconds
            problem = f"expected 10 to 3600, found {self.timeout_seconds}"
            raise ArgumentError("timeout_seconds", problem=problem)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints each finding as it comes, and exits."""
    with Interruptible(PROGRAM) as ctrl_c, ctrl_c.ending_at_once():
        config = parse_config(DoctorConfig, description=__doc__, argv=argv, program=PROGRAM)
        let_waiting_threads_rest()
        with activity("loading torch and transformers"):
            from tqdm import tqdm

            from modeling_gpt2scratch.doctor.checks import checks_for, examine

        checks = checks_for(config.output_dir, timeout_seconds=config.timeout_seconds)
        statuses = {}
        with progress_bar(total=len(checks), bar_format=CLOCK, leave=False) as bar:
            bar.set_description_str(f"checking {len(checks)} things")
            for name, finding in examine(checks, timeout_seconds=config.timeout_seconds):
                statuses[name] = finding.status
                left = [other for other in checks if other not in statuses]
                bar.set_description_str(f"checking {', '.join(left)}")
                lines = as_lines(finding.status, f"{name}: {finding.found}", finding.advice)
                tqdm.write("\n".join(lines))
                sys.stdout.flush()
    failed = [name for name, status in statuses.items() if status == "failed"]
    print(f"failed: {', '.join(failed)}" if failed else "this machine can train", flush=True)
    sys.stderr.flush()
    os._exit(int(bool(failed)))  # a check that hangs would keep the interpreter from ending


def as_lines(status: str, found: str, advice: str) -> list[str]:
    """A finding after its status, and below it what to do."""
    indent = " " * STATUS_WIDTH
    lines = textwrap.wrap(
        found, TEXT_WIDTH, initial_indent=status.ljust(STATUS_WIDTH), subsequent_indent=indent
    )
    if advice:
        lines += textwrap.wrap(
            advice, TEXT_WIDTH, initial_indent=f"{indent}-> ", subsequent_indent=f"{indent}   "
        )
    return lines
