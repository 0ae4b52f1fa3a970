"""Steps that are skipped on the device, and numbers that are read together and remembered."""

import copy
import dataclasses
import json
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from support.tiny_models import random_ids, tiny_model

from modeling_gpt2scratch.optim.optimizer import make_optimizer
from modeling_gpt2scratch.training.progress import BestValidation, StepMeans
from modeling_gpt2scratch.training.steps import (
    StepOutcome,
    clip_gradients,
    read_outcomes,
    skip_unless_finite,
    worst_micro_batch,
)


def outcome(loss, grad_norm, micro_losses=(1.0,)):
    """The outcome of step 1."""
    return StepOutcome(1, 0, *map(torch.tensor, (loss, grad_norm, list(micro_losses), 2.0)))


def everything_in(model, optimizer):
    """Copies of all parameters and moments."""
    moments = [optimizer.state[p][name] for p in model.parameters() for name in optimizer.state[p]]
    return copy.deepcopy([*model.parameters(), *moments])


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize(("loss", "grad_norm"), [(math.nan, 1.0), (4.0, math.inf)])
def test_a_skipped_step_changes_neither_weights_nor_moments(name, loss, grad_norm, device):
    torch.manual_seed(0)
    model = tiny_model().to(device)
    optimizer = make_optimizer(model, learning_rate=0.1, weight_decay=0.1, name=name)
    ids = random_ids(2, 8).to(device)
    numbers = partial(torch.tensor, device=device)
    for step_loss, step_norm, is_changed in [(4.0, 1.0, True), (loss, grad_norm, False)] * 2:
        before = everything_in(model, optimizer)
        model(ids, labels=ids).loss.backward()
        if skip_unless_finite(optimizer, numbers(step_loss), numbers(step_norm)):
            optimizer.step()
        optimizer.zero_grad()
        after = everything_in(model, optimizer)
        pairs = list(zip(before, after, strict=False))
        assert all(torch.equal(left, right) for left, right in pairs) is not is_changed


def test_numbers_of_several_steps_are_read_in_their_order():
    assert read_outcomes([outcome(4.0, 1.5), outcome(3.5, 2.0)]) == [
        (4.0, 1.5, 2.0),
        (3.5, 2.0, 2.0),
    ]


@pytest.mark.parametrize(
    ("micro_losses", "expected"), [([1.0, 3.0, 2.0], 1), ([1.0, 9.0, math.nan], 2)]
)
def test_the_worst_micro_batch_has_the_highest_loss_or_none_at_all(micro_losses, expected):
    try:
        accelerator = Accelerator(cpu=True)
        assert worst_micro_batch(outcome(1.0, 1.0, micro_losses), accelerator) == (0, expected)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_where_the_optimizer_ignores_the_flag_the_number_is_waited_for():
    class OnMps(torch.Tensor):
        device = torch.device("mps")

    model = tiny_model()
    optimizer = make_optimizer(model, learning_rate=0.1, weight_decay=0.1)
    finite, lost = torch.tensor(1.0), torch.tensor(math.nan)
    assert skip_unless_finite(optimizer, lost, finite) is True  # the optimizer looks itself
    assert skip_unless_finite(optimizer, finite.as_subclass(OnMps), finite) is True
    assert skip_unless_finite(optimizer, lost.as_subclass(OnMps), finite) is False
    assert skip_unless_finite(optimizer, finite.as_subclass(OnMps), lost) is False
    optimizer = torch.optim.AdamW(model.parameters(), fused=False)
    assert skip_unless_finite(optimizer, finite, finite) is True
    assert skip_unless_finite(optimizer, lost, finite) is False


@pytest.mark.parametrize(("is_applied", "expected"), [(True, 0.5), (False, math.inf)])
def test_a_step_that_deepspeed_skipped_has_no_norm_of_an_earlier_one(is_applied, expected):
    engine = SimpleNamespace(was_step_applied=lambda: is_applied)
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.DEEPSPEED,
        device=torch.device("cpu"),
        deepspeed_engine_wrapped=SimpleNamespace(engine=engine),
        clip_grad_norm_=lambda parameters, max_norm: 0.5,  # of the last step that was made
    )
    assert clip_gradients(torch.nn.Linear(1, 1), accelerator, 1.0).item() == expected


@pytest.mark.parametrize(("max_norm", "left"), [(1.0, 1.0), (0.0, 50.0)])
def test_a_norm_of_0_clips_nothing_and_the_norm_is_still_told(max_norm, left):
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.grad = torch.full_like(layer.weight, 50.0)
    assert clip_gradients(layer, Accelerator(cpu=True), max_norm).item() == 50
    assert layer.weight.grad.item() == pytest.approx(left, rel=1e-5)


def test_means_leave_out_the_steps_that_were_skipped():
    means = StepMeans()
    assert all(map(math.isnan, means.values().values()))
    for loss, grad_norm in [(4.0, 1.0), (math.nan, 1.0), (3.0, math.inf), (2.0, 3.0)]:
        means.add(loss, grad_norm)
    assert means.values() == {"loss": 3.0, "grad_norm": 2.0}
    again = StepMeans(**json.loads(json.dumps(dataclasses.asdict(means))))
    assert again == means


def test_the_best_validation_is_the_first_of_the_lowest_and_a_lost_loss_is_none():
    best = BestValidation()
    losses = [math.nan, 4.0, 3.5, 3.5, math.nan, math.inf, 3.25, 5.0]
    best_steps = []
    for n, loss in enumerate(losses):
        best.add(10 * n, loss)
        best_steps.append(best.step)
    assert best_steps == [None, 10, 20, 20, 20, 20, 60, 60]
    assert best == BestValidation(step=60, loss=3.25, n_since=1, last_step=70)
    best.add(70, 1.0)  # which was made already
    assert (best.step, best.n_since) == (60, 1)
    assert BestValidation(**json.loads(json.dumps(dataclasses.asdict(best)))) == best
