"""Pictures of what was measured: bars for the models, and scores over the tokens of a training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from measurements import ModelMeasurements

if TYPE_CHECKING:  # an optional library
    from matplotlib.figure import Figure

BARS_NAME = "scores.png"
CURVES_NAME = "scores_over_tokens.png"
METRICS_NAME = "metrics.jsonl"  # of a run of train_accelerate.py
PANEL_INCHES = (3.2, 2.6)
COLUMNS = 4
FAR_APART = 50  # the largest of a panel's values by the smallest


class ChartError(ValueError):
    """A picture that cannot be drawn."""


def draw_bars(
    models: Sequence[ModelMeasurements], metrics: Mapping[str, Mapping[str, bool]], output: Path
) -> bool:
    """Writes a panel for each task's metric with a bar for each model; ± one standard error.

    Args:
        models: everything measured of each.
        metrics: of each task, with whether higher is better.
        output: the picture; its ending decides the format.

    Returns:
        False, and no picture, if nothing was measured.

    Raises:
        ChartError: without matplotlib.
    """
    rows = [(task, metric) for task, names in metrics.items() for metric in names]
    rows = [row for row in rows if any(model.value(*row) is not None for model in models)]
    if not rows:
        return False
    figure = _figure(len(rows))
    for axes, (task, metric) in zip(_panels(figure, len(rows)), rows, strict=True):
        values = []
        for place, model in enumerate(models):
            if model.value(task, metric) is None:
                continue
            estimate = model.tasks[task].result.estimates[metric]
            axes.bar(place, estimate.value, yerr=estimate.stderr, capsize=3, label=model.name)
            values.append(estimate.value)
        if min(values) > 0 and max(values) > FAR_APART * min(values):
            axes.set_yscale("log")  # or the smaller bar could not be seen
        axes.set_title(f"{task} {metric} {'↑' if metrics[task][metric] else '↓'}", fontsize=9)
        axes.set_xlim(-0.6, len(models) - 0.4)
        axes.set_xticks(range(len(models)), [Path(model.name).name for model in models], fontsize=7)
        axes.grid(axis="y", alpha=0.3)
    figure.savefig(output, dpi=120)
    return True


def draw_curves(runs: Sequence[str], output: Path) -> bool:
    """Writes a panel for each score that the runs logged in training, over the tokens seen.

    Args:
        runs: models; those that are no output directory of a run are left out.
        output: the picture.

    Returns:
        False, and no picture, if no run logged a score.

    Raises:
        ChartError: without matplotlib.
    """
    logged = {run: scores_over_tokens(Path(run)) for run in runs}
    names = list(dict.fromkeys(name for scores in logged.values() for name in scores))
    if not names:
        return False
    figure = _figure(len(names))
    for axes, name in zip(_panels(figure, len(names)), names, strict=True):
        for run, scores in logged.items():
            if name in scores:
                axes.plot(*zip(*scores[name], strict=True), "o-", markersize=3, label=run)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("training tokens")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(output, dpi=120)
    return True


def scores_over_tokens(run: Path) -> dict[str, list[tuple[int, float]]]:
    """For each score of `--eval_tasks`, such as "lambada/acc", tokens and value at each time.

    Empty for a directory without a log. A line that a kill cut short is left out.
    """
    path = run / METRICS_NAME
    scores: dict[str, list[tuple[int, float]]] = {}
    if not path.is_file():
        return scores
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        for name, value in row.items():
            is_score = "/" in name and isinstance(value, int | float) and math.isfinite(value)
            if is_score and "tokens" in row:
                scores.setdefault(name, []).append((row["tokens"], value))
    return scores


def _figure(n_panels: int) -> Figure:
    """An empty picture with room for the panels."""
    try:
        from matplotlib.figure import Figure  # without pyplot nothing asks for a display
    except ImportError:
        raise ChartError('expected matplotlib, found none; pip install -e ".[plot]"') from None
    width, height = PANEL_INCHES
    n_columns = min(n_panels, COLUMNS)
    size = (width * n_columns, height * math.ceil(n_panels / COLUMNS))
    return Figure(figsize=size, layout="constrained")


def _panels(figure: Figure, n_panels: int) -> list:
    """So many axes, in rows."""
    shape = (math.ceil(n_panels / COLUMNS), min(n_panels, COLUMNS))
    axes = figure.subplots(*shape, squeeze=False).flatten().tolist()
    for unused in axes[n_panels:]:
        unused.remove()
    return axes[:n_panels]
