"""What is compiled, how often, what is said where nothing can be; activations made twice."""

import warnings

import pytest
import torch
from safetensors import safe_open
from support.tiny_models import random_ids, tiny_model

from modeling_gpt2scratch.distributed.processes import LaunchError
from modeling_gpt2scratch.hardware.compilation import (
    checkpoint_activations,
    compile_model,
    missing_for_compilation,
    n_compiled_graphs,
)
from modeling_gpt2scratch.optim.optimizer import make_optimizer

CPU = torch.device("cpu")
DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}


def train(model, *, n_steps=3, micro_steps=2):
    """Losses and compiled graphs of a few steps, with the gradients of two micro-steps each."""
    optimizer = make_optimizer(model, learning_rate=1e-3, weight_decay=0.1)
    losses, n_graphs = [], [n_compiled_graphs()]
    for step in range(n_steps):
        for micro_step in range(micro_steps):
            ids = random_ids(2, 32, seed=micro_steps * step + micro_step)
            loss = model(ids, shift_labels=ids).loss
            (loss / micro_steps).backward()
            losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        n_graphs.append(n_compiled_graphs())
    return losses, n_graphs


@pytest.fixture
def no_compiler():
    """Inductor's settings with a compiler that does not exist."""
    from torch._inductor import config

    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        yield


def test_a_missing_compiler_is_said_or_refused(no_compiler):
    model = tiny_model()
    said = compile_model(model, "model", device=CPU, strict=False)
    assert said == "not compiled: no C++ compiler"
    assert model._compiled_call_impl is None
    with pytest.raises(LaunchError, match=r"expected C\+\+ compiler for --compile blocks, found"):
        compile_model(model, "blocks", device=CPU, strict=True)
    assert compile_model(model, "no", device=CPU, strict=True) == "not compiled"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_there_is_no_triton_for_it():
    assert missing_for_compilation(torch.device("cuda")) == "Triton for this device"


@pytest.mark.gate
@pytest.mark.parametrize(
    ("how", "said", "n_layer", "is_checkpointed"),
    [
        ("model", "compiled as a whole", 1, False),  # compiling one layer takes long enough
        ("blocks", "compiled block by block", 2, True),
    ],
    ids=["model", "blocks-checkpointed"],
)
def test_a_compiled_model_trains_and_is_saved_as_any_other(
    how, said, n_layer, is_checkpointed, tmp_path
):
    missing = missing_for_compilation(CPU)
    if missing:
        pytest.skip(f"this machine has no {missing}")
    torch.compiler.reset()
    expected, _ = train(tiny_model(n_layer=n_layer).train())

    model = tiny_model(n_layer=n_layer).train()
    if is_checkpointed:
        checkpoint_activations(model)
    assert compile_model(model, how, device=CPU, strict=True) == said
    losses, n_graphs = train(model)
    assert n_graphs[1] - n_graphs[0] == 1  # one for all blocks, too
    assert n_graphs[3] == n_graphs[1]  # neither accumulation nor another step compiles again
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-5)

    model.save_pretrained(tmp_path / "compiled")
    tiny_model(n_layer=n_layer).save_pretrained(tmp_path / "plain")
    names = []
    for kind in ("compiled", "plain"):
        with safe_open(tmp_path / kind / "model.safetensors", "pt") as file:
            names.append(set(file.keys()))
    assert names[0] == names[1]


@pytest.mark.parametrize("dropout", [{}, DROPOUT], ids=["without-dropout", "with-dropout"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_losses_and_gradients_equal_those_without_checkpointed_activations(dropout, bf16):
    found = []
    for is_checkpointed in (False, True):
        model = tiny_model(**dropout).train()
        if is_checkpointed:
            with warnings.catch_warnings(action="error"):
                checkpoint_activations(model)
        torch.manual_seed(4)
        ids = random_ids(3, 40)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(ids, shift_labels=ids).loss
        loss.backward()
        found.append([loss.detach()] + [parameter.grad for parameter in model.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, rtol=0, atol=0)


def test_each_block_runs_twice_where_activations_are_not_kept():
    model = tiny_model().train()
    checkpoint_activations(model)
    calls = []
    for block in model.transformer.h:
        block.ln_2.register_forward_hook(lambda *_: calls.append(1))
    ids = random_ids(1, 8)
    model(ids, shift_labels=ids).loss.backward()
    assert len(calls) == 2 * len(model.transformer.h)
