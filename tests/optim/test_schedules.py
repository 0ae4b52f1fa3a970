"""The learning rate as a function of the step."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_cosine_schedule_with_warmup, get_wsd_schedule

from modeling_gpt2scratch.optim.schedules import Schedule, learning_rate_at

COSINE = {"peak": 1.0, "floor": 0.1, "warmup_steps": 4, "max_steps": 24}
WSD = COSINE | {"schedule": "wsd", "decay_steps": 4}
SCHEDULES = get_args(Schedule)


@st.composite
def runs(draw):
    """Arguments of a run that fit together, without the schedule."""
    max_steps = draw(st.integers(1, 300))
    warmup_steps = draw(st.integers(0, max_steps - 1))
    peak = draw(st.floats(1e-6, 1.0))
    return {
        "peak": peak,
        "floor": peak * draw(st.floats(0, 1)),
        "warmup_steps": warmup_steps,
        "max_steps": max_steps,
        "decay_steps": draw(st.integers(1, max_steps - warmup_steps)),
    }


def test_the_rate_warms_up_linearly_and_falls_along_half_a_cosine():
    rates = [learning_rate_at(step, **COSINE) for step in range(30)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[14] == pytest.approx(0.55)  # half-way: the mean of peak and floor
    assert rates[24:] == [pytest.approx(0.1)] * 6


def test_wsd_stays_at_the_peak_and_falls_by_the_square_root_at_the_end():
    rates = [learning_rate_at(step, **WSD) for step in range(26)]
    assert rates[3:21] == [1.0] * 18
    assert rates[21] == pytest.approx(0.1 + 0.9 * 0.5)  # a quarter of the decay: half of the way
    assert rates[24:] == [pytest.approx(0.1)] * 2


def test_constant_never_leaves_the_peak():
    rates = [learning_rate_at(step, **COSINE, schedule="constant") for step in range(30)]
    assert rates == [0.25, 0.5, 0.75] + [1.0] * 27


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_schedule_is_that_of_transformers_when_it_falls_to_zero(schedule):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    if schedule == "cosine":
        theirs = get_cosine_schedule_with_warmup(optimizer, 4, 24)
    else:
        theirs = get_wsd_schedule(optimizer, 4, 4, num_training_steps=24, decay_type="1-sqrt")
    for step in range(24):
        # transformers starts from zero, one step behind us during the warmup.
        if step >= 4:
            ours = learning_rate_at(step, **WSD | {"floor": 0.0, "schedule": schedule})
            assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


@given(runs(), st.sampled_from(SCHEDULES))
def test_the_rate_is_at_most_the_peak_reaches_it_and_ends_at_the_floor(run, schedule):
    rates = [learning_rate_at(s, schedule=schedule, **run) for s in range(run["max_steps"] + 3)]
    peak, floor, warmup_steps = run["peak"], run["floor"], run["warmup_steps"]
    assert min(rates, default=1) > 0 or floor == 0
    assert max(rates) <= peak * (1 + 1e-12)
    assert rates[max(0, warmup_steps - 1)] == pytest.approx(peak)
    assert rates[-3:] == [pytest.approx(peak if schedule == "constant" else floor)] * 3
    after_warmup = rates[warmup_steps:]
    assert all(
        later <= earlier * (1 + 1e-12)
        for earlier, later in zip(after_warmup, after_warmup[1:], strict=False)
    )


@given(runs(), st.sampled_from(SCHEDULES))
def test_no_step_changes_the_rate_more_than_the_steepest_step_of_its_phase(run, schedule):
    rates = [learning_rate_at(s, schedule=schedule, **run) for s in range(run["max_steps"] + 3)]
    fall = run["peak"] - run["floor"]
    steepest = {
        # Half a cosine is steepest in its middle, the square root at its start.
        "cosine": fall * math.pi / 2 / (run["max_steps"] - run["warmup_steps"]),
        "wsd": fall / math.sqrt(run["decay_steps"]),
        "constant": 0.0,
    }[schedule]
    rise = run["peak"] / run["warmup_steps"] if run["warmup_steps"] else 0.0
    for earlier, later in zip(rates, rates[1:], strict=False):
        assert earlier - later <= steepest * (1 + 1e-9) + 1e-12
        assert later - earlier <= rise * (1 + 1e-9) + 1e-12


@given(runs())
def test_all_schedules_warm_up_alike(run):
    for step in range(run["warmup_steps"]):
        assert len({learning_rate_at(step, schedule=name, **run) for name in SCHEDULES}) == 1


def test_no_warmup_starts_at_the_peak():
    assert learning_rate_at(0, peak=1.0, floor=0.0, warmup_steps=0, max_steps=2) == 1.0


def test_a_warmup_as_long_as_the_run_is_refused():
    with pytest.raises(ValueError, match="expected 0 <= warmup_steps < 24, found 24"):
        learning_rate_at(0, **COSINE | {"warmup_steps": 24})


@pytest.mark.parametrize("decay_steps", [None, 0, 21])
def test_a_decay_that_does_not_fit_after_the_warmup_is_refused(decay_steps):
    with pytest.raises(ValueError, match=f"0 < decay_steps <= 20, .*, found {decay_steps}"):
        learning_rate_at(0, **WSD | {"decay_steps": decay_steps})
