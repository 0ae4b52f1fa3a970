"""The run's page to look at, `report.html`: curves to hover over and to zoom, events, samples.

plotly draws, and its script is part of the page.
"""

import html
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

from modeling_gpt2scratch.evaluation.results.html_page import html_page, html_table

from .loss_plot import PANELS, points_alone

HTML_NAME = "report.html"
LOSSES = {"loss": ("training loss", "lines"), "eval_loss": ("validation loss", "lines+markers")}
FORMATS = {"learning_rate": ".3~g", "tokens_per_second": ",.0f"}  # others as losses
LOSS_FORMAT = ".4f"
LOSS_SHARE = 3  # how much higher the losses are than another panel
PANEL_PIXELS, GAP = 130, 0.04
SHOWN_CHARACTERS, LINE_CHARACTERS = 300, 60  # of a sample over its point
SAMPLE = "Sample"
# These buttons alone: others of plotly's lead away from the page, to its own server.
BUTTONS = ["zoom2d", "pan2d", "resetScale2d", "toImage"]
CONFIG = {"displaylogo": False, "modeBarButtons": [BUTTONS], "plotlyServerURL": ""}
CONFIG |= {"responsive": True, "showSendToCloud": False}


def run_html(
    *,
    title: str,
    summary: str,
    results: Iterable[tuple[str, str]],
    settings: Mapping[str, object],
    files: Iterable[tuple[str, str]],
    logged: Sequence[dict],
    events: Sequence[tuple[str, dict]],
) -> bytes:
    """The file.

    Args:
        summary: what was trained on what, in Markdown.
        results: rows of a table, as `settings` and `files` are.
        settings: arguments of the training, and where it ran.
        files: what is in the directory.
        events: the lines of `events.jsonl`, each after its name.
    """
    from plotly.io import to_html  # loaded only to draw

    samples = [row for row in logged if row.get("sample")]
    curves = to_html(
        _figure(logged, [*events, *((SAMPLE, row) for row in samples)]),
        config=CONFIG,
        div_id="curves",
        full_html=False,
        include_plotlyjs=True,
    )
    about = "Losses and other curves over the steps; the results below have their last values."
    curves = f'<div role="img" aria-label="{about}">{curves}</div>'
    parts = [f"<p>{html.escape(_plain(summary))}</p>", curves]
    parts += ["<h2>Results</h2>", html_table(results)]
    if samples:
        parts += ["<h2>Samples</h2>", *map(_sample, samples)]
    parts += ["<h2>Settings</h2>", html_table(settings.items())]
    found = [(name, _plain(text)) for name, text in files]
    return html_page(title, *parts, "<h2>Where things are</h2>", html_table(found))


def _figure(logged: Sequence[dict], happened: Sequence[tuple[str, dict]]) -> dict:
    """The panels, one below the other over the same steps, as plotly's JSON has it."""
    rows = [row for row in logged if any(name in row for name in (*LOSSES, *PANELS))]
    panels = {name: text for name, text in PANELS.items() if any(name in row for row in rows)}
    data = [
        _trace(rows, name, title, axis="y", mode=mode) for name, (title, mode) in LOSSES.items()
    ]
    axes = [{"title": {"text": "loss (nats per token)"}, "hoverformat": LOSS_FORMAT}]
    for name, text in panels.items():
        axes.append({"title": {"text": text}, "hoverformat": FORMATS.get(name, LOSS_FORMAT)})
        data.append(_trace(rows, name, text, axis=f"y{len(axes)}", mode="lines"))
    if happened:
        axes.append({"type": "category", "fixedrange": True})
        data += _happened(happened, axis=f"y{len(axes)}")
    layout = {"height": PANEL_PIXELS * (len(axes) + LOSS_SHARE - 1), "margin": {"t": 30, "r": 30}}
    layout |= {"hovermode": "x unified", "hoversubplots": "axis", "template": "plotly_white"}
    layout |= {"dragmode": "zoom", "legend": {"orientation": "h", "y": 1, "yanchor": "bottom"}}
    layout |= {"font": {"size": 11}, "hoverlabel": {"namelength": -1}}
    layout["xaxis"] = {"title": {"text": "step"}, "anchor": f"y{len(axes)}", "hoverformat": ",d"}
    layout["xaxis"]["unifiedhovertitle"] = {"text": "step %{x}"}
    top, share = 1.0, 1 / (len(axes) + LOSS_SHARE - 1)
    for number, axis in enumerate(axes, start=1):
        height = share * (LOSS_SHARE if number == 1 else 1)
        axis["domain"] = [max(0, top - height + (GAP if number < len(axes) else 0)), top]
        layout["yaxis" if number == 1 else f"yaxis{number}"] = axis
        top -= height
    return {"data": data, "layout": layout}


def _trace(rows: Sequence[dict], name: str, title: str, *, axis: str, mode: str) -> dict:
    """A line of what was logged as `name`; a value that is no number leaves a gap."""
    points = [row for row in rows if name in row]
    trace = {"type": "scatter", "mode": mode, "name": title, "xaxis": "x", "yaxis": axis}
    trace["x"] = [row["step"] for row in points]
    trace["y"] = [row[name] if isinstance(row[name], int | float) else None for row in points]
    alone = points_alone([math.nan if value is None else value for value in trace["y"]])
    if mode == "lines" and alone:
        sizes = [5 if index in alone else 0 for index in range(len(points))]
        trace |= {"mode": "lines+markers", "marker": {"size": sizes}}
    return trace | {"line": {"width": 1.5}, "showlegend": name in LOSSES}


def _happened(happened: Sequence[tuple[str, dict]], *, axis: str) -> Iterator[dict]:
    """A row of points for each kind of event, with what is known of each."""
    for name in dict.fromkeys(name for name, _ in happened):
        rows = [row for own, row in happened if own == name and isinstance(row.get("step"), int)]
        label = _text(textwrap.shorten(name, LINE_CHARACTERS, placeholder=" …"))
        trace = {"type": "scatter", "mode": "markers", "name": label, "xaxis": "x", "yaxis": axis}
        trace |= {"x": [row["step"] for row in rows], "y": [label] * len(rows)}
        trace |= {"text": [_over_point(row) for row in rows], "marker": {"size": 9}}
        yield trace | {"hovertemplate": "%{text}", "showlegend": False}


def _over_point(row: dict) -> str:
    """A sample, or the numbers of an event."""
    text = row.get("sample")
    if text is None:
        numbers = [(name, value) for name, value in row.items() if isinstance(value, int | float)]
        text = ", ".join(f"{name} {value}" for name, value in numbers)
    text = textwrap.shorten(str(text), SHOWN_CHARACTERS, placeholder=" …")
    return "<br>".join(map(_text, textwrap.wrap(text, LINE_CHARACTERS)))


def _text(text: str) -> str:
    """Text for plotly, which takes some HTML in its labels, and has no entities for quotes."""
    return html.escape(text, quote=False)


def _sample(row: dict) -> str:
    """What the model wrote after a step, to be opened."""
    text = html.escape(str(row["sample"]))
    return f"<details><summary>After step {row['step']:,}</summary><pre>{text}</pre></details>"


def _plain(markdown: str) -> str:
    """Text without Markdown's links and code."""
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown).replace("`", "")
