"""What a run recorded about itself, without names and paths of the machine it ran on.

Only what is known to be harmless passes: numbers, choices between fixed words, names of the Hub.
What is made from these records can be published.
"""

import glob
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

from huggingface_hub.utils import HFValidationError, validate_repo_id

from modeling_gpt2scratch.common.addresses import split_revision
from modeling_gpt2scratch.common.json_lines import warn
from modeling_gpt2scratch.data.shards.format import ShardError
from modeling_gpt2scratch.data.shards.manifest import Manifest, Split
from modeling_gpt2scratch.data.sources.dataset_argument import NAMED_CORPORA
from modeling_gpt2scratch.data.sources.readers import COMPRESSIONS, READERS
from modeling_gpt2scratch.tracking.metrics import METRICS_NAME, read_metrics
from modeling_gpt2scratch.tracking.status import FINISHED, read_status
from modeling_gpt2scratch.training.configuration import RUN_CONFIG_NAME, TrainConfig
from modeling_gpt2scratch.training.directory import DATA_MANIFEST_NAME, ENVIRONMENT_NAME

from .record_checks import (
    check_arguments,
    check_difference,
    check_environment,
    check_evaluation,
    check_model,
    check_weights,
)

RESULTS_NAME = "results.json"
# What is always there.
ARGUMENT_KEYS = ("max_steps", "total_batch_tokens")
ROW_KEYS = ("step", "loss", "tokens_per_second")
MODEL_KEYS = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
OTHER_MODEL_KEYS = ("task_hashes", "model_sha256")  # earlier results have none
CONFIG_KEYS = ("task", "protocol", "num_fewshot", "samples", "sha256", "official_dataset")
CONFIG_KEYS += ("dataset_revision", "data_status", "metadata")
VERSION_KEYS = ("python_version", "torch_version", "transformers_version", "date")


@dataclass(frozen=True)
class SourceRecord:
    """One of the sources that a run's data set was made from."""

    name: str
    is_named: bool  # one of `NAMED_CORPORA`
    is_on_hub: bool
    subset: str | None
    weight: float | None  # share of the text; None if it is the only one or taken whole


@dataclass(frozen=True)
class DataRecord:
    """The data set of a run."""

    sources: tuple[SourceRecord, ...]
    tokenizer: str  # "gpt2", "bpe:N", or the name of another
    splits: dict[str, Split]


@dataclass(frozen=True)
class RunRecords:
    """What is known of a run, fit to be published."""

    sizes: dict[str, int]  # "parameters", and the config's "n_layer", "n_positions" and so on
    arguments: dict[str, Any]  # of the training; empty if there was none
    environment: dict[str, str | int]  # device, processes, precision, versions
    metrics: list[dict[str, float]]  # one per logged step
    data: DataRecord | None
    results: dict | None  # of evaluate/compare.py

    @property
    def tokens_seen(self) -> int | None:
        """Training tokens, repeated ones counted again."""
        if not self.arguments:
            return None
        return self.steps * self.arguments["total_batch_tokens"]

    @property
    def steps(self) -> int:
        """Optimizer updates; a run may have ended early for want of progress."""
        return self.metrics[-1]["step"] if self.metrics else self.arguments["max_steps"]

    @property
    def validated(self) -> dict[str, float] | None:
        """The last validation of the model's weights, None if there was none.

        With `--final best` they are not the last ones.
        """
        rows = [row for row in self.metrics if "eval_loss" in row]
        if self.arguments.get("final") == "best":
            return min(rows, key=lambda row: row["eval_loss"], default=None)
        return rows[-1] if rows else None


class RecordsError(ValueError):
    """Records that cannot be read, or that do not belong to the model beside them."""


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
    _require_finished(run, records)
    return replace(records, results=_read_results(run, repository, results))


def read_training(
    run: Path, *, sizes: dict[str, int], logged: Sequence[dict] | None = None
) -> RunRecords:
    """The records of a run's training, as far as it has come, without results.

    Args:
        run: output directory of the training script.
        sizes: of the model, by name.
        logged: the lines of its `metrics.jsonl`, if they have been read already.

    Raises:
        RecordsError: if a file cannot be read.
    """
    return RunRecords(
        sizes=sizes,
        arguments=_public_arguments(_read_arguments(run / RUN_CONFIG_NAME)),
        environment=_read_environment(run / ENVIRONMENT_NAME),
        metrics=_public_metrics(read_metrics(run / METRICS_NAME) if logged is None else logged),
        data=_read_data(run),
        results=None,
    )


def public_name(name: str) -> str:
    """The name of a tokenizer or data set of the Hub, or the last part of a path."""
    return name if name in NAMED_CORPORA or is_hub_name(name) else Path(name).name


def is_hub_name(name: str) -> bool:
    """Whether a name leads to the Hub, by the rules of `dataset_argument.py`."""
    is_file = Path(name).suffix in (*READERS, *COMPRESSIONS) or Path(name).exists()
    if name in NAMED_CORPORA or is_file or glob.has_magic(name):
        return False
    try:
        repository, revision = split_revision(name)
        validate_repo_id(repository)
        if repository != name:
            validate_repo_id(revision)  # whose rules are stricter, and let no path pass
            return "/" not in revision
    except HFValidationError:
        return False
    return True


def is_source_on_hub(source: dict) -> bool:
    """Whether a source of a manifest is a data set of the Hub: a path may have such a name, too.

    Files of the Hub have a revision, and what is streamed from there has no size.
    """
    is_local = bool(source.get("bytes")) and not source.get("revision")
    return not is_local and is_hub_name(str(source["name"]))


def _require_finished(run: Path, records: RunRecords) -> None:
    """Refuses a run whose model is of an earlier step than its records."""
    max_steps = records.arguments.get("max_steps")
    status = read_status(run)
    if status is not None:
        found = f"one that is {status['status']} at step {status['step']}"
        is_finished = status["status"] == FINISHED
    elif max_steps and records.metrics:  # records of an earlier version
        step = records.metrics[-1]["step"]
        found, is_finished = f"step {step} of {max_steps}", step == max_steps
    else:
        return
    if not is_finished:
        raise RecordsError(
            f"{run}: expected a finished run, found {found}; finish it with train_accelerate.py "
            f"--resume auto"
        )


def _read_arguments(path: Path) -> dict:
    """Arguments of the training, empty if there is no file."""
    if not path.is_file():
        return {}
    arguments = read_json(path)
    for key in ARGUMENT_KEYS:
        if not isinstance(arguments.get(key), int):
            raise RecordsError(f"{path}: expected a number for {key}, found {arguments.get(key)!r}")
    try:
        for name in check_arguments(arguments):
            warn(f"{path}: expected arguments of this version, found {name}; it is left out")
    except ValueError as error:
        raise RecordsError(f"{path}: {error}") from error
    return arguments


def _read_environment(path: Path) -> dict:
    """Where the run took place, empty if there is no file."""
    if not path.is_file():
        return {}
    environment = read_json(path)
    try:
        check_environment(environment)
    except ValueError as error:
        raise RecordsError(f"{path}: {error}") from error
    return environment


def _public_arguments(arguments: dict) -> dict:
    """Arguments without free text, which could be a path; of a model's, the last part stays."""
    known = get_type_hints(TrainConfig)
    choices = {name for name, kind in known.items() if get_origin(kind) is Literal}
    public = {
        name: value
        for name, value in arguments.items()
        if name in choices or (name in known and isinstance(value, int | float))
    }
    if arguments.get("init_from"):
        public["init_from"] = public_name(arguments["init_from"])
    return public


def _public_metrics(rows: Iterable[dict]) -> list[dict]:
    """The finite numbers of each logged step, without its sample of text."""
    return [
        {key: value for key, value in row.items() if isinstance(value, int | float)}
        for row in rows
        if all(key in row for key in ROW_KEYS)
    ]


def _read_data(run: Path) -> DataRecord | None:
    """The data set of the run, None if the run has no copy of its manifest.

    Raises:
        RecordsError: if there is one that cannot be read.
    """
    if not (run / DATA_MANIFEST_NAME).exists():
        return None
    try:
        manifest = Manifest.load(run, DATA_MANIFEST_NAME)
        # Those of other programs' files and of datatrove pipelines name only their data set.
        sources = manifest.sources or [manifest.arguments | {"name": manifest.arguments["dataset"]}]
        return DataRecord(
            sources=tuple(
                SourceRecord(
                    name=public_name(str(source["name"])),
                    is_named=source["name"] in NAMED_CORPORA,
                    is_on_hub=is_source_on_hub(source),
                    subset=source.get("subset"),
                    weight=source.get("weight"),
                )
                for source in sources
            ),
            tokenizer=public_name(manifest.tokenizer["name"]),
            splits=manifest.splits,
        )
    except ShardError as error:
        raise RecordsError(str(error)) from error
    except KeyError:  # an early one, which does not say what it was made from
        return None


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
        check_weights(models[own], run, path)
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
    return public | {key: model[key] for key in OTHER_MODEL_KEYS if key in model}


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
    """The public name of a shard directory's data set, None if the directory is gone."""
    try:
        return public_name(str(Manifest.load(directory).arguments["dataset"]))
    except (ShardError, KeyError):
        return None


def read_json(path: Path) -> dict:
    """The object in a JSON file.

    Raises:
        RecordsError: if there is none in it.
        OSError: if it cannot be read.
    """
    if path.exists() and not path.is_file():  # a pipe would not end
        raise RecordsError(f"{path}: expected a JSON file, found something else")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RecordsError(f"{path}: expected JSON, found {error}") from error
    if not isinstance(content, dict):
        raise RecordsError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
