"""Activations computed a second time change nothing but the memory."""

import warnings

import pytest
import torch
from support.tiny_models import random_ids, tiny_model

from modeling_gpt2scratch.hardware.compilation import checkpoint_activations

DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}


@pytest.mark.parametrize("dropout", [{}, DROPOUT], ids=["without-dropout", "with-dropout"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_losses_and_gradients_equal_those_without_it(dropout, bf16):
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


def test_each_block_runs_twice():
    model = tiny_model().train()
    checkpoint_activations(model)
    calls = []
    for block in model.transformer.h:
        block.ln_2.register_forward_hook(lambda *_: calls.append(1))
    ids = random_ids(1, 8)
    model(ids, shift_labels=ids).loss.backward()
    assert len(calls) == 2 * len(model.transformer.h)
