"""What records may say: values of the kinds that the programs write, and none that contradict.

Somebody may have edited them, or a disk may have. All checks raise a ValueError, "expected X, found
Y", without the name of the file.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any, get_type_hints

from modeling_gpt2scratch.common.argument_parser import checked
from modeling_gpt2scratch.common.checksums import file_sha256
from modeling_gpt2scratch.training.configuration import TrainConfig

from .scores import NATS, estimates_of

ENVIRONMENT_KEYS = ("device", "mixed_precision", "python", "torch", "transformers", "accelerate")
ENVIRONMENT_KEYS += ("gpt2scratch", "commit")
OTHER_ARGUMENT_KEYS = ("format", "version", "init_from_is_local")
MAX_WORD = 200  # characters
# Of a model's results, each with an entry for each task.
BY_TASK = ("configs", "versions", "n-shot", "higher_is_better", "n-samples")
CONFIG_WORDS = ("samples", "official_dataset", "dataset_revision", "data_status")


def check_environment(environment: dict) -> None:
    """Where a run took place: words, and a number of processes."""
    for key, value in environment.items():
        if key == "processes":
            _require(type(value) is int and value > 0, "a number of processes", value)
        else:
            _require(key in ENVIRONMENT_KEYS, "the keys of an environment", key)
            _require_word(value, f"a word for {key}")


def check_arguments(arguments: dict) -> list[str]:
    """Arguments of a training; returns those that this version does not know."""
    hints = get_type_hints(TrainConfig)
    kinds = {field.name: hints[field.name] for field in dataclasses.fields(TrainConfig)}
    for name in kinds.keys() & arguments.keys():
        value = arguments[name]
        is_fit = name == "micro_batch_size" and type(value) is int
        _require(is_fit or _fits(value, kinds[name]), f"another value of {name}", value)
    return sorted(arguments.keys() - kinds.keys() - {*OTHER_ARGUMENT_KEYS})


def check_model(model: dict) -> None:
    """One model's results, by task, as `evaluate/compare.py` writes them."""
    tasks = model["results"].keys()
    for key in BY_TASK:
        found = model[key].keys()
        _require(found == tasks, f"{key} of {', '.join(tasks)}", ", ".join(found))
    for task, cell in model["results"].items():
        _require(cell.get("alias", task) == task, f"the alias {task}", cell.get("alias"))
        _check_estimates(cell, model["higher_is_better"][task])
        _check_samples(model["n-samples"][task], cell)
        _check_config(model["configs"][task], task, model)
    for file, sha256 in model["model_sha256"].items():
        _require_sha256(sha256, f"a sha256 of {file}")


def check_weights(model: dict, weights: Path) -> None:
    """A model's results are of the weights in this file, if it is there."""
    if weights.is_file():
        found, recorded = file_sha256(weights), model["model_sha256"].get(weights.name)
        advice = "run evaluate/compare.py again or remove the file"
        expected = f"results of {weights}, with sha256 {found}; {advice}"
        _require(found == recorded, expected, recorded)


def check_difference(row: dict) -> None:
    """A model's difference from the baseline: words and numbers."""
    for key, value in row.items():
        if not isinstance(value, int | float | None):
            _require_word(value, f"a word or number for {key}")


def check_evaluation(arguments: dict, versions: dict) -> None:
    """How a comparison was made, and with what."""
    for name, value in versions.items():
        _require_word(value, f"a word for {name}")
    for name in ("device", "dtype"):
        if arguments.get(name) is not None:
            _require_word(arguments[name], f"a word for {name}")
    for task in arguments.get("tasks") or []:
        _require_word(task, "names of tasks")
    limit, batch_tokens = arguments.get("limit"), arguments.get("batch_tokens", "auto")
    _require(limit is None or type(limit) is int, "a whole number for limit", limit)
    is_number = type(batch_tokens) is int
    _require(is_number or batch_tokens == "auto", "a number for batch_tokens", batch_tokens)


def _check_estimates(cell: dict, is_better: dict) -> None:
    """The numbers of a task, for each of whose metrics it is known which way is better."""
    for key, value in cell.items():
        if key not in ("alias", "sample_len"):
            is_error = key.endswith("_stderr,none") and value == "N/A"
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            _require(key.endswith(",none"), "METRIC,none of each number", key)
            _require(is_error or is_number, f"a number for {key}", value)
    for metric in (name.removesuffix(NATS) for name in estimates_of(cell)):
        found = is_better.get(metric)
        _require(isinstance(found, bool), f"true or false in higher_is_better.{metric}", found)


def _check_samples(numbers: dict, cell: dict) -> None:
    """How many samples there were: after a limit, nobody knows of all."""
    effective = numbers["effective"]
    _require(type(effective) is int and effective >= 0, "a number of samples", effective)
    for found in (numbers["original"], cell.get("sample_len")):
        _require(found in (None, effective), f"{effective} samples", found)


def _check_config(config: dict, task: str, model: dict) -> None:
    """How a task was measured, which other entries say as well."""
    _require(config["task"] == task, f"the configuration of {task}", config["task"])
    _require_word(config["protocol"], "the name of a protocol")
    for key in CONFIG_WORDS:
        if config.get(key) is not None:
            _require_word(config[key], f"a word for {key}")
    version, n_shot = model["versions"][task], model["n-shot"][task]
    if type(version) not in (int, float):
        _require_word(version, f"a version of {task}")
    found = config.get("metadata", {"version": version})
    _require(found == {"version": version}, f"version {version} of {task}", found)
    found = config.get("num_fewshot", n_shot)
    _require(type(n_shot) is int and found == n_shot, f"{n_shot} examples", found)
    sha256 = config.get("sha256")
    if sha256 is not None:
        _require_sha256(sha256, f"a sha256 of the data of {task}")
    found = model["task_hashes"].get(task)
    _require(found == sha256, f"the sha256 {sha256} of {task}", found)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a field of this type may hold the value."""
    try:
        return checked(kind, value) == value
    except ValueError:
        return False


def _require_word(value: Any, expected: str) -> None:
    is_word = isinstance(value, str) and 0 < len(value) <= MAX_WORD and value.isprintable()
    _require(is_word, expected, value)


def _require_sha256(value: Any, expected: str) -> None:
    is_one = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
    _require(is_one, expected, value)


def _require(condition: bool, expected: str, found: Any) -> None:
    if not condition:
        raise ValueError(f"expected {expected}, found {repr(found)[:MAX_WORD]}")
