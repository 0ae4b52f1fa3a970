"""The comparison to look at, `comparison.html`: a row for each model, a column for each metric.

Columns sort, and every number says over it what it is. Samples that were logged, right or wrong for
each model, stand below; they are filtered and searched. DataTables does that: its script is part
of the page, and itables brings it.
"""

import html
import math
import sys
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modeling_gpt2scratch.evaluation.tasks.task import Estimate, Task

from .differences import Difference
from .html_page import html_page, script_json
from .measurements import ModelMeasurements
from .paired_tests import PairedTest
from .published_numbers import PublishedNumber
from .sample_logs import leaving_out, sample_rows
from .table import NO_VALUE, Shown, format_estimate

PAGE_NAME = "comparison.html"
SHOWN_CHARACTERS = 1_000  # of a sample, its end
OUTCOMES = {1.0: "right", 0.0: "wrong"}
LIST, SEARCH = "searchList", "search"  # what a column of samples is filtered with
STYLE = """
#samples td { white-space: pre-wrap }
#samples td:nth-child(3) { min-width: 24rem }
#scores td + td { min-width: 9rem }
tr.published { color: #555; font-style: italic }
"""
SCRIPT = """
import DataTable from "data:text/javascript;base64,%s";
const shared = {autoWidth: false, order: []};
const missingLast = compare => (a, b) => (a === "") - (b === "") || compare(a, b);
DataTable.type("score", "order",
  {asc: missingLast((a, b) => a - b), desc: missingLast((a, b) => b - a)});
const columnDefs = [{targets: "score", type: "score"}, {targets: 0, type: "string-utf8"}];
new DataTable("#scores", {...shared, columnDefs,
  fixedColumns: true, info: false, paging: false, scrollX: true, searching: false});
const samples = document.getElementById("samples-data");
if (samples) {
  const columns = [...document.querySelectorAll("#samples th")].map(head => (
    {columnControl: [[head.dataset.filter]], render: DataTable.render.text()}));
  new DataTable("#samples", {...shared, columns, data: JSON.parse(samples.textContent)});
}
"""


def comparison_page(shown: Shown, *, notes: Iterable[str], logged: Mapping[str, Task]) -> bytes:
    """The file.

    Args:
        notes: what is to be known of the table, in plain text.
        logged: tasks whose samples are to be shown, by name.
    """
    import itables.options  # loaded only to write a page

    columns = [(name, metric) for name, task in shown.tasks.items() for metric in task.metrics]
    head = "".join(_head(shown, *column) for column in columns)
    rows = [
        _row(shown.titles[model.name], (_cell(shown, model, *column) for column in columns))
        for model in shown.models
    ]
    rows += _published_rows(shown.published, columns)
    table = f"<thead><tr><th>Model</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    parts = [f'<table id="scores" class="display">{table}</table>']
    parts += [f"<p>{html.escape(note)}</p>" for note in notes]
    parts += _samples(logged, shown.models, shown.titles)
    bundle = Path(itables.options.dt_bundle)
    script = b64encode(bundle.read_bytes()).decode()
    parts.append(f'<script type="module">{SCRIPT % script}</script>')
    style = bundle.with_suffix(".css").read_text(encoding="utf-8")
    return html_page("Comparison of language models", *parts, style=style + STYLE)


def _head(shown: Shown, name: str, metric: str) -> str:
    """The title of a column."""
    arrow = "↑" if shown.tasks[name].metrics[metric] else "↓"
    about = f"{'higher' if arrow == '↑' else 'lower'} is better"
    title = f"{html.escape(name)}<br>{html.escape(metric)} {arrow}"
    title += f"<br><small>{html.escape(shown.protocol(name))}</small>"
    return f'<th class="score" title="{about}">{title}</th>'


def _row(name: str, cells: Iterable[tuple[float | None, str, str]], kind: str = "") -> str:
    """A row of values to sort by, what is shown of them, and what stands over them."""
    own = "".join(
        f'<td data-order="{"" if value is None else value}" title="{html.escape(about)}">'
        f"{html.escape(text)}</td>"
        for value, text, about in cells
    )
    return f'<tr class="{kind}"><td>{html.escape(name)}</td>{own}</tr>'


def _cell(
    shown: Shown, model: ModelMeasurements, name: str, metric: str
) -> tuple[float | None, str, str]:
    """One number of one model, as in the table that is printed."""
    text, about = shown.cell(model, name, metric), shown.protocol(name)
    measurement = model.tasks.get(name)
    if measurement is None or measurement.result is None:
        return None, text, f"{about}; {measurement.error if measurement else 'interrupted'}"
    about += f"; {measurement.result.n_samples:,} {shown.tasks[name].samples}"
    difference = shown.differences.get(model.name, {}).get((name, metric))
    if difference is not None:
        about += f"; {_about(difference)}"
    estimate = measurement.result.estimates.get(metric)
    return (None if estimate is None else _sortable(estimate)), text, about


def _sortable(estimate: Estimate) -> float:
    """The value; one that is too large for a number comes after all others."""
    return estimate.value if math.isfinite(estimate.value) else sys.float_info.max


def _about(difference: Difference) -> str:
    """How a model differs from the baseline, and the test of it."""
    if difference.test is None:
        return f"{difference.value:+.4g} to the baseline, not tested: not the same samples"
    test, corrected = difference.test, difference.p_corrected
    sign = "≤" if test.is_bound else "="
    return f"{_counts(test)}; p {sign} {test.p:.3g}, {corrected:.3g} by Holm's method"


def _counts(test: PairedTest) -> str:
    """What a test counted."""
    found = test.details
    if test.name == "mcnemar":
        first, second = found["n_better_first"], found["n_better_second"]
        return f"exact McNemar test: right here alone {first:,}, in the baseline alone {second:,}"
    low, high = found["mean_difference_low"], found["mean_difference_high"]
    return (
        f"paired bootstrap: {found['mean_difference']:+.4g} nats from the baseline per sample, "
        f"95 % interval {low:+.4g} to {high:+.4g}"
    )


def _published_rows(
    published: Sequence[PublishedNumber], columns: Sequence[tuple[str, str]]
) -> Iterator[str]:
    """A row for each model of each source, beside the protocols that its numbers belong to."""
    places = {(n.source, n.model, n.task, n.metric): n for n in published}
    for source, model in dict.fromkeys(place[:2] for place in places):
        cells = []
        for column in columns:
            number = places.get((source, model, *column))
            if number is None:
                cells.append((None, NO_VALUE, ""))
                continue
            estimate = Estimate(number.value, number.stderr)
            about = f"published, not measured here: {source}, {number.where}"
            about += f"; {number.note}" if number.note else ""
            cells.append((number.value, format_estimate(estimate) + "*" * bool(number.note), about))
        yield _row(f"{model}, {source} (published)", cells, "published")


def _samples(
    logged: Mapping[str, Task], models: Sequence[ModelMeasurements], titles: Mapping[str, str]
) -> Iterator[str]:
    """The samples that are right or wrong, with what each model made of them."""
    if not logged:
        return
    rows = []
    for name, task in logged.items():
        with leaving_out(f"samples of {name} in {PAGE_NAME}"):
            rows += list(_rows_of(name, task, models))
    yield "<h2>Samples</h2>"
    if not rows:
        yield "<p>None of these tasks has samples that are right or wrong.</p>"
        return
    heads = [("Task", LIST), *((head, SEARCH) for head in ("Number", "Sample", "Right answer"))]
    heads += [(titles[model.name], LIST) for model in models]
    cells = (f'<th data-filter="{filter}">{html.escape(head)}</th>' for head, filter in heads)
    yield f'<table id="samples" class="display"><thead><tr>{"".join(cells)}</tr></thead></table>'
    yield f'<script type="application/json" id="samples-data">{script_json(rows)}</script>'


def _rows_of(
    name: str, task: Task, models: Sequence[ModelMeasurements]
) -> Iterator[list[str | int]]:
    """Task, number, text, right answer, and right or wrong for each model."""
    results = [model.tasks[name].result if name in model.tasks else None for model in models]
    metric = next(iter(task.metrics))
    values = [None if result is None else result.samples.get(metric) for result in results]
    known = [own for own in values if own is not None]
    if not known or not all(np.isin(own[np.isfinite(own)], (0, 1)).all() for own in known):
        return
    first = next(result for result in results if result is not None and metric in result.samples)
    for number, row in enumerate(sample_rows(task, first)):
        if "doc" not in row:
            return
        own = (NO_VALUE if own is None else OUTCOMES.get(own[number], NO_VALUE) for own in values)
        yield [name, number, *_texts(row), *own]


def _texts(row: Mapping[str, Any]) -> tuple[str, str]:
    """What was asked, and the right answer."""
    requests = [list(request.values()) for request in row.get("arguments", {}).values()]
    if len(requests) < 2:
        return _end(row["doc"].get("text", "")), row["target"].strip()
    context, answers = requests[0][0], [answer.strip() for _, answer in requests]
    asked = "\n".join([_end(context), *(f"– {_end(answer)}" for answer in answers)])
    return asked.strip(), _end(answers[int(row["target"])])


def _end(text: str) -> str:
    """The last characters of a text."""
    return text if len(text) <= SHOWN_CHARACTERS else f"… {text[-SHOWN_CHARACTERS:]}"
