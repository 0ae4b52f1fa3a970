"""Draws loss curves: `python -m modeling_gpt2scratch.loss_plot --runs DIR --output loss.png`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .command_line import argument, parse_config
from .metrics import METRICS_NAME, read_metrics


@dataclass(frozen=True)
class PlotConfig:
    """Every argument of this script."""

    runs: list[str] = argument("output directories of train_accelerate.py")
    output: str = argument("picture to write; its ending decides the format")
    x: Literal["step", "tokens"] = argument("what losses are drawn over", default="step")


class PlotError(ValueError):
    """Losses that cannot be drawn."""


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, draws, and turns what is wrong with the input into one line and an exit code."""
    config = parse_config(PlotConfig, description=__doc__, argv=argv)
    try:
        draw_losses([Path(run) for run in config.runs], Path(config.output), x=config.x)
    except (PlotError, OSError) as error:
        sys.exit(f"loss_plot.py: error: {error}")


def draw_losses(runs: Sequence[Path], output: Path, *, x: str = "step") -> None:
    """Writes a picture: one line per run for the training loss, and dots for the validation loss.

    Args:
        runs: output directories of the training script; several are told apart by their names.
        output: the picture; its ending decides the format.
        x: "step", or "tokens" for runs whose steps have different numbers of them.

    Raises:
        PlotError: without matplotlib, without losses, or if there is no such format.
    """
    logged = [_losses(run, x) for run in runs]
    try:
        from matplotlib.figure import Figure  # without pyplot nothing asks for a display
    except ImportError:
        raise PlotError('expected matplotlib, found none; pip install -e ".[plot]"') from None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for run, rows in zip(runs, logged, strict=True):
        name = f"{run.name}: " if len(runs) > 1 else ""
        places = [row[x] for row in rows]
        losses = [row["loss"] for row in rows]
        (line,) = axes.plot(places, losses, linewidth=1, alpha=0.6, label=f"{name}training")
        measured = [row for row in rows if "eval_loss" in row]
        axes.plot(
            [row[x] for row in measured],
            [row["eval_loss"] for row in measured],
            "o-",
            markersize=4,
            color=line.get_color(),
            label=f"{name}validation",
        )
    axes.set(xlabel=x, ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(output, dpi=120)
    except ValueError as error:
        raise PlotError(f"{output}: {error}") from error


def _losses(run: Path, x: str) -> list[dict]:
    """The logged steps of a run, at least one, each with its place on the x axis."""
    path = run / METRICS_NAME
    try:
        rows = read_metrics(path)
    except ValueError as error:
        raise PlotError(f"{path}: expected a JSON object per line, found {error}") from error
    if not rows:
        raise PlotError(f"{path}: expected logged steps of a run, found none")
    if any(x not in row for row in rows):
        raise PlotError(f"{path}: expected {x} in each line, found a line without; draw over steps")
    return rows


if __name__ == "__main__":
    main()
