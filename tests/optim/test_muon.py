"""Muon and AdamW in one optimizer, against torch's own two."""

import copy

import pytest
import torch
from support.tiny_models import tiny_model, tiny_tokenizer
from torch import nn

from modeling_gpt2scratch.checkpoints import checkpoint as checkpointing
from modeling_gpt2scratch.checkpoints.writer import CheckpointWriter
from modeling_gpt2scratch.optim.muon import MuonAdamW
from modeling_gpt2scratch.optim.newton_schulz import iteration_dtype, orthogonalize, update_scale
from modeling_gpt2scratch.optim.optimizer import make_optimizer

SHAPES = [(48, 32), (32, 80), (32, 32)]
BF16 = pytest.mark.skipif(
    iteration_dtype(torch.device("cpu")) is not torch.bfloat16,
    reason="this CPU multiplies no bfloat16, and torch's Muon no float32",
)


def parameters_of(*shapes, seed=0):
    """Random parameters."""
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in shapes]


def set_gradients(parameters, *, seed):
    """The same random gradients for parameters of the same shapes."""
    for parameter, gradient in zip(
        parameters, parameters_of(*(p.shape for p in parameters), seed=seed), strict=True
    ):
        parameter.grad = gradient.detach()


def make_muon(model):
    """The optimizer for a whole model."""
    return make_optimizer(
        model, name="muon", learning_rate=0.01, muon_learning_rate=0.02, weight_decay=0.1
    )


def step_with_gradients(model, optimizer, *, seed):
    """One step of a model on random gradients."""
    set_gradients(list(model.parameters()), seed=seed)
    optimizer.step()


def state_of(optimizer):
    """Copies of all state tensors, in the order of the parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [{key: t.clone() for key, t in optimizer.state[p].items()} for p in parameters]


@BF16
def test_its_muon_is_that_of_torch():
    ours, theirs = parameters_of(*SHAPES), parameters_of(*SHAPES)
    optimizer = MuonAdamW(ours, lr=0.02, weight_decay=0.1, rule="muon")
    reference = torch.optim.Muon(
        theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for seed in range(4):
        set_gradients(ours, seed=seed), set_gradients(theirs, seed=seed)
        optimizer.step(), reference.step()
    assert all(map(torch.equal, ours, theirs))


@BF16
def test_a_stack_of_three_is_stepped_like_three_parameters():
    (stack,) = parameters_of((96, 32))
    single = [nn.Parameter(part.detach().clone()) for part in stack.chunk(3)]
    optimizer = MuonAdamW([{"params": [stack], "parts": 3}], lr=0.02, rule="muon")
    reference = torch.optim.Muon(single, lr=0.02, adjust_lr_fn="match_rms_adamw")
    for seed in range(3):
        set_gradients([stack], seed=seed)
        for parameter, gradient in zip(single, stack.grad.chunk(3), strict=True):
            parameter.grad = gradient
        optimizer.step(), reference.step()
    assert torch.equal(stack, torch.cat(single))


@pytest.mark.parametrize("fused", [False, True])
def test_its_adamw_is_that_of_torch(fused):
    ours, theirs = parameters_of((5, 3), (7,)), parameters_of((5, 3), (7,))
    settings = {"lr": 0.02, "weight_decay": 0.1, "betas": (0.9, 0.95)}
    optimizer = MuonAdamW(ours, **settings)
    reference = torch.optim.AdamW(theirs, **settings, fused=fused)
    for seed in range(4):
        set_gradients(ours, seed=seed), set_gradients(theirs, seed=seed)
        optimizer.step(), reference.step()
    torch.testing.assert_close(ours, theirs, **({"rtol": 0, "atol": 0} if fused else {}))


def test_an_orthogonalized_matrix_has_the_directions_of_the_matrix_and_values_about_one():
    (matrix,) = parameters_of((24, 60))
    u, _, v = torch.linalg.svd(matrix.detach(), full_matrices=False)
    result = orthogonalize(matrix.detach())
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6 and values.max() < 1.3
    # In the matrix's own singular directions the result is diagonal.
    torch.testing.assert_close(u.T @ result @ v.T, torch.diag((u.T @ result @ v.T).diag()))


@pytest.mark.parametrize("shape", [(64, 64), (64, 256), (256, 64)])
def test_an_update_has_entries_of_a_fifth_of_the_rate(shape):
    (matrix,) = parameters_of(shape)
    update = update_scale(matrix.shape) * orthogonalize(matrix.detach())
    assert update.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


def test_a_flagged_step_changes_nothing_even_if_gradients_are_no_numbers():
    model = tiny_model()
    optimizer = make_muon(model)
    step_with_gradients(model, optimizer, seed=0)
    weights, state = copy.deepcopy(model.state_dict()), state_of(optimizer)
    for value in (float("nan"), float("inf"), 1.0):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, value)
        optimizer.grad_scale, optimizer.found_inf = None, torch.ones(())
        optimizer.step()
    assert all(torch.equal(weights[key], new) for key, new in model.state_dict().items())
    for before, after in zip(state, state_of(optimizer), strict=True):
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_first_step_that_is_flagged_leaves_no_trace():
    skipping, plain = tiny_model(), tiny_model()
    optimizers = [make_muon(skipping), make_muon(plain)]
    for parameter in skipping.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizers[0].found_inf = torch.ones(())
    optimizers[0].step()
    optimizers[0].found_inf = torch.zeros(())
    for seed in range(2):
        for model, optimizer in zip((skipping, plain), optimizers, strict=True):
            step_with_gradients(model, optimizer, seed=seed)
    assert all(map(torch.equal, skipping.parameters(), plain.parameters()))


def test_the_flag_is_never_read_on_the_host(monkeypatch):
    model = tiny_model()
    optimizer = make_muon(model)
    optimizer.found_inf = torch.zeros(())
    for name in ("item", "__bool__", "__float__", "__int__", "tolist"):
        monkeypatch.setattr(torch.Tensor, name, lambda self: pytest.fail("the flag was read"))
    step_with_gradients(model, optimizer, seed=0)


def test_a_parameter_without_gradient_stays_and_has_no_state():
    model = tiny_model()
    optimizer = make_muon(model)
    frozen = model.transformer.h[0].mlp.up_proj.weight
    before = frozen.detach().clone()
    set_gradients(list(model.parameters()), seed=0)
    frozen.grad = None
    optimizer.step()
    assert torch.equal(frozen, before)
    assert frozen not in optimizer.state


def test_its_state_dict_continues_a_run_in_a_fresh_optimizer():
    model = tiny_model()
    optimizer = make_muon(model)
    step_with_gradients(model, optimizer, seed=0)
    twin = copy.deepcopy(model)
    fresh = make_muon(twin)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step_with_gradients(model, optimizer, seed=1)
    step_with_gradients(twin, fresh, seed=1)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_a_checkpoint_continues_a_run_in_a_fresh_optimizer(tmp_path):
    model = tiny_model()
    optimizer = make_muon(model)
    step_with_gradients(model, optimizer, seed=0)
    keys = [set(state) for state in state_of(optimizer)]
    assert keys == [{"momentum_buffer"}] * 8 + [{"step", "exp_avg", "exp_avg_sq"}] * (len(keys) - 8)
    writer = CheckpointWriter(tmp_path, keep_checkpoints=0, keep_every=0, in_background=False)
    writer.save(model=model, tokenizer=tiny_tokenizer(), optimizer=optimizer, state={"step": 1})
    writer.close()
    checkpoint = checkpointing.find_checkpoint(tmp_path)
    twin = tiny_model()
    fresh = make_muon(twin)
    checkpointing.load_weights(checkpoint, twin)
    checkpointing.load_optimizer(checkpoint, twin, fresh)
    step_with_gradients(model, optimizer, seed=1)
    step_with_gradients(twin, fresh, seed=1)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


@pytest.mark.parametrize(("shape", "parts"), [((4,), 1), ((4, 3, 2), 1), ((4, 3), 3)])
def test_what_is_no_matrix_of_so_many_parts_is_refused(shape, parts):
    group = {"params": parameters_of(shape), "parts": parts}
    with pytest.raises(ValueError, match=rf"expected a matrix of {parts} x n rows .*found shape"):
        MuonAdamW([group], lr=0.1, rule="muon")


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="expected a rule of adamw or muon, found 'lion'"):
        MuonAdamW(parameters_of((2, 2)), lr=0.1, rule="lion")
