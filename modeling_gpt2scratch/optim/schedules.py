"""The learning rate as a function of the step."""

import math
from typing import Literal

Schedule = Literal["cosine", "wsd", "constant"]


def learning_rate_at(
    step: int,
    *,
    schedule: Schedule = "cosine",
    peak: float,
    floor: float,
    warmup_steps: int,
    max_steps: int,
    decay_steps: int | None = None,
) -> float:
    """Learning rate for `step`: linear warmup to `peak`, then what the schedule says.

    A pure function of the step: there is no scheduler to save, and none that a launcher could
    advance once per process.

    Args:
        step: optimizer updates already made, from 0.
        schedule: "cosine" falls along half a cosine to `floor`; "wsd" (warmup, stable, decay)
            stays at `peak` and falls over the last `decay_steps`; "constant" stays at `peak`.
        peak: highest rate, reached on the last warmup step.
        floor: rate from `max_steps` onward, except of "constant".
        warmup_steps: optimizer updates spent warming up.
        max_steps: optimizer updates in the whole run.
        decay_steps: optimizer updates at the end over which "wsd" decays, which alone needs it.

    Raises:
        ValueError: unless `0 <= warmup_steps < max_steps`, and for "wsd"
            `0 < decay_steps <= max_steps - warmup_steps`.

    Source: Brown et al. 2020 (GPT-3), appendix B, for the cosine; Hägele et al. 2024, section 3,
    for the decay by one minus the square root, which they found better than a line.
    """
    _check(schedule, warmup_steps=warmup_steps, max_steps=max_steps, decay_steps=decay_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    n_falling = decay_steps if schedule == "wsd" else max_steps - warmup_steps
    progress = min(1.0, max(0.0, (step - (max_steps - n_falling)) / n_falling))
    if schedule == "wsd":
        return floor + (peak - floor) * (1 - math.sqrt(progress))
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def _check(
    schedule: Schedule, *, warmup_steps: int, max_steps: int, decay_steps: int | None
) -> None:
    """Refuses phases that do not fit into the run."""
    if not 0 <= warmup_steps < max_steps:
        raise ValueError(f"expected 0 <= warmup_steps < {max_steps}, found {warmup_steps}")
    n_left = max_steps - warmup_steps
    if schedule == "wsd" and (decay_steps is None or not 0 < decay_steps <= n_left):
        raise ValueError(
            f"expected 0 < decay_steps <= {n_left}, the steps after the warmup, found {decay_steps}"
        )
