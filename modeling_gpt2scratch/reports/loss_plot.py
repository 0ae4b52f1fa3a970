"""Loss curves: of several runs in one picture, or of one run with what else it logged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modeling_gpt2scratch.common.atomic_files import write_file
from modeling_gpt2scratch.common.errors import MendableError
from modeling_gpt2scratch.common.short_names import short_names
from modeling_gpt2scratch.evaluation.results.charts import picture
from modeling_gpt2scratch.tracking.metrics import METRICS_NAME, read_metrics

if TYPE_CHECKING:  # loaded only to draw
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# What stands below the losses, with the names of the axes.
PANELS = {
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
}


class PlotError(MendableError, ValueError):
    """Losses that cannot be drawn."""


def draw_losses(runs: Sequence[Path], output: Path, *, x: str = "step") -> None:
    """Writes a picture: one line per run for the training loss, and dots for the validation loss.

    Args:
        runs: output directories of the training script; several are told apart by their names.
        output: the picture; its ending decides the format. A missing directory is made.
        x: "step", or "tokens" for runs whose steps have different numbers of them.

    Raises:
        PlotError: without losses, or if there is no such format.
        OSError: if the picture cannot be written.
    """
    logged = [_losses(run, read_metrics(run / METRICS_NAME), x) for run in runs]
    figure = _figure((7, 4))
    axes = figure.subplots()
    titles = short_names(str(run) for run in runs)
    for run, rows in zip(runs, logged, strict=True):
        _draw_loss(axes, rows, name=f"{titles[str(run)]}: " if len(runs) > 1 else "", x=x)
    axes.set_xlabel(x)
    content = _picture(figure, output.suffix.removeprefix("."), dpi=120)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_file(output, content)


def draw_curves(run: Path, logged: Sequence[dict]) -> bytes:
    """A PNG of a run's losses and, below them, whatever else of `PANELS` it logged.

    Args:
        run: output directory of the training script.

    Raises:
        PlotError: without losses.
    """
    rows = _losses(run, logged)
    panels = {name: text for name, text in PANELS.items() if any(name in row for row in rows)}
    figure = _figure((9, 5 + bool(panels) * 2.5))
    mosaic = [["loss"] * max(len(panels), 1)] * 2 + [[*panels]] * bool(panels)
    axes = figure.subplot_mosaic(mosaic)
    _draw_loss(axes.pop("loss"), rows, name="")
    for name, panel in axes.items():
        _draw(panel, rows, name, "-", linewidth=1)
        panel.set_ylabel(panels[name])
        panel.ticklabel_format(axis="y", scilimits=(-2, 4))
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    figure.supxlabel("step")
    return _picture(figure, "png", dpi=110)


def points_alone(values: Sequence[float]) -> list[int]:
    """Where a number has no number beside it, and a line would not show it."""
    is_number = [False, *map(math.isfinite, values), False]
    around = zip(is_number, is_number[1:], is_number[2:], strict=False)
    return [index for index, found in enumerate(around) if found == (False, True, False)]


def _figure(inches: tuple[float, float]) -> Figure:
    """An empty picture."""
    from matplotlib.figure import Figure  # without pyplot nothing asks for a display

    return Figure(figsize=inches, layout="constrained")


def _picture(figure: Figure, format: str, *, dpi: int) -> bytes:
    """The picture in a format, named by the ending of its files."""
    if format.lower() not in ("png", "svg", "pdf"):  # .pgf would need LaTeX
        found = f".{format}" if format else "no ending"
        raise PlotError(f"expected a picture that ends in .png, .svg or .pdf, found {found}")
    return picture(figure, format.lower(), dpi=dpi)


def _draw_loss(axes: Axes, rows: Sequence[dict], *, name: str, x: str = "step") -> None:
    """Training loss as a line and validation loss as dots, after `name` in the legend."""
    # matplotlib leaves out of a legend what begins with an underscore, and sets formulas.
    name = (f" {name}" if name.startswith("_") else name).replace("$", r"\$")
    line = _draw(axes, rows, "loss", "-", x=x, linewidth=1, alpha=0.6, label=f"{name}training")
    label = f"{name}validation"
    _draw(axes, rows, "eval_loss", "o-", x=x, markersize=4, color=line.get_color(), label=label)
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()


def _draw(
    axes: Axes, rows: Sequence[dict], name: str, style: str, *, x: str = "step", **options
) -> Line2D:
    """What was logged as `name`, over `x`; a value that is no number leaves a gap."""
    points = [row for row in rows if name in row]
    values = [row[name] if isinstance(row[name], int | float) else math.nan for row in points]
    if style == "-" and (alone := points_alone(values)):
        options |= {"marker": ".", "markevery": alone}
    (line,) = axes.plot([row[x] for row in points], values, style, **options)
    return line


def _losses(run: Path, logged: Sequence[dict], x: str = "step") -> list[dict]:
    """The logged steps of a run, at least one, each with its place on the x axis."""
    path = run / METRICS_NAME
    rows = [row for row in logged if "loss" in row]
    if not rows:
        raise PlotError(f"{path}: expected logged steps of a run, found none")
    if any(not isinstance(row.get(x), int) for row in rows):
        raise PlotError(f"{path}: expected {x} in each line, found a line without; draw over steps")
    return rows
