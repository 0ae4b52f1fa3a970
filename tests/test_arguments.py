"""Arguments of `forward`: those that something reads, and those that are refused."""

import pytest
import torch
from support.tiny_models import random_ids, tiny_model
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, DataCollatorWithFlattening
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

IDS = random_ids(2, 12)
UNREAD = {
    "attention_masks": (torch.ones(2, 12), "did you mean attention_mask?"),
    "label": (IDS, "did you mean labels?"),
    "lables": (IDS, "did you mean labels?"),
    "num_logits_to_keep": (1, "did you mean logits_to_keep?"),
    "output_attention": (True, "did you mean output_attentions?"),
    "shifted_labels": (IDS, "did you mean shift_labels?"),
    "encoder_hidden_states": (torch.zeros(2, 3, 32), "leave it out, or give input_ids, "),
    "token_type_ids": (IDS, "leave it out, or give input_ids, "),
    "head_mask": (torch.ones(2, 4), "leave it out, or give input_ids, "),
    "output_router_logits": (True, "leave it out, or give input_ids, "),
    "cache": ({}, "leave it out, or give input_ids, "),  # a paged one only
    "cache_position": (torch.arange(12), "leave it out, or give input_ids, "),
    "scaling": (0.5, "leave it out, or give input_ids, "),
}


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


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", UNREAD)
def test_an_argument_that_nothing_reads_is_an_error_that_names_the_nearest(name, attention):
    value, remedy = UNREAD[name]
    model = tiny_model()
    model.set_attn_implementation(attention)
    with pytest.raises(TypeError) as refusal:
        model(IDS, **{name: value})
    message = str(refusal.value)
    assert message.startswith("GPT2ScratchForCausalLM: expected arguments that it reads, found ")
    assert f"found {name}; {remedy}" in message and "\n" not in message


def test_the_base_model_has_no_labels_and_says_so():
    model = tiny_model().transformer
    for name in ("labels", "shift_labels", "logits_to_keep", "attention_masks"):
        with pytest.raises(TypeError, match=f"GPT2ScratchModel: expected .*, found {name};"):
            model(IDS, **{name: IDS})


def test_a_compiled_model_refuses_them_too():
    compiled = torch.compile(tiny_model(), backend="eager")
    with pytest.raises(TypeError, match="found label; did you mean labels"):
        compiled(IDS, label=IDS)


@pytest.mark.parametrize("name", sorted(UNREAD.keys() - {"scaling"}))
def test_none_says_nothing_as_peft_relies_on(name):
    model = tiny_model()
    with torch.no_grad():
        assert torch.equal(model(IDS, **{name: None}).logits, model(IDS).logits)


def test_what_transformers_reads_is_passed_on():
    model = tiny_model()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        plain = model(IDS, labels=IDS)
        assert torch.equal(model(IDS, return_dict=False)[0], plain.logits)
        shown = model(IDS, output_attentions=True, output_hidden_states=True)
        assert [len(shown.attentions), len(shown.hidden_states)] == [2, 3]
        total = model(IDS, labels=IDS, num_items_in_batch=torch.tensor(1)).loss
        torch.testing.assert_close(total, plain.loss * 22)
        seeing_all = model(IDS, is_causal=False, output_attentions=True).attentions[0]
    assert seeing_all[..., 0, -1].min() > 0 == shown.attentions[0][..., 0, -1].max()


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

    model = tiny_model(initializer_range=0.2)
    model.set_attn_implementation(registered("scaled", scaled))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(IDS, factor=0.5).logits, model(IDS, factor=0.5).logits)
        assert not torch.allclose(model(IDS, factor=0.5).logits, model(IDS).logits, atol=1e-3)
    model.set_attn_implementation("sdpa")
    with pytest.raises(TypeError, match="found factor; leave it out"):
        model(IDS, factor=0.5)
