"""What a comparison prints at its end, and the files that it writes."""

import dataclasses
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modeling_gpt2scratch.common.atomic_files import write_file, write_json
from modeling_gpt2scratch.common.console import tell
from modeling_gpt2scratch.common.errors import file_problem, reason

from .configuration import BARS_NAME, CURVES_NAME, HARNESS_FOLDER, RESULTS_FILE, CompareArguments
from .results.charts import draw_bars, draw_curves
from .results.comparison_page import PAGE_NAME, comparison_page
from .results.differences import differences_of
from .results.measurements import ModelMeasurements
from .results.published_numbers import numbers_beside, read_published
from .results.results_json import model_content, results_content
from .results.sample_logs import write_samples
from .results.table import Shown, markdown_table, table_notes
from .tasks.samples import NO_CHECKSUM, UNCHECKED
from .tasks.task import Task

MAX_FOLDER_BYTES = 200  # of its name; a file system takes 255


@dataclass
class Comparison:
    """What was measured so far, and on what."""

    models: list[ModelMeasurements]
    tasks: dict[str, Task] = field(default_factory=dict)  # those whose data could be read
    is_complete: bool = False
    sources: dict[str, str] = field(default_factory=dict)  # of the tasks' data


def report(
    config: CompareArguments, comparison: Comparison, output_dir: Path, seconds: float
) -> bool:
    """Writes the files and prints the table; whether they could be written, else stderr says why.

    Args:
        comparison: everything measured.
    """
    models, metrics = comparison.models, metrics_of(config)
    (baseline,) = (m for m in models if m.name == (config.baseline or config.models[0]))
    differences = {
        model.name: differences_of(model, baseline, metrics)
        for model in models
        if model is not baseline
    }
    numbers, origins = read_published()
    published = numbers_beside(numbers, tasks=metrics, models=config.models)
    shown = Shown(
        config.kinds, models, baseline.name, config.limit, differences, published, origins
    )
    table, notes = markdown_table(shown), table_notes(shown)
    notes += data_notes(comparison.tasks, config.limit)
    results = {"differences": differences, "published": published, "baseline": baseline.name}
    say_what_is_left(output_dir / RESULTS_FILE, models, asked=config.kinds)
    problem = None
    try:
        write_files(config, comparison, output_dir, results | {"seconds": seconds})
        logged = comparison.tasks if config.log_samples else {}
        page = comparison_page(shown, notes=notes, logged=logged)
        write_file(output_dir / PAGE_NAME, page)
    except ImportError as error:  # of the page, on a machine with little more than torch
        tell(f"no {PAGE_NAME}: {error}", file=sys.stderr)
    except (OSError, UnicodeEncodeError) as error:
        problem = f"--output_dir: expected to write to {output_dir}, found {reason(error)}"
    print(table, "", *notes, sep="\n")
    if problem:
        tell(problem, file=sys.stderr)
    return not problem


def say_what_is_left(
    path: Path, models: Sequence[ModelMeasurements], *, asked: Collection[str]
) -> None:
    """Names what an earlier comparison measured, and this one was not asked for."""
    try:
        before = json.loads(path.read_bytes())["models"]
        measured = {name: {*model["results"]} for name, model in before.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return
    present = {model.name for model in models}
    left = [
        f"{', '.join(sorted(gone))} of {name}"
        for name, tasks in measured.items()
        if (gone := tasks - {*asked} if name in present else tasks)
    ]
    if left:
        tell(
            f"{path} had {'; '.join(left)}, and is replaced; name all models and tasks at once, "
            f"and what was measured comes from the cache",
            file=sys.stderr,
        )


def metrics_of(config: CompareArguments) -> dict[str, dict[str, bool]]:
    """The metrics of each task, and whether higher is better."""
    return {name: kind.metrics for name, kind in config.kinds.items()}


def data_notes(tasks: Mapping[str, Task], limit: int | None) -> list[str]:
    """What is to be known of the data, a line each.

    Args:
        tasks: those whose data could be read.
        limit: of samples, None for all.
    """
    data = {name: task.data for name, task in tasks.items()}
    status = {name: getattr(tasks[name], "data_status", None) or "" for name in data}
    problems = {name: own.problem(status[name], limit=limit) for name, own in data.items()}
    notes = [
        f"{name}: {problem}: these are scores of other data, or of a damaged file."
        for name, problem in problems.items()
        if problem
    ]
    if unknown := [name for name in data if status[name] == NO_CHECKSUM]:
        notes.append(f"{', '.join(unknown)}: {NO_CHECKSUM} of these data.")
    first = [name for name in data if status[name].endswith(UNCHECKED) and not problems[name]]
    if first:
        notes.append(
            f"{', '.join(first)}: first samples only, not compared with the official file."
        )
    return notes


def write_files(
    config: CompareArguments, comparison: Comparison, output_dir: Path, results: dict[str, Any]
) -> None:
    """Writes results.json and what else the command line asks for.

    Args:
        comparison: everything measured.
        results: further arguments of `results_content`.

    Raises:
        OSError: if they cannot be written.
    """
    models, tasks = comparison.models, comparison.tasks
    now = datetime.now(UTC)
    shared = {"batch_size": config.tokens_of_pass, "device": config.device}
    shared |= {"limit": config.limit, "dtype": config.dtype}
    contents = [
        model_content(model, tasks, config=shared, sources=comparison.sources, date=now.timestamp())
        for model in models
    ]
    parsed = {"tasks": list(config.kinds), "batch_tokens": config.tokens_of_pass}
    content = results_content(
        dataclasses.asdict(config) | parsed,
        contents,
        date=now.isoformat(timespec="seconds"),
        is_complete=comparison.is_complete,
        **results,
    )
    _write(output_dir / RESULTS_FILE, content)
    stamp = now.strftime("%Y-%m-%dT%H-%M-%S.%f")
    taken: set[Path] = set()
    for model, content in zip(models, contents, strict=True):
        name = content["model_name_sanitized"].encode()[-MAX_FOLDER_BYTES:].decode(errors="ignore")
        folder = output_dir / HARNESS_FOLDER / name
        while folder in taken:  # runs/a/b and runs/a__b
            folder = folder.with_name(f"{folder.name}_")
        taken.add(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / f"results_{stamp}.json", content)
        if config.log_samples:
            write_samples(folder, model, tasks, stamp)
    if config.charts:
        bars = output_dir / BARS_NAME
        if not draw_bars(models, metrics_of(config), bars, limit=config.limit):
            tell(f"no {BARS_NAME}: every number is zero, or there is none", file=sys.stderr)
        try:
            draw_curves([model.name for model in models], output_dir / CURVES_NAME)
        except OSError as error:  # of a log that cannot be read
            tell(f"no {CURVES_NAME}: {file_problem(error)}", file=sys.stderr)


def _write(path: Path, content: dict[str, Any]) -> None:
    """Writes strict JSON: no NaN, which other readers refuse."""
    write_json(path, content, ensure_ascii=False, allow_nan=False)
