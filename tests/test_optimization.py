"""Learning rate and parameter groups."""

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from modeling_gpt2scratch import GPT2ScratchConfig, GPT2ScratchForCausalLM
from modeling_gpt2scratch.optimization import learning_rate_at, make_optimizer, set_learning_rate

SCHEDULE = {"peak": 1.0, "floor": 0.1, "warmup_steps": 4, "max_steps": 24}


def test_the_rate_warms_up_linearly_and_falls_along_half_a_cosine():
    rates = [learning_rate_at(step, **SCHEDULE) for step in range(30)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[14] == pytest.approx(0.55)  # half-way: the mean of peak and floor
    assert rates[24:] == [pytest.approx(0.1)] * 6


def test_the_cosine_is_that_of_transformers_when_it_falls_to_zero():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = get_cosine_schedule_with_warmup(optimizer, 4, 24)
    for step in range(24):
        # transformers starts from zero, one step behind us during the warmup.
        ours = learning_rate_at(step, **SCHEDULE | {"floor": 0.0})
        if step >= 4:
            assert ours == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_no_warmup_starts_at_the_peak():
    assert learning_rate_at(0, peak=1.0, floor=0.0, warmup_steps=0, max_steps=2) == 1.0


def test_a_warmup_as_long_as_the_run_is_refused():
    with pytest.raises(ValueError, match="expected 0 <= warmup_steps < 24, found 24"):
        learning_rate_at(0, **SCHEDULE | {"warmup_steps": 24})


def test_matrices_decay_and_vectors_do_not_and_nothing_is_left_out():
    config = GPT2ScratchConfig(vocab_size=50, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    model = GPT2ScratchForCausalLM(config)
    optimizer = make_optimizer(model, learning_rate=1.0, weight_decay=0.1)
    set_learning_rate(optimizer, 0.5)
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert decayed["lr"] == plain["lr"] == 0.5
    assert all(parameter.dim() == 2 for parameter in decayed["params"])
    assert all(parameter.dim() == 1 for parameter in plain["params"])
    n_grouped = sum(p.numel() for p in (*decayed["params"], *plain["params"]))
    assert n_grouped == model.num_parameters()
    assert decayed["betas"] == (0.9, 0.95)
