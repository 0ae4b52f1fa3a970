"""Results of earlier calls, so that an interrupted evaluation goes on where it stopped.

One JSON file for each task of each model. Its name is a hash of everything that the result depends
on: weights, config, tokenizer, data, protocol and version, limit, precision, the code that computes
it, and the versions of torch and transformers. Batch size, device and number of processes are left
out: results do not depend on them beyond the last digits.
"""

import hashlib
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from modeling_gpt2scratch.common.atomic_files import write_json
from modeling_gpt2scratch.common.console import tell
from modeling_gpt2scratch.common.errors import reason
from modeling_gpt2scratch.common.output_directory import OutputError, writable_directory
from modeling_gpt2scratch.evaluation.tasks.task import Estimate, TaskResult

from .measurements import Measurement

VERSION = 1  # of these files


class ResultCache:
    """Measurements by what they depend on.

    Args:
        directory: of the files; made when the first is written. None keeps nothing.
    """

    def __init__(self, directory: Path | None):
        self._directory = directory
        self._can_write = True  # until a write fails

    def check(self) -> None:
        """Says at once what `write` would say, if the directory cannot be written to."""
        if self._directory is not None:
            try:
                writable_directory(self._directory, flag="--cache_dir", is_made=False)
            except OutputError as error:
                self._give_up(str(error).partition(", found ")[2])

    def read(self, key: dict[str, Any]) -> tuple[Measurement, dict[str, Any]] | None:
        """A measurement and the description of its model, None if there is none that can be read.

        Args:
            key: what the measurement depends on, fit for JSON.
        """
        if self._directory is None:
            return None
        try:
            content = json.loads(self._path(key).read_bytes())
            if content["key"] != key or content["version"] != VERSION:
                return None
            result = content["result"]
            samples = {
                name: np.array(values, dtype=np.float64)  # null is nan
                for name, values in result["samples"].items()
            }
            estimates = {
                name: Estimate(**entry | {"value": _number(entry["value"])})
                for name, entry in result["estimates"].items()
            }
            parts = result["n_samples"], estimates, result["details"], samples
            measured = TaskResult(*parts, result["responses"])
            measurement = Measurement(measured, seconds=content["seconds"], is_from_cache=True)
            return measurement, content["model"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None  # absent or damaged: it is measured again

    def write(self, key: dict[str, Any], measurement: Measurement, model: dict[str, Any]) -> None:
        """Keeps a measurement.

        The nan of a sample that was left out is null in the file, and so is an infinite estimate,
        which says its nats. A measurement with an infinite sample or log-likelihood is not kept,
        because JSON has no word for that. Once the directory cannot be written to, which one line
        on stderr says, nothing more is kept.
        """
        result = measurement.result
        if self._directory is None or result is None or not self._can_write:
            return
        if not _is_fit_for_json(result):
            return
        samples = {
            name: [None if math.isnan(value) else value for value in values.tolist()]
            for name, values in result.samples.items()
        }
        content = {
            "n_samples": result.n_samples,
            "estimates": {
                name: asdict(estimate) | ({} if estimate.nats is None else {"value": None})
                for name, estimate in result.estimates.items()
            },
            "details": result.details,
            "samples": samples,
            "responses": result.responses,
        }
        file = {"version": VERSION, "key": key, "model": model, "seconds": measurement.seconds}
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            write_json(
                self._path(key),
                file | {"result": content},
                indent=None,
                ensure_ascii=False,
                allow_nan=False,
            )
        except OSError as error:
            self._give_up(reason(error))

    def _give_up(self, found: str) -> None:
        """Keeps nothing from now on."""
        self._can_write = False
        tell(
            f"{self._directory}: expected to keep results here, found {found}; continuing "
            "without a cache, so an interrupted evaluation measures everything again",
            file=sys.stderr,
        )

    def _path(self, key: dict[str, Any]) -> Path:
        """The file of a key."""
        text = json.dumps(key, sort_keys=True)
        return self._directory / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _number(value: float | None) -> float:
    """The value of an estimate in a file."""
    return math.inf if value is None else value


def _is_fit_for_json(result: TaskResult) -> bool:
    """Whether no sample is infinite, and each response is a number."""
    if any(np.isinf(values).any() for values in result.samples.values()):
        return False
    return all(math.isfinite(log_prob) for answers in result.responses for log_prob, _ in answers)
