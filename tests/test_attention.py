"""Attention implementations, masks, padding and packed documents."""

import pytest
import torch
from support.tiny_models import random_ids, tiny_model
from torch.nn import functional as F
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DataCollatorWithFlattening,
    DynamicCache,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_flash_attn_2_available

from modeling_gpt2scratch import GPT2ScratchForCausalLM
from modeling_gpt2scratch import modeling_gpt2scratch as modeling


def model_with(attention: str) -> GPT2ScratchForCausalLM:
    """A tiny model whose attention looks sharply at some tokens, with this implementation."""
    model = tiny_model(initializer_range=0.2)
    model.set_attn_implementation(attention)
    return model


def test_sdpa_gives_the_logits_of_eager():
    ids = random_ids(2, 20)
    with torch.no_grad():
        expected = model_with("eager")(ids).logits
        torch.testing.assert_close(model_with("sdpa")(ids).logits, expected, atol=1e-5, rtol=0)


def test_padding_in_float64_gives_the_logits_of_sdpa():
    ids, mask = random_ids(2, 20), torch.ones(2, 20)
    mask[0, :6] = 0
    found, expected = (
        model_with(attention).double()(ids, attention_mask=mask).logits.detach()
        for attention in ("eager", "sdpa")
    )
    torch.testing.assert_close(found[1], expected[1], atol=1e-13, rtol=0)
    torch.testing.assert_close(found[0, 6:], expected[0, 6:], atol=1e-13, rtol=0)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(
    "attention",
    ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.gate)],  # flex compiles
)
def test_packed_documents_do_not_see_each_other(attention):
    ids, model, eager = random_ids(1, 20), model_with(attention), model_with("eager")
    position_ids = torch.cat([torch.arange(7), torch.arange(13)])[None]
    with torch.no_grad():
        packed = model(ids, position_ids=position_ids).logits
        alone = torch.cat([eager(ids[:, :7]).logits, eager(ids[:, 7:]).logits], dim=1)
        seeing = eager(ids).logits
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)
    assert not torch.allclose(packed[:, 7:], seeing[:, 7:], atol=1e-2)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_documents_do_not_see_each_other_beside_an_empty_cache(attention):
    ids, model = random_ids(1, 20), model_with(attention)
    position_ids = torch.cat([torch.arange(7), torch.arange(13)])[None]
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        expected = model(ids, position_ids=position_ids).logits
        found = model(ids, position_ids=position_ids, past_key_values=cache)
    torch.testing.assert_close(found.logits, expected)
    assert cache.get_seq_length() == 20


@pytest.mark.parametrize("n_rows", [1, 3, 20])
def test_positions_of_one_row_are_those_of_all(n_rows):
    ids, model = random_ids(n_rows, 20), model_with("eager")
    with torch.no_grad():
        torch.testing.assert_close(
            model(ids, position_ids=torch.arange(20)).logits, model(ids).logits
        )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_documents_train_like_separate_ones(attention):
    model, ids = model_with(attention).train(), random_ids(1, 20)
    position_ids = torch.cat([torch.arange(7), torch.arange(13)])[None]
    targets = random_ids(1, 20).roll(1)
    packed = model(ids, position_ids=position_ids, shift_labels=targets).loss
    first, second = (
        model(ids[:, part], shift_labels=targets[:, part]).loss
        for part in (slice(0, 7), slice(7, 20))
    )
    torch.testing.assert_close(packed, (7 * first + 13 * second) / 20)


# With flex_attention, a padded batch fails to compile on the CPU in torch 2.13, for Llama as well.
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_left_padded_rows_give_the_logits_of_single_rows_with_and_without_a_cache(attention):
    model, ids = model_with(attention), random_ids(3, 20)
    n_padding = [0, 5, 9]
    attention_mask = torch.ones_like(ids)
    for row, n in enumerate(n_padding):
        attention_mask[row, :n] = 0
    with torch.no_grad():
        logits = model(ids, attention_mask=attention_mask).logits
        prefill = model(ids[:, :14], attention_mask=attention_mask[:, :14])
        rest = model(
            ids[:, 14:], attention_mask=attention_mask, past_key_values=prefill.past_key_values
        )
        for row, n in enumerate(n_padding):
            alone = model(ids[row : row + 1, n:]).logits[0]
            torch.testing.assert_close(logits[row, n:], alone, atol=1e-5, rtol=0)
            torch.testing.assert_close(rest.logits[row], alone[-6:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("visible", [1, 2, 0.5, -1, True])
def test_a_right_padded_row_gives_the_logits_of_the_row_alone(visible):
    model, ids = tiny_model(), random_ids(2, 12)
    attention_mask = torch.full(ids.shape, visible)
    attention_mask[0, 8:] = 0
    with torch.no_grad():
        found = model(ids, attention_mask=attention_mask).logits[0, :8]
        torch.testing.assert_close(found, model(ids[:1, :8]).logits[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_a_prepared_mask_means_the_same_to_every_attention(dtype):
    ids = random_ids(2, 12)
    mask = torch.ones(12, 12, dtype=torch.bool).tril().expand(2, 1, 12, 12).clone()
    mask[:, :, 6:, 2] = False
    with torch.no_grad():
        found = model_with("eager")(ids, attention_mask=mask.to(dtype)).logits
        sdpa = model_with("sdpa")(ids, attention_mask=mask).logits
        seeing = model_with("eager")(ids).logits
    torch.testing.assert_close(found, sdpa, atol=1e-5, rtol=0)
    assert not torch.allclose(found[:, 6:], seeing[:, 6:], atol=1e-2)
    with torch.no_grad():
        same = model_with("sdpa")(ids, attention_mask=mask.to(dtype)).logits
    assert torch.equal(same, sdpa)
    # With such a mask flex attention does not compile on CPUs; it adds what it is given.
    flex = model_with("flex_attention").transformer
    added = flex._causal_mask(torch.zeros(2, 12, 1), mask.to(dtype), None, None)
    assert torch.equal(added, torch.where(mask, 0.0, torch.finfo(torch.float32).min))


@pytest.mark.parametrize("shape", [(2, 1, 1, 12), (2, 1, 12, 1), (2, 1, 12, 11), (2, 1, 13, 12)])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_prepared_mask_without_a_row_for_each_token_is_refused(implementation, shape):
    with pytest.raises(ValueError, match="attention_mask: expected .*, found "):
        model_with(implementation)(random_ids(2, 12), attention_mask=torch.ones(shape).bool())


@pytest.mark.parametrize(
    ("name", "shape"),
    [("position_ids", (2, 1)), ("position_ids", (1,)), ("inputs_embeds", (2, 12, 1))],
)
def test_what_a_sum_would_broadcast_over_the_tokens_is_refused(name, shape):
    inputs = {"input_ids": random_ids(2, 12)} if name == "position_ids" else {}
    with pytest.raises(ValueError, match=r"expected .*\(.*, found \("):
        tiny_model()(**inputs, **{name: torch.zeros(shape, dtype=torch.int64)})


@pytest.mark.parametrize("is_training", [True, False], ids=["training", "prefill"])
def test_plain_rows_need_no_mask_but_the_causal_flag(monkeypatch, is_training):
    seen = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(*args, **kwargs):
        seen.append((kwargs["attn_mask"], kwargs["is_causal"]))
        return attend(*args, **kwargs)

    def build_no_mask(**kwargs):
        raise AssertionError("a mask was built for a plain batch")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    monkeypatch.setattr(modeling, "create_causal_mask", build_no_mask)
    model = tiny_model().train(is_training)
    model(random_ids(2, 16))
    assert seen == [(None, True)] * model.config.n_layer


def test_a_compiled_training_step_has_no_mask_tensor():
    shapes = []

    def collect(graph, _):
        for node in graph.graph.nodes:
            value = node.meta.get("example_value")
            if isinstance(value, torch.Tensor):
                shapes.append(tuple(value.shape))
        return graph.forward

    model, ids = tiny_model().train(), random_ids(2, 16)
    torch.compile(model, backend=collect, fullgraph=True)(ids, shift_labels=ids).loss.backward()
    assert shapes
    assert [shape for shape in shapes if shape[-2:] == (16, 16)] == []


@pytest.mark.skipif(is_flash_attn_2_available(), reason="flash-attn is installed")
def test_flash_attention_says_what_is_missing_where_it_is_not_installed():
    with pytest.raises((ImportError, ValueError), match="(?i)flash"):
        tiny_model().set_attn_implementation("flash_attention_2")


def test_flash_attention_gets_no_mask_and_only_the_users_positions(monkeypatch):
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    seen = []

    def flash(module, query, key, value, attention_mask, position_ids=None, **kwargs):
        seen.append((attention_mask, position_ids))
        return query.transpose(1, 2), None

    # The real kernel needs a GPU; what it is called with does not.
    mask = ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"]
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "recorded", flash)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._local_mapping, "recorded", mask)
    model, ids = tiny_model(n_layer=1), random_ids(1, 20)
    model.config._attn_implementation = "recorded"
    position_ids = torch.cat([torch.arange(7), torch.arange(13)])[None]
    model(ids)
    model(ids, position_ids=position_ids)
    assert seen[0] == (None, None)
    assert seen[1][0] is None
    assert torch.equal(seen[1][1], position_ids)


@pytest.fixture
def registered():
    """Registers an attention function for the length of a test."""
    names = []

    def register(name, function) -> str:
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, lambda **kwargs: None)
        names.append(name)
        return name

    yield register
    for name in names:
        del AttentionInterface._global_mapping[name], AttentionMaskInterface._global_mapping[name]


class Layer:
    """What a program that serves models keeps for each layer."""

    def __init__(self):
        self.n_calls = 0

    def attend(self, query, key, value, scaling: float):
        self.n_calls += 1
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)


def attend_in_rows(
    module, query, key, value, attention_mask, scaling=None, attention_instances=None, **kwargs
):
    """As vLLM and SGLang do: own arguments by name, and (T, C) for one row of T tokens."""
    layer = attention_instances[module.layer_idx]
    attended = layer.attend(query, key, value, scaling)  # (1, H, T, D)
    return attended.transpose(1, 2).reshape(query.shape[-2], -1), None


def test_packed_rows_of_a_collator_give_the_loss_of_their_documents():
    model = tiny_model(initializer_range=0.2)
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    rows = [random_ids(n, seed=n).tolist() for n in (5, 9)]
    batch = collate([{"input_ids": row} for row in rows], return_tensors="pt")
    assert {"cu_seq_lens_q", "max_length_k", "seq_idx", "position_ids"} <= batch.keys()
    with torch.no_grad():
        losses = [model(torch.tensor([row]), labels=torch.tensor([row])).loss for row in rows]
        torch.testing.assert_close(model(**batch).loss, (4 * losses[0] + 8 * losses[1]) / 12)
        del batch["position_ids"]
        with pytest.raises(ValueError, match="position_ids beside cu_seq_lens_q, found none"):
            model(**batch)


def test_an_attention_function_that_returns_rows_gives_the_same_tokens(registered):
    model, serving = tiny_model(initializer_range=0.2), tiny_model(initializer_range=0.2)
    serving.set_attn_implementation(registered("rows", attend_in_rows))
    layers = {layer: Layer() for layer in range(2)}
    ids = random_ids(1, 6)
    expected = model.generate(ids, do_sample=False, max_new_tokens=20, min_new_tokens=20)
    with torch.no_grad():
        while ids.shape[1] < 26:
            options = {"attention_instances": layers, "use_cache": False}
            # As vLLM calls it: the base model, positions for each token, and a tuple back.
            hidden = serving.transformer(
                ids, position_ids=torch.arange(ids.shape[1])[None], return_dict=False, **options
            )[0]
            torch.testing.assert_close(serving(ids, **options).logits, model(ids).logits)
            assert hidden.shape == (1, ids.shape[1], 32)
            logits = serving.lm_head(hidden[:, -1])
            logits[:, model.generation_config.eos_token_id] = -torch.inf
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(ids, expected)
    assert layers[0].n_calls == layers[1].n_calls == 40
    with pytest.raises(TypeError, match="found attention_instance; "):
        serving(ids, attention_instance=layers)


def test_arguments_of_an_attention_function_are_known_to_a_compiled_model(registered):
    def scaled(module, query, key, value, attention_mask, scaling, factor=1.0, **kwargs):
        attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return attend(module, query, key, value, attention_mask, scaling=scaling * factor)

    model, ids = tiny_model(initializer_range=0.2), random_ids(2, 12)
    model.set_attn_implementation(registered("scaled", scaled))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids, factor=0.5).logits, model(ids, factor=0.5).logits)
        assert not torch.allclose(model(ids, factor=0.5).logits, model(ids).logits, atol=1e-3)
    model.set_attn_implementation("sdpa")
    with pytest.raises(TypeError, match="found factor; leave it out"):
        model(ids, factor=0.5)
