"""A model on an accelerator computes what it computes on the CPU, by every attention it has."""

import copy

import pytest
import torch
from support.tiny_models import random_ids, tiny_model
from torch.nn import functional as F
from transformers.utils import is_flash_attn_2_available

from modeling_gpt2scratch.hardware.compilation import compile_model, n_compiled_graphs
from modeling_gpt2scratch.loss_gpt2scratch import linear_cross_entropy
from modeling_gpt2scratch.optim.optimizer import make_optimizer

SIZES = {"n_embd": 64, "initializer_range": 0.1}  # heads of 16 channels
# Relative errors of whole tensors; TF32 is off unless a run asks for it.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
ACCELERATOR = pytest.mark.parametrize(
    "device", [pytest.param("accelerator", marks=pytest.mark.gpu)], indirect=True
)


def relative_error(found, expected):
    """Of a tensor, in the norm of all its numbers."""
    return ((found.cpu().double() - expected.double()).norm() / expected.double().norm()).item()


def outputs_of(model, ids, dtype):
    """Logits, and the gradients of the mean loss by parameter."""
    with torch.autocast(ids.device.type, dtype, enabled=dtype is not torch.float32):
        logits = model(ids).logits
        model(ids, shift_labels=ids.roll(-1, 1)).loss.backward()
    return logits.detach().float(), {name: p.grad for name, p in model.named_parameters()}


def require_parity(attention, dtype, device):
    model = tiny_model(**SIZES)
    model.set_attn_implementation("eager")
    other = copy.deepcopy(model).to(device)
    other.set_attn_implementation(attention)
    ids = random_ids(3, 48)
    logits, gradients = outputs_of(model, ids, torch.float32)
    found, found_gradients = outputs_of(other, ids.to(device), dtype)
    assert relative_error(found, logits) < TOLERANCES[dtype]
    for name, gradient in gradients.items():
        if "qkv_proj.bias" not in name:  # the keys' part of it is zero but for rounding
            assert relative_error(found_gradients[name], gradient) < 2 * TOLERANCES[dtype], name


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_and_gradients_are_those_of_the_cpu(attention, dtype, device):
    require_parity(attention, dtype, device)


@ACCELERATOR
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_flex_attention_gives_them_too(dtype, device):
    require_parity("flex_attention", dtype, device)


@ACCELERATOR
@pytest.mark.skipif(not is_flash_attn_2_available(), reason="needs flash-attn")
def test_flash_attention_gives_them_too(device):
    require_parity("flash_attention_2", torch.bfloat16, device)


@pytest.mark.parametrize("n_vocab", [257, 320])  # one is padded for tensor cores, one is not
def test_the_product_with_a_padded_vocabulary_has_the_loss_of_the_plain_one(n_vocab, device):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(70, 32, generator=generator, dtype=torch.float64)
    weight = torch.randn(n_vocab, 32, generator=generator, dtype=torch.float64)
    targets = torch.randint(n_vocab, (70,), generator=generator)
    expected = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    loss = F.cross_entropy(F.linear(*expected), targets)
    loss.backward()
    found = [tensor.float().to(device).requires_grad_() for tensor in (hidden, weight)]
    found_loss = linear_cross_entropy(*found, targets.to(device))
    found_loss.backward()
    assert found_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    for ours, plain in zip(found, expected, strict=True):
        assert relative_error(ours.grad, plain.grad) < 1e-4


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizers_step_as_on_the_cpu(name, device):
    models = [tiny_model(**SIZES), tiny_model(**SIZES).to(device)]
    for model in models:
        optimizer = make_optimizer(model, learning_rate=0.01, weight_decay=0.1, name=name)
        for seed in range(3):
            torch.manual_seed(seed)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape).to(parameter.device)
            optimizer.step()
    start = dict(tiny_model(**SIZES).named_parameters())
    # Muon's matrices are made orthogonal in bfloat16 where the device has it.
    tolerance = 2e-2 if name == "muon" else 1e-4
    for (key, left), right in zip(
        models[0].named_parameters(), models[1].parameters(), strict=True
    ):
        change = (left - start[key]).detach()
        assert relative_error((right.cpu() - start[key]).detach(), change) < tolerance, key


@ACCELERATOR
@pytest.mark.parametrize("how", ["model", "blocks"])
def test_a_compiled_model_trains_without_compiling_again(how, device):
    losses, graphs = {}, []
    for compilation in ("no", how):
        model = tiny_model(**SIZES).to(device).train()
        said = compile_model(model, compilation, device=device, strict=True)
        assert said.startswith("not" if compilation == "no" else "compiled")
        optimizer = make_optimizer(model, learning_rate=1e-3, weight_decay=0.1)
        losses[compilation], graphs = [], [n_compiled_graphs()]
        for seed in range(4):
            ids = random_ids(2, 32, seed=seed).to(device)
            loss = model(ids, shift_labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[compilation].append(loss.item())
            graphs.append(n_compiled_graphs())
    assert graphs[0] < graphs[1] and len(set(graphs[1:])) == 1
    assert losses[how] == pytest.approx(losses["no"], rel=1e-4)
