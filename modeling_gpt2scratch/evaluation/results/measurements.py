"""What was measured: a result, or why there is none, for each task of each model."""

from dataclasses import dataclass, field
from typing import Any

from modeling_gpt2scratch.evaluation.tasks.task import TaskResult


@dataclass(frozen=True)
class Measurement:
    """One task of one model: `result`, or `error`, one line that says why there is none."""

    result: TaskResult | None = None
    error: str | None = None
    seconds: float = 0.0  # that it took, also if it was measured earlier
    is_from_cache: bool = False


@dataclass
class ModelMeasurements:
    """Everything measured of one model; filled task by task."""

    name: str
    description: dict[str, Any] = field(default_factory=dict)  # class, parameters, precision
    files: dict[str, str] = field(default_factory=dict)  # sha256 of weights, config and tokenizer
    commit: str | None = None  # of the Hub
    tasks: dict[str, Measurement] = field(default_factory=dict)

    def value(self, task: str, metric: str) -> float | None:
        """The estimate of one metric, None where there is none or it is infinite."""
        measurement = self.tasks.get(task)
        if measurement is None or measurement.result is None:
            return None
        estimate = measurement.result.estimates.get(metric)
        return None if estimate is None or estimate.nats is not None else estimate.value

    @property
    def vocabulary(self) -> str | None:
        """A checksum of the tokens of its vocabulary, None of a model that was not loaded."""
        return self.description.get("vocabulary_sha256")

    @property
    def has_infinite(self) -> bool:
        """Whether there is an infinite estimate."""
        results = [cell.result for cell in self.tasks.values() if cell.result is not None]
        return any(e.nats is not None for result in results for e in result.estimates.values())
