"""The Markdown table: a row for each task, protocol and metric, a column for each model.

Published numbers have columns of their own, which say that nothing of it was measured here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from tabulate import tabulate

from modeling_gpt2scratch.common.short_names import short_names
from modeling_gpt2scratch.evaluation.tasks.task import Estimate, Task

from .differences import Difference
from .measurements import Measurement, ModelMeasurements
from .published_numbers import PublishedNumber

NO_VALUE = "–"
Rows = Mapping[tuple[str, str], Difference]  # by task and metric


def markdown_table(
    tasks: Mapping[str, type[Task]],
    models: Sequence[ModelMeasurements],
    *,
    limit: int | None,
    differences: Mapping[str, Rows],
    published: Sequence[PublishedNumber],
) -> str:
    """The table of everything measured.

    Args:
        tasks: in the order of the rows.
        models: in the order of the columns.
        limit: of samples, None for all.
        differences: from the baseline, by model; the baseline has none.
        published: numbers that may stand beside these tasks.
    """
    sources = list(dict.fromkeys(number.source for number in published))
    errors = errors_of(tasks, models)
    rows = []
    for name, task in tasks.items():
        for metric, is_higher_better in task.metrics.items():
            own = [model.tasks.get(name) for model in models]
            head = [name, protocol_cell(task, limit, own), metric]
            cells = [
                format_cell(
                    model.tasks.get(name),
                    metric,
                    differences.get(model.name, {}).get((name, metric)),
                    is_first=metric == next(iter(task.metrics)),
                    errors=errors,
                )
                for model in models
            ]
            others = [_published_cell(published, source, name, metric) for source in sources]
            rows.append([*head, "↑" if is_higher_better else "↓", *cells, *others])
    titles = short_names(model.name for model in models)
    headers = ["Task", "Protocol", "Metric", "", *titles.values()]
    headers += [f"{source} (published, not measured here)" for source in sources]
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


def protocol_cell(
    task: type[Task], limit: int | None, measurements: Iterable[Measurement | None]
) -> str:
    """Protocol and version, and whether only the first samples were measured, as far as known."""
    n_read = [cell.result.n_read for cell in measurements if cell is not None and cell.result]
    is_cut = limit is not None and max(n_read, default=limit) >= limit
    first = f", first {limit:,} {task.samples}" if is_cut else ""
    return f"{task.protocol} v{task.version}{first}"


def errors_of(tasks: Iterable[str], models: Sequence[ModelMeasurements]) -> list[str]:
    """Every reason for which a cell has no number, once, in the order of the table."""
    cells = [model.tasks.get(name) for name in tasks for model in models]
    return list(dict.fromkeys(cell.error for cell in cells if cell is not None and cell.error))


def table_notes(
    tasks: Mapping[str, type[Task]],
    models: Sequence[ModelMeasurements],
    *,
    differences: Mapping[str, Rows],
    published: Sequence[PublishedNumber],
    baseline: str,
    sources: Mapping[str, str],
) -> list[str]:
    """What the table's titles and signs mean, a line each.

    Args:
        tasks: in the order of the rows.
        models: in the order of the columns.
        differences: from the baseline, by model.
        published: numbers that stand beside these tasks.
        baseline: name of the model that others are compared with.
        sources: what the published numbers' sources are.
    """
    titles = short_names(model.name for model in models)
    notes = [f"{title}: {name}" for name, title in titles.items() if title != name]
    errors = errors_of(tasks, models)
    notes += [f"error [{number}]: {text}" for number, text in enumerate(errors, start=1)]
    notes.append("± is one standard error.")
    precisions = {model.description.get("model_dtype") for model in models} - {None}
    if precisions - {"float32"}:
        notes.append(f"Weights and activations are in {', '.join(sorted(precisions))} (--dtype).")
    if any(model.has_infinite for model in models):
        notes.append(
            "inf (e^N): a perplexity too large for a number, of N nats per token or word; a word "
            "is what stands between spaces, so Japanese or Chinese text has few."
        )
    cells = [cell for model in models for cell in model.tasks.values()]
    if n_cached := sum(cell.is_from_cache for cell in cells):
        notes.append(
            f"{n_cached} of {len(cells)} results were measured before and come from the cache; "
            f"--cache false measures all of them."
        )
    notes += _difference_notes(tasks, models, differences, baseline=titles[baseline])
    notes += _test_notes(models, differences)
    notes += _per_token_notes(tasks, models)
    notes += _cut_notes(models, titles)
    return [*notes, *_published_notes(published, sources)]


def format_cell(
    measurement: Measurement | None,
    metric: str,
    difference: Difference | None = None,
    *,
    is_first: bool = True,
    errors: Sequence[str] = (),
) -> str:
    """Text of one cell; the number of its error in `errors` stands in the task's first row only."""
    if measurement is None:
        return "interrupted" if is_first else NO_VALUE
    if measurement.result is None:
        return f"error [{errors.index(measurement.error) + 1}]" if is_first else NO_VALUE
    estimate = measurement.result.estimates.get(metric)
    if estimate is None:
        return NO_VALUE
    return format_estimate(estimate) + ("" if difference is None else _in_parentheses(difference))


def format_estimate(estimate: Estimate) -> str:
    """Value and standard error; of what is too large for a number, the exponent."""
    if estimate.nats is not None:
        return f"inf (e^{estimate.nats:,.1f})"
    stderr = "" if estimate.stderr is None else f" ± {format_number(estimate.stderr)}"
    return format_number(estimate.value) + stderr


def format_number(value: float) -> str:
    """Four decimals, as lm-evaluation-harness has it; from a million on, scientific notation."""
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4e}"


def _difference_notes(
    tasks: Mapping[str, type[Task]],
    models: Sequence[ModelMeasurements],
    differences: Mapping[str, Rows],
    *,
    baseline: str,
) -> Iterator[str]:
    """What the parentheses hold, and in which rows the baseline has no number to compare with."""
    rows = [row for model in differences.values() for row in model.values()]
    if rows:
        tested = any(row.test for row in rows)
        how = (
            "; p from a test on the same examples (exact McNemar for accuracies, paired bootstrap "
            "for losses), corrected by Holm's method for the tests of the column"
        )
        what = f"the difference from {baseline} (for perplexities, the ratio)"
        yield f"In parentheses: {what}{how * tested}."
    compared = {row for model in differences.values() for row in model}
    others = [model for model in models if model.name in differences]
    missing = {}  # metrics by task
    for task, kind in tasks.items():
        for metric in kind.metrics:
            row = task, metric
            if row not in compared and any(model.value(*row) is not None for model in others):
                missing.setdefault(task, []).append(metric)
    if missing:
        places = [
            task if len(metrics) == len(tasks[task].metrics) else f"{task} {', '.join(metrics)}"
            for task, metrics in missing.items()
        ]
        where = f" for {'; '.join(places)}" if rows else ""
        yield f"No differences{where}: the baseline, {baseline}, has no number to compare with."


def _test_notes(
    models: Sequence[ModelMeasurements], differences: Mapping[str, Rows]
) -> Iterator[str]:
    """In which rows models read other samples than the baseline, so that nothing is tested."""
    untested = {}
    for name, rows in differences.items():
        pair = [model for model in models if model.name == name or model.name not in differences]
        for (task, metric), difference in rows.items():
            has_samples = all(metric in model.tasks[task].result.samples for model in pair)
            if difference.test is None and has_samples:
                untested[f"{task} {metric}"] = None
    if untested:
        yield (
            f"No test for {', '.join(untested)}: a model and the baseline did not read the same "
            "samples, as where windows are of another length."
        )


def _per_token_notes(
    tasks: Mapping[str, type[Task]], models: Sequence[ModelMeasurements]
) -> Iterator[str]:
    """Which rows do not compare models that cut text into other tokens."""
    rows = [
        (name, metric)
        for name, kind in tasks.items()
        for metric in getattr(kind, "per_token", ())  # most tasks have no such metric
        if len({model.vocabulary for model in models if model.value(name, metric) is not None}) > 1
    ]
    if rows:
        yield (
            f"Per token: {', '.join(map(' '.join, rows))}. These models have different "
            "vocabularies, and only bits per byte compares them."
        )


def _cut_notes(models: Sequence[ModelMeasurements], titles: Mapping[str, str]) -> Iterator[str]:
    """Which models have no room for some samples or their contexts, or no token for some text."""
    for model in models:
        for task, cell in model.tasks.items():
            details = cell.result.details if cell.result else {}
            if n_cut := details.get("n_truncated", 0):
                yield (
                    f"{task}: {titles[model.name]} has no room for {n_cut:,} of "
                    f"{cell.result.n_samples:,} contexts; their beginnings were cut off."
                )
            if n_left_out := details.get("n_left_out", 0):
                yield (
                    f"{task}: {titles[model.name]} has no room for {n_left_out:,} samples, which "
                    f"are left out; its score covers the rest."
                )
            if n_unknown := details.get("n_unknown", 0):
                yield (
                    f"{task}: {titles[model.name]} has no token for parts of the text; "
                    f"{n_unknown:,} scored tokens are its unknown token, so its score is of "
                    f"another text."
                )


def _published_notes(
    published: Sequence[PublishedNumber], sources: Mapping[str, str]
) -> Iterator[str]:
    """Where the published numbers are from."""
    for source in dict.fromkeys(number.source for number in published):
        numbers = [number for number in published if number.source == source]
        where = "; ".join(dict.fromkeys(number.where for number in numbers))
        reasons = "; ".join(dict.fromkeys(number.note for number in numbers if number.note))
        star = f". * {reasons}" if reasons else ""
        yield f"Published, not measured here: {source}, {sources[source]} ({where}){star}."


def _in_parentheses(difference: Difference) -> str:
    """The difference, or of perplexities the ratio, and if there was a test, its p."""
    text = format_number(abs(difference.value))
    if difference.ratio is not None:
        text = f"× {difference.ratio:.3g}"
    elif float(text):
        text = ("−" if difference.value < 0 else "+") + text
    if (p := difference.p_corrected) is not None:
        sign = "≤" if difference.test and difference.test.is_bound else "="
        text += ", p < 0.001" if p < 0.001 else f", p {sign} {p:.3f}"
    return f" ({text})"


def _published_cell(
    published: Sequence[PublishedNumber], source: str, task: str, metric: str
) -> str:
    """All of a source's numbers for one row, each after its model."""
    row = source, task, metric
    found = [number for number in published if (number.source, number.task, number.metric) == row]
    texts = [
        f"{number.model} {format_estimate(Estimate(number.value, number.stderr))}"
        + "*" * bool(number.note)
        for number in found
    ]
    return ", ".join(texts) or NO_VALUE
