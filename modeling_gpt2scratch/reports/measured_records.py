"""What a finished run recorded with what `evaluate/compare.py` measured, fit to be published."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from modeling_gpt2scratch.checkpoints.checkpoint import WEIGHTS_NAME
from modeling_gpt2scratch.data.shards.format import ShardError
from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.tracking.status import FINISHED, read_status

from .record_checks import check_difference, check_evaluation, check_model, check_weights
from .records import (
    RecordsError,
    RunRecords,
    is_hub_name,
    public_name,
    read_json,
    read_training,
    sources_of,
)

RESULTS_NAME = "results.json"
MODEL_KEYS = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
MODEL_KEYS += ("task_hashes", "model_sha256")
CONFIG_KEYS = ("task", "protocol", "num_fewshot", "samples", "sha256", "official_dataset")
CONFIG_KEYS += ("dataset_revision", "data_status", "metadata")
# Of the details of a task: samples whose context was cut, samples that did not fit at all, and
# scored tokens that are the unknown token.
COUNTS = ("n_truncated", "n_left_out", "n_unknown")
VERSION_KEYS = ("python_version", "torch_version", "transformers_version", "date")


def read_records(
    run: Path, *, repository: str, sizes: dict[str, int], results: Path | None = None
) -> RunRecords:
    """The records of a finished run, to be published; those that are not there are empty.

    Args:
        run: output directory of the training script.
        repository: what the run's model is called in the results.
        sizes: of the model, by name.
        results: file of `evaluate/compare.py`, by default the one in `run`.

    Raises:
        RecordsError: if a file cannot be read, or if the run was continued or measured at another
            time than the model was saved.
    """
    records = read_training(run, sizes=sizes)
    _require_finished(run)
    return replace(records, results=_read_results(run, repository, results))


def _require_finished(run: Path) -> None:
    """Refuses a run whose model is of an earlier step than its records."""
    status = read_status(run)
    if status is not None and status["status"] != FINISHED:
        raise RecordsError(
            f"{run}: expected a finished run, found one that is {status['status']} at step "
            f"{status['step']}; finish it with train_accelerate.py --resume auto"
        )


def _read_results(run: Path, repository: str, path: Path | None) -> dict | None:
    """The results without failed cells, the run's model called as its repository."""
    if path is None:
        path = run / RESULTS_NAME
        if not path.is_file():
            return None
    content = read_json(path)
    try:
        models = content["models"]
        own = _own_name(models, run, repository)
        for model in models.values():
            check_model(model)
        check_weights(models[own], run / WEIGHTS_NAME)
        versions = {key: content[key] for key in VERSION_KEYS}
        check_evaluation(content["arguments"], versions)
        if content["baseline"] not in (None, *models):
            raise ValueError(f"expected a baseline of the models, found {content['baseline']!r}")
        for row in content["differences"]:
            check_difference(row)
        names = _labels_of(models) | {own: repository}
        public = {names[name]: _public_model(model) for name, model in models.items()}
        differences = [
            row | {"model": names[row["model"]]}
            for row in content["differences"]
            if row["model"] in names
        ]
        return {
            "models": public,
            "baseline": names.get(content["baseline"]),
            "differences": differences,
            "arguments": _public_evaluation(content["arguments"]),
            **versions,
        }
    except RecordsError:
        raise
    except ValueError as error:
        raise RecordsError(f"{path}: {error}") from error
    except (LookupError, TypeError, AttributeError) as error:
        raise RecordsError(
            f"{path}: expected results of evaluate/compare.py, found {error!r}"
        ) from error


def _own_name(names: Iterable[str], run: Path, repository: str) -> str:
    """What the run was called when it was measured, perhaps on another machine."""
    exact = [name for name in names if name == repository or Path(name).resolve() == run.resolve()]
    found = exact or [name for name in names if Path(name).name == run.resolve().name]
    if len(found) != 1:
        raise ValueError(
            f"expected results of one model called {run.resolve().name}, found {', '.join(names)}"
        )
    return found[0]


def _labels_of(models: dict[str, dict]) -> dict[str, str]:
    """What to call each model: its name on the Hub, or the last part of a path, marked as local."""
    labels, n_local = {}, Counter()
    for name, model in models.items():
        # A directory has no commit, wherever this program is started.
        is_on_hub = is_hub_name(name) and model.get("config", {}).get("model_sha", name) is not None
        labels[name] = name
        if not is_on_hub:
            last = Path(name).name
            n_local[last] += 1
            number = f" {n_local[last]}" if n_local[last] > 1 else ""
            labels[name] = f"{last} (local{number})"
    return labels


def _public_model(model: dict) -> dict:
    """What is known of one model: its results with their protocols, no paths, no errors."""
    public = {key: model[key] for key in MODEL_KEYS}
    public["configs"] = {
        task: {key: config.get(key) for key in CONFIG_KEYS}
        | {"dataset_path": _public_dataset(config)}
        for task, config in model["configs"].items()
    }
    public["details"] = {
        task: {name: n for name, n in details.items() if name in COUNTS and type(n) is int}
        for task, details in model.get("details", {}).items()
        if task in model["results"]
    }
    return public


def _public_dataset(config: dict) -> str | None:
    """The name of the data set that a task was measured on."""
    source = config["dataset_path"]
    if source is None:
        return None
    is_of_shards = config["task"].partition(":")[0] == "val"
    return _name_of_shards(Path(source)) if is_of_shards else public_name(source)


def _public_evaluation(arguments: dict) -> dict:
    """Arguments of the evaluation without its places, which each task's config names."""
    kept = ("tasks", "limit", "batch_tokens", "device", "dtype")
    return {name: arguments.get(name) for name in kept}


def _name_of_shards(directory: Path) -> str | None:
    """The public names of a shard directory's sources, None if the directory is gone."""
    try:
        names = [
            public_name(str(source["name"])) for source in sources_of(Manifest.load(directory))
        ]
    except (ShardError, KeyError):
        return None
    return " and ".join(names)
