"""One page about a run, with its curves: `gpt2scratch report --run DIR`.

`train_accelerate.py` writes it at its end. Use this command for a run that was stopped. `report.md`
and `curves.png` say what the run recorded, without names and paths of the machine. So does
`report.html`, with curves to hover over and zoom.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modeling_gpt2scratch.common.command_line import argument, parse_config
from modeling_gpt2scratch.common.errors import ending_in_one_line
from modeling_gpt2scratch.common.interruptions import Interruptible

PROGRAM = "gpt2scratch report"


@dataclass(frozen=True)
class ReportConfig:
    """Every argument of this command."""

    run: str = argument("output directory of train_accelerate.py")


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, reports, and turns what is wrong with the run into one line and an exit code."""
    config = parse_config(ReportConfig, description=__doc__, argv=argv, program=PROGRAM)
    with Interruptible(PROGRAM) as ctrl_c, ctrl_c.ending_at_once():
        from modeling_gpt2scratch.reports.run_page import write_report
        from modeling_gpt2scratch.tracking.status import FAILED, read_status

    run = Path(config.run)
    with ending_in_one_line(PROGRAM):
        print(f"written: {write_report(run)}")
        status = read_status(run)
        if status and status["status"] == FAILED:
            print(f"{run} has failed: {status.get('message', 'no reason recorded')}")
