"""What counts as a step that must not count, as a loss that jumps, and as a run's position."""

import json
import math
import random
import re

import pytest

from modeling_gpt2scratch.checkpoints.checkpoint import CheckpointError
from modeling_gpt2scratch.training.configuration import TrainConfig
from modeling_gpt2scratch.training.guard_rails import (
    MIN_WINDOW_STEPS,
    WINDOW_STEPS,
    DivergenceError,
    LossGuard,
)
from modeling_gpt2scratch.training.progress import TrainingProgress


def guard(spike_threshold=8.0):
    """A guard that finds a spike at eight standard deviations and gives up after three steps."""
    return LossGuard(spike_threshold=spike_threshold, max_skipped_steps=3)


def restored(watch):
    """A guard that goes on from the state of another, after it has been JSON."""
    successor = guard()
    successor.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    return successor


def usual_losses(n, seed=0):
    """Losses around 4 with a standard deviation of 0.1."""
    generator = random.Random(seed)
    return [generator.gauss(4, 0.1) for _ in range(n)]


def findings(watch, losses, first_step=1):
    """What the guard says of each loss, with a gradient of norm 1."""
    return [watch.judge(step, loss, 1.0) for step, loss in enumerate(losses, start=first_step)]


def test_usual_losses_and_falling_ones_are_nothing_to_report():
    assert not any(findings(guard(), usual_losses(500)))
    assert not any(findings(guard(), [10 * math.exp(-step / 50) + 3 for step in range(500)]))


@pytest.mark.parametrize(
    ("loss", "grad_norm"), [(math.nan, 1.0), (math.inf, 1.0), (4.0, math.nan), (4.0, math.inf)]
)
def test_a_step_without_finite_numbers_is_skipped_and_counted(loss, grad_norm):
    watch = guard()
    found = watch.judge(7, loss, grad_norm)
    assert (found.step, found.kind, watch.skipped_steps) == (7, "skipped", 1)
    watch.require_progress()


def test_a_gradient_that_overflows_under_a_loss_scale_is_counted_apart():
    watch = guard()
    for step, loss_scale in enumerate([2.0**16, 2.0**15, 4.0, 2.0]):
        found = watch.judge(step, 4.0, math.inf, loss_scale=loss_scale)
        assert (found.kind, found.loss_scale) == ("overflow", loss_scale)
    watch.require_progress()
    assert (watch.overflowed_steps, watch.skipped_steps) == (4, 0)
    assert restored(watch).overflowed_steps == 4
    # A lost loss is no matter of the scale, and a scale of 1 has nothing left to give.
    for loss, loss_scale in [(math.nan, 2.0**16), (4.0, 1.0), (4.0, 0.5)]:
        assert watch.judge(9, loss, math.inf, loss_scale=loss_scale).kind == "skipped"
    with pytest.raises(DivergenceError):
        watch.require_progress()


def test_so_many_skipped_steps_in_a_row_end_the_run():
    watch = guard()
    findings(watch, [math.nan, math.nan, 4.0, math.nan, math.nan])
    watch.require_progress()  # a good step between them
    findings(watch, [math.nan])
    with pytest.raises(DivergenceError, match="found none in 3 steps in a row"):
        watch.require_progress()
    assert watch.skipped_steps == 5


def test_a_loss_far_above_the_recent_ones_is_a_spike_with_its_distance():
    watch = guard()
    findings(watch, usual_losses(WINDOW_STEPS))
    found = watch.judge(200, 6.0, 2.5)
    assert (found.kind, found.step, found.loss, found.grad_norm) == ("spike", 200, 6.0, 2.5)
    assert found.deviation == pytest.approx(20, rel=0.2)  # (6 - 4) / 0.1
    assert watch.judge(201, 2.0, 1.0) is None  # far below is no spike


def test_too_few_losses_say_nothing_about_what_is_usual():
    watch = guard()
    findings(watch, usual_losses(MIN_WINDOW_STEPS - 1))
    assert watch.judge(100, 50.0, 1.0) is None


def test_a_lasting_new_level_is_not_reported_for_ever():
    watch = guard()
    findings(watch, usual_losses(WINDOW_STEPS))
    reported = [bool(found) for found in findings(watch, [6.0] * 50)]
    assert reported[0] and not any(reported[3:])


def test_a_threshold_of_zero_reports_no_spike():
    watch = guard(spike_threshold=0.0)
    findings(watch, usual_losses(WINDOW_STEPS))
    assert watch.judge(200, 600.0, 1.0) is None


def test_a_guard_restored_from_json_goes_on_as_the_one_before():
    losses = [*usual_losses(100), math.nan, *usual_losses(100, seed=1), 9.0]
    whole, first = guard(), guard()
    expected = findings(whole, losses)
    findings(first, losses[:102])
    second = restored(first)
    assert findings(second, losses[102:], first_step=103) == expected[102:]
    assert second.state_dict() == whole.state_dict()
    assert expected[-1].kind == "spike"


# The position of a run, of which the guard is a part


@pytest.fixture
def config(tmp_path):
    return TrainConfig(data="data", output_dir=str(tmp_path / "run"))


@pytest.fixture
def state():
    """Of step 7, whose best validation was after step 5."""
    progress = TrainingProgress(LossGuard(spike_threshold=8.0, max_skipped_steps=3), step=7)
    progress.best.add(5, 1.25)
    return progress.to_state()


def test_a_state_is_the_position_that_wrote_it(config, state):
    assert TrainingProgress.load(state, config, None).to_state() == state
    assert TrainingProgress.load({}, config, None).step == 0


def test_a_loss_on_other_held_out_tokens_is_no_longer_the_best(config, state, capsys):
    state["validation"] = "those"
    assert TrainingProgress.load(state, config, "those").best.step == 5
    assert capsys.readouterr().out == ""
    assert TrainingProgress.load(state, config, "others").best.step is None
    assert "other validation data" in capsys.readouterr().out


@pytest.mark.parametrize(
    "part",
    [{"guard": {"x": 1}}, {"guard": []}, {"config": None}, {"means": {"x": 1}}, {"best": 3}],
    ids=str,
)
def test_a_state_of_another_shape_is_refused_by_the_name_of_its_checkpoint(
    config, state, tmp_path, part
):
    expected = re.escape(f"{tmp_path}: expected the state of a run in training_state.json, found ")
    with pytest.raises(CheckpointError, match=expected):
        TrainingProgress.load(state | part, config, None, place=tmp_path)
