"""Draws loss curves: `gpt2scratch plot --runs DIR --output loss.png`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modeling_gpt2scratch.common.command_line import argument, parse_config
from modeling_gpt2scratch.common.errors import ending_in_one_line
from modeling_gpt2scratch.common.interruptions import Interruptible

PROGRAM = "gpt2scratch plot"


@dataclass(frozen=True)
class PlotConfig:
    """Every argument of this command."""

    runs: list[str] = argument("output directories of train_accelerate.py")
    output: str = argument("picture to write, such as loss.png; its ending decides the format")
    x: Literal["step", "tokens"] = argument("what losses are drawn over", default="step")


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, draws, and turns what is wrong with the input into one line and an exit code."""
    config = parse_config(PlotConfig, description=__doc__, argv=argv, program=PROGRAM)
    with Interruptible(PROGRAM) as ctrl_c, ctrl_c.ending_at_once():
        import matplotlib.figure  # noqa: F401, which the drawing would import later

        from modeling_gpt2scratch.reports.loss_plot import draw_losses

    with ending_in_one_line(PROGRAM):
        draw_losses(
            [Path(run) for run in config.runs], Path(config.output).expanduser(), x=config.x
        )
