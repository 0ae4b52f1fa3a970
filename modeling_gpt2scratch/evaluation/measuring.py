"""Measures models on tasks, one after the other; whatever fails leaves the rest its numbers."""

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import transformers
from accelerate.utils.memory import clear_device_cache

from modeling_gpt2scratch.common.console import activity, has_terminal, tell
from modeling_gpt2scratch.common.hub_requests import cache_without_hub
from modeling_gpt2scratch.hardware.devices import without_tf32

from .configuration import CompareArguments
from .results.cache import ResultCache
from .results.fingerprints import checksums_of, evaluation_code, hub_commit, model_code, task_code
from .results.measurements import Measurement, ModelMeasurements
from .scoring.models import describe_model, load_scorer
from .scoring.processes import ProcessGroup, SharedProblemError
from .tasks.samples import Selection
from .tasks.task import Task, result_of


def load_tasks(
    config: CompareArguments, processes: ProcessGroup
) -> tuple[dict[str, Task], dict[str, str]]:
    """The tasks with their data, and why others have none.

    The main process reads first, so that the others find what it downloaded.
    """
    loaded: dict[str, Task] = {}
    problems: dict[str, str] = {}
    for name, kind in config.kinds.items():
        try:
            for is_first in (True, False):
                load = partial(_load, kind, config.selection(name))
                is_own = processes.is_main == is_first
                if (task := processes.alike(load if is_own else lambda: None)) is not None:
                    loaded[name] = task
        except SharedProblemError as error:
            loaded.pop(name, None)
            problems[name] = str(error)
    return loaded, problems


def sources_of(tasks: Mapping[str, Task], config: CompareArguments) -> dict[str, str]:
    """File, directory or Hub data set of each task's data; a task may bring its own and have none.

    Args:
        tasks: those whose data could be read.
    """
    sources = {}
    for name, task in tasks.items():
        with contextlib.suppress(OSError, ValueError):
            sources[name] = task.data.source(config.selection(name))
    return sources


@without_tf32()
def evaluate_model(
    model: ModelMeasurements,
    tasks: Mapping[str, Task],
    config: CompareArguments,
    cache: ResultCache,
    processes: ProcessGroup,
) -> None:
    """Measures a model on every task, and fills `model` as it goes.

    What the cache has is not measured again; a model that is all there is not even loaded.
    """
    with activity(f"looking at {model.name}"):
        keys = _look_up(model, tasks, config, cache, processes)
    missing = [name for name in tasks if name not in model.tasks]
    if not missing:
        return
    load = partial(
        load_scorer,
        model.name,
        device=config.device,
        dtype=config.dtype,
        batch_tokens=config.tokens_of_pass,
        trust_remote_code=config.trust_remote_code,
        processes=processes,
    )
    try:
        with activity(f"loading {model.name}"):
            scorer = processes.alike(load)
    except SharedProblemError as error:
        _note(model, missing, str(error), processes)
        return
    # Of a model of the Hub, some files may be here only now.
    known = model.files
    with activity(f"looking at {model.name}"):
        keys = _look_up(model, tasks, config, cache, processes)
    changed = [file for file, digest in known.items() if model.files.get(file) != digest]
    if changed:  # nobody knows which of them was loaded
        problem = f"expected {changed[0]} as it was before, found it changed while the model loaded"
        _note(model, missing, f"{problem}; measure the model again", processes)
        return
    missing = [name for name in missing if name not in model.tasks]
    model.description = describe_model(scorer)
    for name in missing:
        start = time.perf_counter()
        try:
            result = processes.alike(partial(result_of, tasks[name], scorer))
        except SharedProblemError as error:
            _note(model, [name], str(error), processes)
            continue
        model.tasks[name] = Measurement(result, seconds=time.perf_counter() - start)
        if processes.is_main and model.files:
            cache.write(keys[name], model.tasks[name], model.description)
        if processes.is_main and not has_terminal():  # in place of a bar
            tell(f"{model.name}, {name}: {model.tasks[name].seconds:.0f} s", file=sys.stderr)
    # The next model may need the memory of this one.
    del scorer
    clear_device_cache(garbage_collection=True)


def cache_key(
    files: Mapping[str, str], code: str | None, name: str, task: Task, config: CompareArguments
) -> dict[str, Any]:
    """Everything that a result depends on, fit for JSON."""
    return {
        "model": dict(files),
        "code": {"model": code, "evaluation": evaluation_code(), "task": task_code(type(task))},
        "dtype": config.dtype,
        "task": name,
        "protocol": task.protocol,
        "task_version": task.version,
        "data": task.sha256,
        "data_vocabulary": getattr(task, "data_vocabulary", None),  # of data that are tokens
        "limit": config.limit,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _load(kind: type[Task], selection: Selection) -> Task:
    """A task with its data.

    Raises:
        ValueError: if it does not say what its data are.
    """
    task = kind.load(selection)
    if not isinstance(found := getattr(task, "sha256", None), str):
        raise ValueError(
            f"expected a text as sha256 of the data, found {found!r}; set it, as with "
            f"digest_of_rows"
        )
    return task


def _look_up(
    model: ModelMeasurements,
    tasks: Mapping[str, Task],
    config: CompareArguments,
    cache: ResultCache,
    processes: ProcessGroup,
) -> dict[str, dict[str, Any]]:
    """Fills `model` with its checksums and what the cache has; returns the cache's key by task."""
    model.files, model.commit, code = processes.from_main(lambda: _identify(model.name, config))
    keys = {name: cache_key(model.files, code, name, task, config) for name, task in tasks.items()}
    hits = processes.from_main(
        lambda: {name: cache.read(key) for name, key in keys.items() if model.files}
    )
    for name, hit in hits.items():
        if hit is not None:
            model.tasks[name], model.description = hit
    return keys


def _identify(name: str, config: CompareArguments) -> tuple[dict[str, str], str | None, str | None]:
    """Checksums of a model's files, its commit on the Hub, and the checksum of its code.

    All are empty for a model that is not there.

    Loading will say so.
    """
    with cache_without_hub(name):
        try:
            files, commit = checksums_of(name), hub_commit(name)
        except (OSError, ValueError):
            return {}, None, None
        if not files:
            return {}, None, None
        return files, commit, model_code(name, trust_remote_code=config.trust_remote_code)


def _note(
    model: ModelMeasurements, tasks: Sequence[str], problem: str, processes: ProcessGroup
) -> None:
    """Keeps why tasks have no number, and says it once on stderr."""
    model.tasks |= {task: Measurement(error=problem) for task in tasks}
    if processes.is_main:
        tell(f"{model.name}, {', '.join(tasks)}: {problem}", file=sys.stderr)
