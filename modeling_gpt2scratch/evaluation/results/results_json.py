"""results.json: everything measured, and on what.

`models` holds one object for each model, with the keys of lm-evaluation-harness, so that what reads
its results reads ours: `results`, `configs`, `versions`, `n-shot`, `higher_is_better`, `n-samples`,
`config`, `task_hashes` and so on. docs/reference/results.md describes the keys.
"""

import dataclasses
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

import accelerate
import numpy as np
import torch
import transformers

from modeling_gpt2scratch.common.addresses import split_revision
from modeling_gpt2scratch.common.output_directory import Marker
from modeling_gpt2scratch.distributed.accelerator import own_version
from modeling_gpt2scratch.evaluation.tasks.task import Task

from .differences import Difference
from .measurements import ModelMeasurements
from .paired_tests import N_RESAMPLES, SEED
from .published_numbers import PublishedNumber

MARKER = Marker("results.json", "gpt2scratch-comparison", version=2)
FILTER = "none"  # of lm-evaluation-harness: what is done with a model's answer before it is scored


def results_content(
    arguments: dict[str, Any],
    models: Sequence[dict[str, Any]],
    *,
    differences: Mapping[str, Mapping[tuple[str, str], Difference]],
    published: Sequence[PublishedNumber],
    baseline: str,
    date: str,
    seconds: float,
    is_complete: bool,
) -> dict[str, Any]:
    """The whole file.

    Args:
        differences: from the baseline, by model.
        published: numbers that the table shows beside ours.
        baseline: the model that others were compared with.
        date: of the end, in ISO 8601.
        is_complete: false if the evaluation was interrupted.
    """
    own = own_version()
    return {
        **MARKER.content(),
        "is_complete": is_complete,
        "models": {model["model_name"]: model for model in models},
        "baseline": baseline,
        "differences": [
            _difference(name, *row, difference)
            for name, rows in differences.items()
            for row, difference in rows.items()
        ],
        "published_not_measured_here": [dataclasses.asdict(number) for number in published],
        "arguments": arguments,
        "bootstrap": {"seed": SEED, "n_resamples": N_RESAMPLES},
        "python_version": platform.python_version(),
        "torch_version": torch.__version__,
        "transformers_version": transformers.__version__,
        "accelerate_version": accelerate.__version__,
        "numpy_version": np.__version__,
        **{"gpt2scratch_version": own["gpt2scratch"], "git_hash": own.get("commit")},
        "date": date,
        "total_evaluation_time_seconds": round(seconds, 3),
    }


def model_content(
    model: ModelMeasurements,
    tasks: Mapping[str, Task],
    *,
    config: dict[str, Any],
    sources: Mapping[str, str],
    date: float,
) -> dict[str, Any]:
    """One model as lm-evaluation-harness describes it.

    Args:
        model: everything measured of it.
        tasks: those whose data could be read.
        config: what all models share: `batch_size`, `device`, `limit`.
        sources: file, directory or Hub data set of each task's data.
        date: seconds since 1970.
    """
    measured = {name: cell for name, cell in model.tasks.items() if cell.result is not None}
    kinds = {name: tasks[name] for name in measured}
    numbers = {name: cell.result.n_samples for name, cell in measured.items()}
    n_read = {name: cell.result.n_read for name, cell in measured.items()}
    limit = config["limit"]
    return {
        "results": {name: _estimates(name, cell.result) for name, cell in measured.items()},
        "group_subtasks": {name: [] for name in measured},
        "configs": {name: _task_config(name, tasks[name], sources.get(name)) for name in measured},
        "versions": {name: task.version for name, task in kinds.items()},
        "n-shot": dict.fromkeys(measured, 0),
        "higher_is_better": {name: dict(task.metrics) for name, task in kinds.items()},
        "n-samples": {
            # Nobody counted the samples after a limit.
            name: {"original": None if limit and n_read[name] >= limit else n, "effective": n}
            for name, n in numbers.items()
        },
        "details": {name: dict(cell.result.details) for name, cell in measured.items()},
        "seconds": {name: round(cell.seconds, 3) for name, cell in measured.items()},
        "from_cache": {name: cell.is_from_cache for name, cell in measured.items()},
        "errors": {name: cell.error for name, cell in model.tasks.items() if cell.error},
        "config": {
            "model": "hf",
            "model_args": _model_args(model.name) | {"dtype": config["dtype"]},
            **model.description,
            "model_sha": model.commit,
            **config,
        },
        "task_hashes": {name: task.sha256 for name, task in kinds.items()},
        "model_sha256": model.files,
        "model_source": "hf",
        "model_name": model.name,
        "model_name_sanitized": sanitized(model.name),
        "date": date,
        "total_evaluation_time_seconds": str(sum(cell.seconds for cell in measured.values())),
    }


def sanitized(name: str) -> str:
    """A name fit for a file, as lm-evaluation-harness makes it."""
    return re.sub(r"[\"<>:/|\\?*\[\]]+", "__", name)


def _model_args(name: str) -> dict[str, str]:
    """How lm-evaluation-harness is told which model to load."""
    repository, revision = split_revision(name)
    named = {} if repository == name else {"revision": revision}
    return {"pretrained": repository} | named


def _estimates(name: str, result: Any) -> dict[str, Any]:
    """A task's entry of `results`; "N/A" stands for a standard error that there is none of.

    JSON has no word for infinity: a perplexity that is too large for a number is left out, and in
    its place `METRIC_nats` has the nats of which it is the exponential.
    """
    entry: dict[str, Any] = {"alias": name, "sample_len": result.n_samples}
    for metric, estimate in result.estimates.items():
        if estimate.nats is not None:
            entry[f"{metric}_nats,{FILTER}"] = estimate.nats
            continue
        entry[f"{metric},{FILTER}"] = estimate.value
        stderr = "N/A" if estimate.stderr is None else estimate.stderr
        entry[f"{metric}_stderr,{FILTER}"] = stderr
    return entry


def _task_config(name: str, task: Task, source: str | None) -> dict[str, Any]:
    """A task's entry of `configs`."""
    return {
        "task": name,
        "protocol": task.protocol,
        "num_fewshot": 0,
        "dataset_path": source,
        "official_dataset": task.data.hub_name,
        "dataset_revision": task.data.revision,
        "samples": task.samples,
        "sha256": task.sha256,
        "data_status": getattr(task, "data_status", None),
        "metadata": {"version": task.version},
    }


def _difference(model: str, task: str, metric: str, difference: Difference) -> dict[str, Any]:
    """A model's difference from the baseline, with its test if there was one."""
    entry: dict[str, Any] = {"model": model, "task": task, "metric": metric}
    entry["difference"] = difference.value
    if difference.test is None:
        return entry | {"test": None}
    test = difference.test
    return entry | {
        "test": test.name,
        "p": test.p,
        "p_holm": difference.p_corrected,
        **test.details,
    }
