"""What a model scored, and its scores as the Hub lists them beside a benchmark's data set.

The Hub reads `.eval_results/*.yaml` of a model's repository: each entry is one number on one of its
data sets. A number is listed if it was measured on the whole official data and nothing less; the
model card has all others as well.
"""

from collections.abc import Iterator

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from modeling_gpt2scratch.evaluation.tasks.samples import OFFICIAL

FOLDER = ".eval_results"
PREFIX = "gpt2scratch_"  # of our files, so that those of others in the folder stay
NATS = "_nats"  # ends the name of a metric that is too large for a number


def eval_result_files(results: dict | None, repository: str) -> dict[str, str]:
    """The YAML files of a model's repository, by their paths in it: one for each data set.

    Args:
        results: of the run's records; None if there are none.
        repository: what the model is called in them.
    """
    files: dict[str, list[EvalResultEntry]] = {}
    for entry in _entries(results, repository) if results else ():
        name = f"{FOLDER}/{PREFIX}{entry.dataset_id.replace('/', '__')}.yaml"
        files.setdefault(name, []).append(entry)
    return {
        name: yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
        for name, entries in files.items()
    }


def estimates_of(cell: dict) -> dict[str, tuple[float, float | None]]:
    """Value and standard error by metric, from keys such as `acc,none` and `acc_stderr,none`."""
    estimates = {}
    for key, value in cell.items():
        metric = key.removesuffix(",none")
        if metric == key or metric.endswith("_stderr"):
            continue
        stderr = cell.get(f"{metric}_stderr,none")
        estimates[metric] = (value, None if stderr == "N/A" else stderr)
    return estimates


def protocol_of(model: dict, task: str) -> str:
    """Protocol and version of one task."""
    return f"{model['configs'][task]['protocol']} v{model['versions'][task]}"


def is_partial(model: dict, task: str) -> bool:
    """Whether `--limit` may have cut the samples: nobody counted how many there are."""
    return model["n-samples"][task]["original"] is None


def is_official(config: dict) -> bool:
    """Whether a task was measured on the data that everybody calls by its name."""
    dataset = config["official_dataset"]
    is_there = config["dataset_path"] == dataset or config["data_status"] == OFFICIAL
    return dataset is not None and is_there


def has_left_out(model: dict, task: str) -> bool:
    """Whether there were samples that the model's context has no room for."""
    return model.get("details", {}).get(task, {}).get("n_left_out", 0) > 0


def samples_of(model: dict, task: str) -> str:
    """How many samples were measured, and whether they were only the first ones."""
    return "first " * is_partial(model, task) + f"{model['n-samples'][task]['effective']:,}"


def _entries(results: dict, repository: str) -> Iterator[EvalResultEntry]:
    """The first metric of each task that was measured on a whole data set of the Hub."""
    model = results["models"][repository]
    for task, cell in model["results"].items():
        config = model["configs"][task]
        if not is_official(config) or is_partial(model, task) or has_left_out(model, task):
            continue
        metric, (value, stderr) = next(iter(estimates_of(cell).items()))
        if metric.endswith(NATS):
            continue
        error = "" if stderr is None else f", standard error {stderr:.4g}"
        yield EvalResultEntry(
            dataset_id=config["official_dataset"],
            task_id=task,
            value=value,
            dataset_revision=config["dataset_revision"],
            date=results["date"],
            notes=f"{metric}, protocol {protocol_of(model, task)}, "
            f"{samples_of(model, task)} samples{error}; GPT2Scratch's evaluate/compare.py",
        )
