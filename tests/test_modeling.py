"""The model against transformers' GPT-2, and what the Hub and the training loop expect of it."""

import math

import pytest
import torch
from support.tiny_models import random_ids, tiny_model, tiny_twins
from transformers import AutoModelForCausalLM, GPT2LMHeadModel
from transformers.loss.loss_utils import LOSS_MAPPING

from modeling_gpt2scratch import GPT2ScratchConfig, GPT2ScratchForCausalLM
from modeling_gpt2scratch.training.sizes import MODEL_SIZES

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
    "cache_position": (torch.arange(12), "leave it out, or give input_ids, "),
    "scaling": (0.5, "leave it out, or give input_ids, "),
}


@pytest.fixture
def twins(tmp_path) -> tuple[GPT2ScratchForCausalLM, GPT2LMHeadModel]:
    """Our model and transformers' with the same weights, large enough for all of them to matter."""
    return tiny_twins(tmp_path, n_layer=3)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_loss_and_hidden_states_equal_those_of_transformers(twins, attention):
    model, theirs = twins
    model.set_attn_implementation(attention)
    ids = random_ids(2, 48)
    with torch.no_grad():
        found = model(ids, labels=ids, output_hidden_states=True)
        expected = theirs(ids, labels=ids, output_hidden_states=True)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.loss, expected.loss, atol=1e-5, rtol=0)
    for left, right in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=0)


def test_attention_probabilities_equal_those_of_transformers(twins):
    model, theirs = twins
    ids = random_ids(2, 9)
    for twin in twins:
        twin.set_attn_implementation("eager")
    found = model(ids, output_attentions=True).attentions
    expected = theirs(ids, output_attentions=True).attentions
    assert len(found) == len(expected) == 3
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=0)


def test_gradients_equal_those_of_transformers(twins):
    model, theirs = twins
    ids = random_ids(2, 16)
    for twin in twins:
        twin(ids, labels=ids).loss.backward()
    mlp, their_mlp = model.transformer.h[1].mlp, theirs.transformer.h[1].mlp
    torch.testing.assert_close(mlp.up_proj.weight.grad, their_mlp.c_fc.weight.grad.t())
    torch.testing.assert_close(model.lm_head.weight.grad, theirs.lm_head.weight.grad)


def test_ids_outside_the_vocabulary_are_refused_with_its_limits():
    model = tiny_model()
    with pytest.raises(ValueError, match="input_ids: expected 0 to 269, found 3 to 270"):
        model(torch.tensor([[3, 270]]))
    with pytest.raises(ValueError, match="input_ids: expected 0 to 269, found -1 to 3"):
        model(torch.tensor([[3, -1]]))
    with pytest.raises(ValueError, match="position_ids: expected 0 to 47, found 0 to 48"):
        model(torch.tensor([[3, 4]]), position_ids=torch.tensor([[0, 48]]))


@pytest.mark.parametrize(
    ("names", "found"), [((), "neither"), (("input_ids", "inputs_embeds"), "both")]
)
def test_neither_or_both_kinds_of_input_are_refused(names, found):
    expected = f"exactly one of input_ids and inputs_embeds, found {found}"
    with pytest.raises(ValueError, match=expected):
        tiny_model()(**{name: torch.zeros(1, 1) for name in names})


def test_text_beyond_n_positions_is_refused_with_the_limit():
    model = tiny_model()
    with pytest.raises(ValueError, match="n_positions=48 tokens, found 49"):
        model(random_ids(1, 49))
    with pytest.raises(ValueError, match=r"n_positions=48 \+ 1"):
        model.generate(random_ids(1, 40), max_new_tokens=10)
    assert model.generate(random_ids(1, 40), max_new_tokens=9, min_new_tokens=9).shape == (1, 49)


@pytest.mark.parametrize("make", [GPT2ScratchForCausalLM, AutoModelForCausalLM.from_config])
def test_initial_weights_have_gpt2s_standard_deviations(make):
    torch.manual_seed(0)
    sizes = {"n_embd": 256, "n_layer": 8, "n_head": 4, "vocab_size": 2000, "n_positions": 256}
    model = make(GPT2ScratchConfig(**sizes, bos_token_id=0, eos_token_id=0))
    residual = 0.02 / math.sqrt(2 * 8)
    for name, parameter in model.named_parameters():
        if "ln_" in name or name.endswith("bias"):
            expected = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            assert torch.all(parameter == expected), name
        else:
            is_residual = "o_proj" in name or "down_proj" in name
            std = residual if is_residual else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.02), name
            assert abs(parameter.mean().item()) < std / 20, name


def test_first_loss_is_that_of_a_uniform_guess():
    torch.manual_seed(0)
    config = GPT2ScratchConfig(vocab_size=5000, n_positions=128, n_embd=128, n_layer=4, n_head=4)
    ids = torch.randint(5000, (4, 128))
    loss = GPT2ScratchForCausalLM(config)(ids, labels=ids).loss
    assert loss.item() == pytest.approx(math.log(5000), abs=0.05)


@pytest.mark.parametrize(
    ("name", "n_parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_each_size_has_the_parameters_of_openais_model(name, n_parameters):
    with torch.device("meta"):
        model = GPT2ScratchForCausalLM(GPT2ScratchConfig(**MODEL_SIZES[name]))
    assert model.num_parameters() == n_parameters
    assert model.lm_head.weight is model.transformer.wte.weight


def test_the_default_config_is_gpt2_small():
    assert GPT2ScratchConfig().to_dict() == GPT2ScratchConfig(**MODEL_SIZES["gpt2"]).to_dict()


def test_saved_weights_hold_the_tied_matrix_once_and_load_tied(tmp_path):
    from safetensors import safe_open

    model = tiny_model()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert "transformer.wte.weight" in file.keys()  # noqa: SIM118
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    loaded = GPT2ScratchForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


@pytest.mark.gate
def test_compiled_training_is_one_graph_with_the_same_loss():
    model, ids = tiny_model().train(), random_ids(2, 16)
    expected = model(ids, shift_labels=ids).loss
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids, shift_labels=ids).loss, expected)


def test_already_shifted_labels_give_the_same_loss_without_logits():
    model, ids = tiny_model(), random_ids(2, 17)
    inside = model(ids, labels=ids)
    outside = model(ids[:, :-1], shift_labels=ids[:, 1:])
    torch.testing.assert_close(outside.loss, inside.loss)
    assert inside.logits.shape == (2, 17, 270)
    assert outside.logits is None


def test_loss_is_divided_by_num_items_in_batch_when_trainer_gives_it():
    model, ids = tiny_model(), random_ids(2, 17)
    mean = model(ids, labels=ids).loss  # over 2 x 16 targets
    shared = model(ids, labels=ids, num_items_in_batch=torch.tensor(64)).loss
    torch.testing.assert_close(shared, mean / 2)


def test_only_the_asked_logits_are_computed():
    model, ids = tiny_model(), random_ids(2, 10)
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, model(ids).logits[:, -3:])


def test_dropout_acts_in_training_only():
    model, ids = tiny_model(resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3), random_ids(2, 16)
    torch.testing.assert_close(model(ids).logits, model(ids).logits, rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)


def test_dropout_is_switched_off_by_its_modules_as_trl_does():
    model, ids = tiny_model(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5), random_ids(2, 16)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0
    torch.testing.assert_close(model(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_in_training_there_is_a_cache_for_those_who_ask():
    model, ids = tiny_model(), random_ids(2, 9)
    expected = model(ids).logits
    model.train()
    assert model(ids[:, :5]).past_key_values is None
    cache = model(ids[:, :5], use_cache=True).past_key_values
    found = model(ids[:, 5:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(found, expected[:, 5:], atol=1e-5, rtol=0)


def test_arguments_of_the_loss_reach_it(twins):
    ids = random_ids(2, 16)
    ours, theirs = (twin(ids, labels=ids, ignore_index=ids[0, 3].item()).loss for twin in twins)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    model = tiny_model()
    model.loss_function = lambda logits, labels, vocab_size, weight=1.0, **kwargs: weight * 2
    assert model(ids, labels=ids, weight=3.0).loss == 6
    with pytest.raises(TypeError, match="found weights"):
        model(ids, labels=ids, weights=3.0)


def test_labels_bring_logits_also_beside_shifted_ones():
    model, ids = tiny_model(), random_ids(2, 16)
    targets = ids.roll(-1, 1)
    both = model(ids, labels=ids, shift_labels=targets)
    assert both.logits.shape == (2, 16, 270)
    torch.testing.assert_close(both.loss, model(ids, shift_labels=targets).loss)


@pytest.mark.parametrize("ids", [IDS[0], IDS[:0], IDS[:, :0]])
def test_ids_that_are_no_rows_are_refused(ids):
    with pytest.raises(ValueError, match=r"expected \(B, T\) tokens, .*found \("):
        tiny_model()(ids)


@pytest.mark.parametrize("name", ["labels", "shift_labels"])
@pytest.mark.parametrize("shape", [(12, 2), (24,), (2, 12, 1), (2, 11)])
def test_labels_of_another_shape_are_refused(name, shape):
    labels = IDS.flatten()[: math.prod(shape)].reshape(shape)
    with pytest.raises(ValueError, match=r"expected the shape \(2, 12\).*, found \("):
        tiny_model()(IDS, **{name: labels})
    model = tiny_model()
    model.lm_head.register_forward_hook(lambda head, inputs, logits: logits)
    with pytest.raises(ValueError, match=r"expected the shape \(2, 12\).*, found \("):
        model(IDS, **{name: labels})


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
        model.config.return_dict = False
        assert torch.equal(model(IDS)[0], plain.logits)
        model.config.return_dict = True
        shown = model(IDS, output_attentions=True, output_hidden_states=True)
        assert [len(shown.attentions), len(shown.hidden_states)] == [2, 3]
        total = model(IDS, labels=IDS, num_items_in_batch=torch.tensor(1)).loss
        torch.testing.assert_close(total, plain.loss * 22)
        seeing_all = model(IDS, is_causal=False, output_attentions=True).attentions[0]
    assert seeing_all[..., 0, -1].min() > 0 == shown.attentions[0][..., 0, -1].max()


def test_logits_are_kept_at_the_places_that_are_asked_for():
    model, ids = tiny_model().eval(), random_ids(3, 8)
    with torch.no_grad():
        whole = model(ids).logits

        def kept(places):
            return model(ids, logits_to_keep=places).logits

        assert torch.equal(kept(torch.tensor([0, 5])), whole[:, [0, 5]])
        places = torch.tensor([[0, 1], [3, 2], [7, 7]])
        torch.testing.assert_close(kept(places), whole[torch.arange(3)[:, None], places])
        mask = ids > ids.float().mean()
        torch.testing.assert_close(kept(mask), whole[mask])


def test_a_loss_of_ones_own_is_used_for_both_kinds_of_labels():
    model, ids = tiny_model(), random_ids(2, 8)
    model.loss_function = lambda logits, labels, vocab_size, **kwargs: logits.sum() * 0 + 7
    assert model(ids, labels=ids).loss == 7
    assert model(ids, shift_labels=ids).loss == 7


def _with_bias(model):
    head = torch.nn.Linear(model.config.n_embd, model.config.vocab_size)
    model.set_output_embeddings(head)


def _with_hook(model):
    model.lm_head.register_forward_hook(lambda head, given, logits: (4 * logits).tanh())


def _with_hook_before(model):
    model.lm_head.register_forward_pre_hook(lambda head, given: (2 * given[0],))


def _with_registered_loss(model):
    model.loss_type = "of_a_test"


@pytest.mark.parametrize(
    "change", [_with_bias, _with_hook, _with_hook_before, _with_registered_loss]
)
def test_whatever_changes_head_or_loss_counts_for_both_kinds_of_labels(monkeypatch, change):
    of_a_test = lambda logits, labels, vocab_size, **kwargs: logits.square().mean()  # noqa: E731
    monkeypatch.setitem(LOSS_MAPPING, "of_a_test", of_a_test)
    model, ids = tiny_model(), random_ids(2, 9)
    plain = model(ids, labels=ids).loss
    change(model)
    expected = model(ids[:, :-1], labels=None, shift_labels=ids[:, 1:]).loss
    if change is not _with_registered_loss:  # which does not know of shifts
        torch.testing.assert_close(expected, model(ids, labels=ids).loss)
    assert abs(expected - plain) > 1e-3


def test_a_hook_for_the_gradients_of_the_head_runs_for_both_kinds_of_labels():
    model, ids, seen = tiny_model(), random_ids(2, 9), []
    model.lm_head.register_full_backward_hook(lambda *gradients: seen.append(gradients))
    for name in ("labels", "shift_labels"):
        model(ids, **{name: ids}).loss.backward()
    assert len(seen) == 2


def test_a_subclass_of_any_name_compiles_whole_with_the_same_loss():
    class Mine(GPT2ScratchForCausalLM):
        pass

    model, ids = Mine(tiny_model().config).eval(), random_ids(1, 8)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    found = compiled(ids, shift_labels=ids)
    assert found.logits is None and found.loss == model(ids, shift_labels=ids).loss


def test_no_cache_is_made_where_blocks_run_twice():
    model, ids = tiny_model().train(), random_ids(1, 6)
    model.gradient_checkpointing_enable()
    assert model(ids, use_cache=True).past_key_values is None


def test_every_projection_is_a_linear_layer_to_whoever_looks_for_them():
    """Quantizers ask for the very type."""
    block = tiny_model().transformer.h[0]
    projections = (block.attn.qkv_proj, block.attn.o_proj, block.mlp.up_proj, block.mlp.down_proj)
    assert [type(projection) for projection in projections] == [torch.nn.Linear] * 4
    quantized = torch.ao.quantization.quantize_dynamic(tiny_model(), {torch.nn.Linear})
    assert not any(type(module) is torch.nn.Linear for module in quantized.modules())


@pytest.mark.gate
@torch.no_grad()
def test_a_mask_for_flex_attention_may_be_a_block_mask():
    from torch.nn.attention.flex_attention import create_block_mask

    model, ids = tiny_model().eval(), random_ids(1, 8)
    expected = model(ids).logits
    model.set_attn_implementation("flex_attention")
    mask = create_block_mask(lambda b, h, q, k: q >= k, 1, None, 8, 8, device="cpu")
    torch.testing.assert_close(model(ids, attention_mask=mask).logits, expected)
