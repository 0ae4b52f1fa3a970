"""Results of earlier calls, so that an interrupted evaluation goes on where it stopped.

One JSON file for each task of each model. Its name is a hash of everything that the result depends
on: weights, config, tokenizer, data, protocol and version, limit, precision, the code that computes
it, and the versions of torch and transformers. Batch size, device and number of processes are left
out: results do not depend on them beyond the last digits.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from modeling_gpt2scratch.common.atomic_files import write_json
from modeling_gpt2scratch.common.console import tell
from modeling_gpt2scratch.common.errors import reason
from modeling_gpt2scratch.common.output_directory import OutputError, writable_directory
from modeling_gpt2scratch.evaluation.tasks.task import Estimate, TaskResult

from .measurements import Measurement


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
            if content["key"] != key:
                return None
            result = content["result"]
            estimates = {name: Estimate(**entry) for name, entry in result["estimates"].items()}
            measured = TaskResult(**result | {"estimates": estimates})
            measurement = Measurement(measured, seconds=content["seconds"], is_from_cache=True)
            return measurement, content["model"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None  # absent or damaged: it is measured again

    def write(self, key: dict[str, Any], measurement: Measurement, model: dict[str, Any]) -> None:
        """Keeps a measurement.

        Samples that were left out are NaN there, which Python's JSON reads. Once the directory
        cannot be written to, which one line on stderr says, nothing more is kept.
        """
        result = measurement.result
        if self._directory is None or result is None or not self._can_write:
            return
        content = vars(result) | {
            "estimates": {name: vars(estimate) for name, estimate in result.estimates.items()},
            "samples": {name: values.tolist() for name, values in result.samples.items()},
        }
        file = {"key": key, "model": model, "seconds": measurement.seconds, "result": content}
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            write_json(self._path(key), file, indent=None, ensure_ascii=False)
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
