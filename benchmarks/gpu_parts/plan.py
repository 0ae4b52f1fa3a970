"""What a part is told, and where it writes what it found."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from modeling_gpt2scratch.common.atomic_files import write_file
from modeling_gpt2scratch.distributed.device import available_device


@dataclass(frozen=True)
class Plan:
    """What is there for a part.

    Attributes:
        output_dir: of all parts.
        data: folder that `--make_data` wrote, or that was made for a smoke test.
        seconds: that the part has.
        is_smoke: whether sizes are tiny, so that any machine can run everything.
        started: when the part's process was, in seconds since 1970.
    """

    output_dir: str
    data: str
    seconds: float
    is_smoke: bool
    started: float = field(default_factory=time.time)

    @property
    def seconds_left(self) -> float:
        """Until the part is ended."""
        return self.seconds - (time.time() - self.started)

    @property
    def device(self) -> torch.device:
        """The one accelerator, or the CPU."""
        return available_device()

    @property
    def shards(self) -> str:
        """Directory of the tokenized data."""
        return str(Path(self.output_dir, "shards"))

    def result_of(self, part: str) -> Path:
        """The file in which a part writes its results."""
        return Path(self.output_dir, "parts", f"{part}.json")

    def found_by(self, part: str) -> dict[str, Any]:
        """The results of an earlier part, empty if it has none."""
        path = self.result_of(part)
        return json.loads(path.read_text()) if path.exists() else {}


class Record:
    """Results by name, written to a file whenever one is added."""

    def __init__(self, path: Path):
        self._path, self._values = path, {}

    def __call__(self, **values: Any) -> None:
        """Adds results, or replaces those of the same name."""
        self._values |= values
        write_file(self._path, json.dumps(self._values, indent=2).encode())
