"""A whole comparison: the models are measured one after the other, then the table is printed."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from modeling_gpt2scratch.common.console import activity, tell
from modeling_gpt2scratch.common.output_directory import OutputError, claimed

from .configuration import CACHE_FOLDER, RESULTS_FILE, CompareArguments
from .measuring import evaluate_model, load_tasks, sources_of
from .report import Comparison, report
from .results.cache import ResultCache
from .results.measurements import Measurement, ModelMeasurements
from .scoring.processes import ProcessGroup


def run_comparison(
    config: CompareArguments, output_dir: Path, comparison: Comparison | None = None
) -> int:
    """Exit code of a comparison: 1 if a number is missing.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when the numbers so far are in the table and the files. The
            same comparison goes on from there.
        OutputError: if another comparison writes to the same directory.
    """
    start, interruption = time.perf_counter(), None
    processes = ProcessGroup(config.device)
    if comparison is None:
        comparison = Comparison([ModelMeasurements(name) for name in config.models])
    is_written = True
    with alone_in(output_dir, processes):
        try:
            evaluate(config, comparison, output_dir, processes)
            comparison.is_complete = True
        except KeyboardInterrupt as error:
            interruption = error
        if processes.is_main and (comparison.is_complete or has_any(comparison)):
            is_written = report(config, comparison, output_dir, time.perf_counter() - start)
    if interruption is not None:
        raise interruption
    processes.end()
    # What is missing, the main process says: a launcher ends all once one of them has failed.
    is_whole = is_written and all(has_all(model, config) for model in comparison.models)
    return int(processes.is_main and not is_whole)


@contextmanager
def alone_in(output_dir: Path, processes: ProcessGroup) -> Iterator[None]:
    """Keeps other comparisons from writing their results here as long as the block lasts.

    Raises:
        OutputError: if one is at work, on all processes alike.
    """
    with ExitStack() as stack:

        def claim() -> str | None:
            try:
                stack.enter_context(claimed(output_dir / RESULTS_FILE))
            except OSError as error:
                return str(error)

        if problem := processes.from_main(claim):
            raise OutputError(problem)
        yield


def has_any(comparison: Comparison) -> bool:
    """Whether there is a number of any model."""
    cells = [cell for model in comparison.models for cell in model.tasks.values()]
    return any(cell.result is not None for cell in cells)


def has_all(model: ModelMeasurements, config: CompareArguments) -> bool:
    """Whether a model has every number."""
    cells = [model.tasks.get(name) for name in config.kinds]
    return all(cell is not None and cell.result is not None for cell in cells)


def evaluate(
    config: CompareArguments, comparison: Comparison, output_dir: Path, processes: ProcessGroup
) -> None:
    """Fills `comparison` as it goes."""
    directory = Path(config.cache_dir) if config.cache_dir else output_dir / CACHE_FOLDER
    cache = ResultCache(directory if config.cache else None)
    if processes.is_main:
        cache.check()
    with activity("reading the data of the tasks"):
        tasks, problems = load_tasks(config, processes)
    comparison.tasks, comparison.sources = tasks, sources_of(tasks, config)
    if processes.is_main:
        for name, problem in problems.items():
            tell(f"{name}: {problem}", file=sys.stderr)
    for model in comparison.models:
        model.tasks |= {name: Measurement(error=text) for name, text in problems.items()}
        evaluate_model(model, tasks, config, cache, processes)
