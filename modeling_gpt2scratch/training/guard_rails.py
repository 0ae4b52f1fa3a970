"""What a run watches in its own losses: steps that must not count, and losses that jump."""

import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Literal

from modeling_gpt2scratch.common.errors import MendableError

WINDOW_STEPS = 128  # losses that a new one is compared with
MIN_WINDOW_STEPS = 32  # fewer say too little about what is usual


class DivergenceError(MendableError, RuntimeError):
    """A run that cannot be trained on as it is."""


@dataclass(frozen=True)
class StepFinding:
    """A step that was not as others."""

    step: int  # optimizer updates made after it
    kind: Literal["skipped", "spike", "overflow"]
    loss: float  # nats per token
    grad_norm: float  # before clipping
    deviation: float | None = None  # of a spike, in standard deviations above the recent mean
    loss_scale: float | None = None  # of an overflow


class LossGuard:
    """Judges the loss and the gradient of each step, in their order.

    A step without a finite loss and gradient counts as skipped. In fp16, a gradient can overflow
    although the loss is finite, and a smaller loss scale helps: such a step is counted apart,
    unless the scale is down to 1. A loss far above the recent ones is a spike: its distance to
    their mean exceeds `spike_threshold` of their standard deviations. Every finite loss then
    becomes one of the recent ones, so that a lasting new level is reported once and not for ever.

    Args:
        spike_threshold: in standard deviations, 0 for no spikes.
        max_skipped_steps: so many skipped steps in a row end the run.

    Source: the z-score over a moving window is llm.c's outlier detector.
    """

    def __init__(self, *, spike_threshold: float, max_skipped_steps: int):
        self._spike_threshold = spike_threshold
        self._max_skipped_steps = max_skipped_steps
        self._recent: deque[float] = deque(maxlen=WINDOW_STEPS)
        self.skipped_steps = 0  # of the whole run
        self.overflowed_steps = 0  # likewise
        self._skipped_in_a_row = 0

    def judge(
        self, step: int, loss: float, grad_norm: float, *, loss_scale: float = 1.0
    ) -> StepFinding | None:
        """What is wrong with a step, None if nothing is.

        Args:
            step: optimizer updates made after it.
            loss: mean of all processes.
            grad_norm: before clipping.
            loss_scale: that the loss was multiplied by.
        """
        if loss_scale > 1 and math.isfinite(loss) and not math.isfinite(grad_norm):
            self.overflowed_steps += 1
            return StepFinding(step, "overflow", loss, grad_norm, loss_scale=loss_scale)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self.skipped_steps += 1
            self._skipped_in_a_row += 1
            return StepFinding(step, "skipped", loss, grad_norm)
        self._skipped_in_a_row = 0
        deviation = self._deviation(loss)
        self._recent.append(loss)
        if self._spike_threshold and deviation > self._spike_threshold:
            return StepFinding(step, "spike", loss, grad_norm, deviation)
        return None

    def require_progress(self) -> None:
        """Ends a run that only skips.

        Raises:
            DivergenceError: after `max_skipped_steps` skipped steps in a row.
        """
        if self._skipped_in_a_row >= self._max_skipped_steps:
            raise DivergenceError(
                f"expected a finite loss and gradient, found none in {self._skipped_in_a_row} "
                f"steps in a row, which were skipped; events.jsonl names their data; lower "
                f"--learning_rate, or look at the data"
            )

    def state_dict(self) -> dict:
        """What a resumed run has to know, as JSON values."""
        return {
            "recent_losses": list(self._recent),
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self._skipped_in_a_row,
            "overflowed_steps": self.overflowed_steps,
        }

    def load_state_dict(self, state: dict) -> None:
        """Goes on as the guard that made this state."""
        self._recent = deque(state["recent_losses"], maxlen=WINDOW_STEPS)
        self.skipped_steps = state["skipped_steps"]
        self._skipped_in_a_row = state["skipped_in_a_row"]
        self.overflowed_steps = state["overflowed_steps"]

    def _deviation(self, loss: float) -> float:
        """Standard deviations between a loss and the mean of the recent ones, 0 for too few."""
        if len(self._recent) < MIN_WINDOW_STEPS:
            return 0.0
        mean = statistics.fmean(self._recent)
        deviation = statistics.pstdev(self._recent, mean)
        return (loss - mean) / deviation if deviation else 0.0
