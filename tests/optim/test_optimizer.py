"""The optimizer for a model: which parameter follows which rule at which rate."""

import pytest
import torch
from support.tiny_models import SIZES, tiny_model

from modeling_gpt2scratch.optim.muon import MuonAdamW
from modeling_gpt2scratch.optim.optimizer import describe_groups, make_optimizer, set_learning_rate

RATES = {"learning_rate": 1.0, "muon_learning_rate": 4.0, "weight_decay": 0.1}


def names_by_group(model, optimizer):
    """The last two parts of the names of each group's parameters, without the block numbers."""
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    return [
        {".".join(name_of[parameter].split(".")[-2:]) for parameter in group["params"]}
        for group in optimizer.param_groups
    ]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_matrices_decay_and_vectors_do_not_and_nothing_is_left_out(name):
    model = tiny_model()
    optimizer = make_optimizer(model, name=name, **RATES)
    *decayed, plain = optimizer.param_groups
    assert [group["weight_decay"] for group in (*decayed, plain)] == [0.1] * len(decayed) + [0.0]
    assert all(parameter.dim() == 2 for group in decayed for parameter in group["params"])
    assert all(parameter.dim() == 1 for parameter in plain["params"])
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert sum(p.numel() for p in grouped) == model.num_parameters()
    assert all(group["betas"] == (0.9, 0.95) for group in optimizer.param_groups)


def test_adamw_is_that_of_torch_with_one_kernel_per_step():
    optimizer = make_optimizer(tiny_model(), name="adamw", **RATES)
    assert type(optimizer) is torch.optim.AdamW
    assert all(group["fused"] for group in optimizer.param_groups)


def test_muon_takes_the_matrices_of_the_blocks_and_the_query_key_and_value_apart():
    model = tiny_model()
    optimizer = make_optimizer(model, name="muon", **RATES)
    assert type(optimizer) is MuonAdamW
    stacked, single, embeddings, vectors = names_by_group(model, optimizer)
    assert stacked == {"qkv_proj.weight"}
    assert single == {"o_proj.weight", "up_proj.weight", "down_proj.weight"}
    assert embeddings == {"wte.weight", "wpe.weight"}  # the head's weight is that of wte
    assert not vectors & (stacked | single | embeddings)
    assert [group["rule"] for group in optimizer.param_groups] == ["muon"] * 2 + ["adamw"] * 2
    assert [group["parts"] for group in optimizer.param_groups] == [3, 1, 1, 1]


def test_each_group_follows_the_schedule_below_its_own_peak():
    optimizer = make_optimizer(tiny_model(), name="muon", **RATES)
    for fraction in (0.5, 0.25):
        set_learning_rate(optimizer, fraction)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == [4 * fraction] * 2 + [fraction] * 2


def test_the_description_counts_every_parameter_once():
    model = tiny_model()
    model.transformer.wpe.requires_grad_(False)
    rows = describe_groups(model, make_optimizer(model, name="muon", **RATES))
    assert [(row["rule"], row["peak rate"]) for row in rows] == [
        ("muon", 4.0),
        ("muon", 4.0),
        ("adamw", 1.0),
        ("adamw", 1.0),
        ("none", 0.0),
    ]
    assert sum(row["parameters"] for row in rows) == model.num_parameters()
    assert rows[0]["parameters"] == SIZES["n_layer"] * 3 * SIZES["n_embd"] ** 2
    assert [row["tensors"] for row in rows[:2]] == [2, 6]


def test_a_group_without_parameters_is_left_out():
    model = tiny_model()
    model.transformer.h.requires_grad_(False)
    rows = describe_groups(model, make_optimizer(model, name="muon", **RATES))
    assert [row["what"] for row in rows] == ["embeddings", "biases and norms", "frozen"]
