"""The Markdown table: a row for each task, protocol and metric, a column for each model.

Published numbers have columns of their own, which say that nothing of it was measured here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tabulate import tabulate

from modeling_gpt2scratch.common.short_names import short_names
from modeling_gpt2scratch.evaluation.tasks.task import Estimate, Task

from .differences import Difference
from .measurements import ModelMeasurements
from .published_numbers import PublishedNumber

NO_VALUE = "–"
Rows = Mapping[tuple[str, str], Difference]  # by task and metric


@dataclass(frozen=True)
class Shown:
    """What a table and a page show of a comparison."""

    tasks: Mapping[str, type[Task]]  # in their order
    models: Sequence[ModelMeasurements]  # likewise
    baseline: str  # name of the model that the others are compared with
    limit: int | None = None  # of samples
    differences: Mapping[str, Rows] = field(default_factory=dict)  # by model, but the baseline
    published: Sequence[PublishedNumber] = ()  # that may stand beside these tasks
    sources: Mapping[str, str] = field(default_factory=dict)  # what those of the numbers are

    @cached_property
    def titles(self) -> dict[str, str]:
        """A short name for each model."""
        return short_names(model.name for model in self.models)

    @cached_property
    def errors(self) -> list[str]:
        """Every reason for which a cell has no number, once, in the order of the table."""
        cells = [model.tasks.get(name) for name in self.tasks for model in self.models]
        return list(dict.fromkeys(cell.error for cell in cells if cell is not None and cell.error))

    def protocol(self, name: str) -> str:
        """Protocol and version, and whether only the first samples were measured, if known."""
        task, cells = self.tasks[name], [model.tasks.get(name) for model in self.models]
        n_read = [cell.result.n_read for cell in cells if cell is not None and cell.result]
        is_cut = self.limit is not None and max(n_read, default=self.limit) >= self.limit
        first = f", first {self.limit:,} {task.samples}" if is_cut else ""
        return f"{task.protocol} v{task.version}{first}"

    def cell(self, model: ModelMeasurements, name: str, metric: str) -> str:
        """What one model has in a row; why it has nothing stands in the task's first row only."""
        measurement = model.tasks.get(name)
        is_first = metric == next(iter(self.tasks[name].metrics))
        if measurement is None:
            return "interrupted" if is_first else NO_VALUE
        if measurement.result is None:
            number = self.errors.index(measurement.error) + 1
            return f"error [{number}]" if is_first else NO_VALUE
        estimate = measurement.result.estimates.get(metric)
        if estimate is None:
            return NO_VALUE
        difference = self.differences.get(model.name, {}).get((name, metric))
        text = "" if difference is None else _in_parentheses(difference)
        return format_estimate(estimate) + text


def markdown_table(shown: Shown) -> str:
    """The table of everything measured."""
    sources = list(dict.fromkeys(number.source for number in shown.published))
    rows = []
    for name, task in shown.tasks.items():
        for metric, is_higher_better in task.metrics.items():
            head = [name, shown.protocol(name), metric, "↑" if is_higher_better else "↓"]
            cells = [shown.cell(model, name, metric) for model in shown.models]
            others = [_published_cell(shown.published, source, name, metric) for source in sources]
            rows.append([*head, *cells, *others])
    headers = ["Task", "Protocol", "Metric", "", *shown.titles.values()]
    headers += [f"{source} (published, not measured here)" for source in sources]
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


def table_notes(shown: Shown) -> list[str]:
    """What the table's titles and signs mean, a line each."""
    models = shown.models
    notes = [f"{title}: {name}" for name, title in shown.titles.items() if title != name]
    notes += [f"error [{number}]: {text}" for number, text in enumerate(shown.errors, start=1)]
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
    for kind in (_difference_notes, _test_notes, _per_token_notes, _cut_notes, _published_notes):
        notes += kind(shown)
    return notes


def format_estimate(estimate: Estimate) -> str:
    """Value and standard error; of what is too large for a number, the exponent."""
    if estimate.nats is not None:
        return f"inf (e^{estimate.nats:,.1f})"
    stderr = "" if estimate.stderr is None else f" ± {format_number(estimate.stderr)}"
    return format_number(estimate.value) + stderr


def format_number(value: float) -> str:
    """Four decimals, as lm-evaluation-harness has it; from a million on, scientific notation."""
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4e}"


def _difference_notes(shown: Shown) -> Iterator[str]:
    """What the parentheses hold, and in which rows the baseline has no number to compare with."""
    differences, baseline = shown.differences, shown.titles[shown.baseline]
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
    others = [model for model in shown.models if model.name in differences]
    missing = {}  # metrics by task
    tasks = shown.tasks
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


def _test_notes(shown: Shown) -> Iterator[str]:
    """In which rows models read other samples than the baseline, so that nothing is tested."""
    untested = {}
    for name, rows in shown.differences.items():
        pair = [model for model in shown.models if model.name in (name, shown.baseline)]
        for (task, metric), difference in rows.items():
            has_samples = all(metric in model.tasks[task].result.samples for model in pair)
            if difference.test is None and has_samples:
                untested[f"{task} {metric}"] = None
    if untested:
        yield (
            f"No test for {', '.join(untested)}: a model and the baseline did not read the same "
            "samples, as where windows are of another length."
        )


def _per_token_notes(shown: Shown) -> Iterator[str]:
    """Which rows do not compare models that cut text into other tokens."""
    models = shown.models
    rows = [
        (name, metric)
        for name, kind in shown.tasks.items()
        for metric in getattr(kind, "per_token", ())  # most tasks have no such metric
        if len({model.vocabulary for model in models if model.value(name, metric) is not None}) > 1
    ]
    if rows:
        yield (
            f"Per token: {', '.join(map(' '.join, rows))}. These models have different "
            "vocabularies, and only bits per byte compares them."
        )


def _cut_notes(shown: Shown) -> Iterator[str]:
    """Which models have no room for some samples or their contexts, or no token for some text."""
    for model in shown.models:
        for task, cell in model.tasks.items():
            details, title = cell.result.details if cell.result else {}, shown.titles[model.name]
            if n_cut := details.get("n_truncated", 0):
                yield (
                    f"{task}: {title} has no room for {n_cut:,} of {cell.result.n_samples:,} "
                    f"contexts; their beginnings were cut off."
                )
            if n_left_out := details.get("n_left_out", 0):
                yield (
                    f"{task}: {title} has no room for {n_left_out:,} samples, which are left "
                    f"out; its score covers the rest."
                )
            if n_unknown := details.get("n_unknown", 0):
                yield (
                    f"{task}: {title} has no token for parts of the text; {n_unknown:,} scored "
                    f"tokens are its unknown token, so its score is of another text."
                )


def _published_notes(shown: Shown) -> Iterator[str]:
    """Where the published numbers are from."""
    for source in dict.fromkeys(number.source for number in shown.published):
        numbers = [number for number in shown.published if number.source == source]
        where = "; ".join(dict.fromkeys(number.where for number in numbers))
        reasons = "; ".join(dict.fromkeys(number.note for number in numbers if number.note))
        star = f". * {reasons}" if reasons else ""
        yield f"Published, not measured here: {source}, {shown.sources[source]} ({where}){star}."


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
