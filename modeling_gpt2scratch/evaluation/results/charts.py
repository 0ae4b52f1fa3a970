"""Pictures of what was measured: bars for the models, and scores over the tokens of a training."""

from __future__ import annotations

import io
import json
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modeling_gpt2scratch.common.atomic_files import write_file
from modeling_gpt2scratch.common.json_lines import read_json_lines
from modeling_gpt2scratch.common.short_names import short_names

from .measurements import ModelMeasurements

if TYPE_CHECKING:  # loaded only to draw
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRICS_NAME, RUN_CONFIG_NAME = "metrics.jsonl", "train_config.json"  # of train_accelerate.py
PANEL_INCHES = (3.2, 2.6)
COLUMNS = 4
LINE_CHARACTERS = 50  # of small print under a panel
FAR_APART = 20  # the largest of a panel's values by the smallest


def draw_bars(
    models: Sequence[ModelMeasurements],
    metrics: Mapping[str, Mapping[str, bool]],
    output: Path,
    *,
    limit: int | None,
) -> bool:
    """Writes a panel for each task's metric with a bar for each model; ± one standard error.

    Metrics that are zero for every model have no panel, and a line below the others names them.

    Args:
        models: everything measured of each.
        metrics: of each task, with whether higher is better.
        output: the picture; its ending decides the format.
        limit: of samples, None for all.

    Returns:
        False, and no picture, if there is nothing to show.
    """
    rows = [(task, metric) for task, names in metrics.items() for metric in names]
    rows = [row for row in rows if any(model.value(*row) is not None for model in models)]
    zeros = [row for row in rows if not any(model.value(*row) for model in models)]
    rows = [row for row in rows if row not in zeros]
    if not rows:
        return False
    shown = [model for model in models if any(model.value(*row) is not None for row in rows)]
    figure, colors = _figure(len(rows)), _colors(len(shown))
    for axes, (task, metric) in zip(_panels(figure, len(rows)), rows, strict=True):
        values = []
        for place, model in enumerate(shown):
            if model.value(task, metric) is None:
                continue
            estimate = model.tasks[task].result.estimates[metric]
            error = estimate.stderr
            axes.bar(place, estimate.value, yerr=error, capsize=3, color=colors[place])
            values.append(estimate.value)
        if min(values) >= 0:
            axes.set_ylim(bottom=0)
        _spread(axes, values)
        axes.set_title(f"{task}\n{metric} {'↑' if metrics[task][metric] else '↓'}", fontsize=8)
        axes.set_xlim(-0.6, len(shown) - 0.4)
        axes.set_xticks([])
        axes.grid(axis="y", alpha=0.3)
    titles = short_names(model.name for model in models)
    _legend(figure, [titles[model.name] for model in shown])
    small_print = [f"at most the first {limit:,} samples of each task"] if limit else []
    if zeros:
        names = ", ".join(f"{task} {metric}" for task, metric in zeros)
        small_print.append(f"left out, as every bar is zero: {names}")
    width = LINE_CHARACTERS * min(len(rows), COLUMNS)
    figure.supxlabel("\n".join(textwrap.fill(line, width) for line in small_print), fontsize=8)
    write_file(output, picture(figure, output.suffix.removeprefix("."), dpi=120))
    return True


def draw_curves(runs: Sequence[str], output: Path) -> None:
    """Writes a panel for each score that the runs logged in training, over the tokens seen.

    Args:
        runs: models; those that are no output directory of a run are left out.
        output: the picture; there is none if no run logged a score.
    """
    logged = {run: _titled(scores_over_tokens(Path(run)), Path(run)) for run in runs}
    shown = {run: scores for run, scores in logged.items() if scores}
    names = list(dict.fromkeys(name for scores in shown.values() for name in scores))
    if not names:
        return
    figure, colors = _figure(len(names)), _colors(len(shown))
    for axes, name in zip(_panels(figure, len(names)), names, strict=True):
        for place, scores in enumerate(shown.values()):
            if points := scores.get(name):
                axes.plot(*zip(*points, strict=True), "o-", markersize=3, color=colors[place])
        _spread(axes, [value for scores in shown.values() for _, value in scores.get(name, [])])
        axes.set_title(name, fontsize=8)
        axes.set_xlabel("training tokens")
        axes.grid(alpha=0.3)
    titles = short_names(runs)
    _legend(figure, [titles[run] for run in shown])
    write_file(output, picture(figure, output.suffix.removeprefix("."), dpi=120))


def picture(figure: Figure, format: str, *, dpi: int) -> bytes:
    """A drawing in a format, named by the ending of its files."""
    content = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # of letters that the font lacks
        figure.savefig(content, format=format, dpi=dpi)
    return content.getvalue()


def scores_over_tokens(run: Path) -> dict[str, list[tuple[int, float]]]:
    """For each score of `--eval_tasks`, such as "lambada/acc", tokens and value at each time.

    Empty for a directory without a log.

    Raises:
        OSError: if the log cannot be read.
    """
    scores: dict[str, list[tuple[int, float]]] = {}
    for row in read_json_lines(run / METRICS_NAME, rising="step", texts=("sample",)):
        for name, value in row.items():
            is_score = (
                "/" in name
                and not name.startswith("eval_")
                and isinstance(value, int | float)
                and math.isfinite(value)
            )
            if is_score and isinstance(row.get("tokens"), int):
                scores.setdefault(name, []).append((row["tokens"], value))
    return scores


def _titled(scores: dict[str, list], run: Path) -> dict[str, list]:
    """The scores by what stands above their panel: those of other samples are in another one."""
    try:
        limit = json.loads((run / RUN_CONFIG_NAME).read_bytes()).get("eval_tasks_limit")
    except (OSError, ValueError, RecursionError, AttributeError):
        limit = None
    if not isinstance(limit, int):
        return scores
    return {f"{name}, first {limit:,} samples": points for name, points in scores.items()}


def _figure(n_panels: int) -> Figure:
    """An empty picture with room for the panels."""
    from matplotlib.figure import Figure  # without pyplot nothing asks for a display

    width, height = PANEL_INCHES
    n_columns = min(n_panels, COLUMNS)
    size = (width * n_columns, height * math.ceil(n_panels / COLUMNS))
    return Figure(figsize=size, layout="constrained")


def _colors(n: int) -> list:
    """So many colours, no two alike."""
    from matplotlib import colormaps

    few = colormaps["tab10"].colors
    return list(few[:n]) if n <= len(few) else list(colormaps["turbo"](np.linspace(0, 1, n)))


def _spread(axes: Axes, values: Sequence[float]) -> None:
    """Sees to it that the smallest value can be told from nothing beside the largest."""
    if min(values) > 0 and max(values) > FAR_APART * min(values):
        axes.set_yscale("log")
        axes.autoscale(axis="y")


def _legend(figure: Figure, names: Sequence[str]) -> None:
    """The colours of the models, once for all panels."""
    from matplotlib.patches import Patch

    colors = _colors(len(names))
    labels = [name.replace("$", r"\$") for name in names]  # which would begin a formula
    handles = [Patch(color=color, label=name) for color, name in zip(colors, labels, strict=True)]
    figure.legend(handles=handles, loc="outside upper center", ncols=COLUMNS, fontsize=8)


def _panels(figure: Figure, n_panels: int) -> list:
    """So many axes, in rows."""
    shape = (math.ceil(n_panels / COLUMNS), min(n_panels, COLUMNS))
    axes = figure.subplots(*shape, squeeze=False).flatten().tolist()
    for unused in axes[n_panels:]:
        unused.remove()
    return axes[:n_panels]
