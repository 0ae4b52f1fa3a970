"""Checkpoints in OpenAI's layout, incomplete ones, and ones that would run code."""

import io
import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support.damaged_files import add_hostile_code, replace_by_hostile_pickle
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    conversion_mapping,
)
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_layers import GenericForSequenceClassification

from modeling_gpt2scratch import (
    GPT2ScratchConfig,
    GPT2ScratchForCausalLM,
    GPT2ScratchModel,
    GPT2ScratchPreTrainedModel,
)
from modeling_gpt2scratch.interchange.conversion import to_gpt2

SIZES = {"vocab_size": 101, "n_positions": 48, "n_embd": 48, "n_layer": 3, "n_head": 4}
TOKENS = {"bos_token_id": 100, "eos_token_id": 100}
IDS = torch.arange(40).reshape(2, 20)


@pytest.fixture
def stock() -> GPT2LMHeadModel:
    """transformers' GPT-2 with weights that all matter."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**SIZES, **TOKENS, initializer_range=0.2)).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


def as_openai_published(directory, *, prefix: str, masks: bool) -> None:
    """Rewrites a saved `gpt2` the way the older files on the Hub are."""
    file = directory / "model.safetensors"
    tensors = {
        name.replace("transformer.", prefix): tensor for name, tensor in load_file(file).items()
    }
    if masks:
        for layer in range(SIZES["n_layer"]):
            tensors[f"{prefix}h.{layer}.attn.bias"] = torch.ones(1, 1, 48, 48).tril()
            tensors[f"{prefix}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("prefix", "masks", "max_shard_size"),
    [
        ("transformer.", False, "1GB"),
        ("", True, "1GB"),
        ("transformer.", True, "1GB"),
        (None, False, "60KB"),
    ],
    ids=["as saved today", "no prefix", "causal masks", "sharded"],
)
def test_a_gpt2_checkpoint_loads_with_equal_logits_and_no_report(
    stock, tmp_path, prefix, masks, max_shard_size
):
    stock.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    if prefix is None:
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    else:
        as_openai_published(tmp_path, prefix=prefix, masks=masks)
    model, info = GPT2ScratchForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, stock(IDS).logits, atol=1e-5, rtol=0)
    weight = model.transformer.h[1].attn.qkv_proj.weight
    assert torch.equal(weight, stock.transformer.h[1].attn.c_attn.weight.t())


def test_the_base_model_loads_from_it_too(stock, tmp_path):
    stock.save_pretrained(tmp_path)
    model = GPT2ScratchModel.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = stock.transformer(IDS).last_hidden_state
        torch.testing.assert_close(model(IDS).last_hidden_state, expected, atol=1e-5, rtol=0)


def test_untied_and_half_precision_checkpoints_stay_so(tmp_path):
    config = GPT2Config(**SIZES, **TOKENS, tie_word_embeddings=False)
    stock = GPT2LMHeadModel(config).to(torch.bfloat16)
    stock.save_pretrained(tmp_path)
    model = GPT2ScratchForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.lm_head.weight, stock.lm_head.weight)
    assert not torch.equal(model.lm_head.weight, model.transformer.wte.weight)


def test_a_head_that_was_untied_by_hand_stays_so(tmp_path):
    model = GPT2ScratchForCausalLM(GPT2ScratchConfig(**SIZES, **TOKENS))
    model.lm_head.weight = torch.nn.Parameter(torch.randn(101, 48))
    model.save_pretrained(tmp_path)  # its config says tied
    loaded = GPT2ScratchForCausalLM.from_pretrained(tmp_path)
    assert not loaded.config.tie_word_embeddings
    loaded.tie_weights()
    loaded.resize_token_embeddings(101)
    for one in (loaded, to_gpt2(model), to_gpt2(loaded)):
        torch.testing.assert_close(one.eval()(IDS).logits, model.eval()(IDS).logits)


def test_what_is_saved_after_that_is_our_own_layout_bit_for_bit(stock, tmp_path):
    stock.save_pretrained(tmp_path / "gpt2")
    model = GPT2ScratchForCausalLM.from_pretrained(tmp_path / "gpt2")
    model.save_pretrained(tmp_path / "ours")
    tensors = load_file(tmp_path / "ours" / "model.safetensors")
    assert tensors.keys() == model.state_dict().keys() - {"lm_head.weight"}
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["model_type"] == "gpt2scratch"
    again = GPT2ScratchForCausalLM.from_pretrained(tmp_path / "ours")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
        assert name == "lm_head.weight" or torch.equal(tensor, tensors[name]), name


def test_loading_leaves_nothing_behind_in_transformers(stock, tmp_path):
    stock.save_pretrained(tmp_path)
    model = GPT2ScratchForCausalLM.from_pretrained(tmp_path)
    fresh = GPT2ScratchForCausalLM(model.config)
    fresh.save_pretrained(tmp_path / "fresh")
    assert "transformer.h.0.attn.qkv_proj.weight" in load_file(
        tmp_path / "fresh" / "model.safetensors"
    )
    assert GPT2LMHeadModel.from_pretrained(tmp_path).state_dict().keys() == (
        stock.state_dict().keys()
    )


def untied_stock_model(directory) -> GPT2LMHeadModel:
    """A saved one, whose head would be random if its checkpoint were misread."""
    torch.manual_seed(0)
    config = GPT2Config(**SIZES, **TOKENS, tie_word_embeddings=False)
    stock = GPT2LMHeadModel(config).eval()
    stock.save_pretrained(directory)
    return stock


def test_a_thread_loads_and_others_save_at_the_same_time_what_one_thread_would(tmp_path):
    n_threads, n_rounds = 4, 6
    stock = untied_stock_model(tmp_path / "stock")
    fresh = GPT2ScratchForCausalLM(GPT2ScratchForCausalLM.config_class(**SIZES, **TOKENS))
    names = fresh.state_dict().keys() - {"lm_head.weight"}
    start = Barrier(n_threads)

    def work(thread: int) -> None:
        start.wait()
        for number in range(n_rounds):
            if thread > 0:  # these save models that were never loaded, in our own layout
                own = tmp_path / f"{thread}-{number}"
                fresh.save_pretrained(own)
                assert load_file(own / "model.safetensors").keys() == names
                continue
            model = GPT2ScratchForCausalLM.from_pretrained(tmp_path / "stock")
            assert torch.equal(model.lm_head.weight, stock.lm_head.weight)
            found = model.transformer.h[2].mlp.up_proj.weight
            assert torch.equal(found, stock.transformer.h[2].mlp.c_fc.weight.t())

    with ThreadPoolExecutor(n_threads) as threads:
        list(threads.map(work, range(n_threads)))


@pytest.fixture
def own_mapping():
    """A conversion that a user has registered for our model, taken back afterwards."""
    mapping = [WeightRenaming("final_norm", "ln_f")]
    conversion_mapping.register_checkpoint_conversion_mapping("gpt2scratch", mapping)
    yield mapping
    del conversion_mapping._checkpoint_conversion_mapping_cache["gpt2scratch"]
    conversion_mapping.USER_REGISTERED_MAPPINGS.discard("gpt2scratch")


def test_a_conversion_that_the_user_has_registered_is_used_and_stays(own_mapping, stock, tmp_path):
    stock.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name.replace("ln_f", "final_norm"): t for name, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    for _ in range(2):
        model = GPT2ScratchForCausalLM.from_pretrained(tmp_path)
        with torch.no_grad():
            torch.testing.assert_close(model(IDS).logits, stock(IDS).logits, atol=1e-5, rtol=0)
        (kept,) = conversion_mapping.get_checkpoint_conversion_mapping("gpt2scratch")
        assert kept.source_patterns == own_mapping[0].source_patterns


def test_loading_registers_nothing(stock, tmp_path):
    stock.save_pretrained(tmp_path)
    GPT2ScratchForCausalLM.from_pretrained(tmp_path)
    assert conversion_mapping.get_checkpoint_conversion_mapping("gpt2scratch") is None
    assert "gpt2scratch" not in conversion_mapping.USER_REGISTERED_MAPPINGS


def test_a_state_dict_that_lacks_tensors_is_refused():
    config = GPT2ScratchConfig(**SIZES, **TOKENS)
    weights = GPT2ScratchForCausalLM(config).state_dict()
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}
    with pytest.raises(ValueError, match="expected all tensors of GPT2ScratchForCausalLM, found"):
        GPT2ScratchForCausalLM.from_pretrained(None, config=config, state_dict=compiled)
    model = GPT2ScratchForCausalLM.from_pretrained(None, config=config, state_dict=weights)
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"])


def test_a_missing_tensor_is_an_error_that_names_it(tmp_path):
    model = GPT2ScratchForCausalLM(GPT2ScratchForCausalLM.config_class(**SIZES, **TOKENS))
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["transformer.h.1.mlp.up_proj.bias"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"found none for transformer\.h\.1\.mlp\.up_proj\.bias;"):
        GPT2ScratchForCausalLM.from_pretrained(tmp_path)
    _, info = GPT2ScratchForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"transformer.h.1.mlp.up_proj.bias"}


def test_a_head_that_somebody_adds_begins_at_random(stock, tmp_path):
    class Classifier(GPT2ScratchPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.transformer = GPT2ScratchModel(config)
            self.score = torch.nn.Linear(config.n_embd, 3)
            self.post_init()

    stock.save_pretrained(tmp_path)
    model = Classifier.from_pretrained(tmp_path)
    theirs = stock.transformer.h[1].mlp.c_fc.weight.t()
    torch.testing.assert_close(model.transformer.h[1].mlp.up_proj.weight, theirs)
    assert model.score.weight.std() > 0
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.bias"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"found none for transformer\.h\.1\.mlp\.up_proj\.bias;"):
        Classifier.from_pretrained(tmp_path)


def test_values_that_make_no_gpt2_are_refused_also_when_they_replace_those_of_a_file(
    stock, tmp_path
):
    stock.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected a multiple of n_head=7"):
        GPT2ScratchForCausalLM.from_pretrained(tmp_path, n_head=7)
    config = GPT2ScratchForCausalLM.config_class.from_pretrained(tmp_path)
    config.attn_pdrop = 1.5
    with pytest.raises(ValueError, match="attn_pdrop: expected 0 <= p < 1"):
        GPT2ScratchForCausalLM(config)


def test_a_tensor_of_the_wrong_shape_is_an_error_that_names_it(stock, tmp_path):
    stock.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["transformer.h.2.ln_1.weight"] = torch.ones(47)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    expected = r"h\.2\.ln_1\.weight of shape \(48,\), found \(47,\)"
    with pytest.raises(RuntimeError, match=expected):
        GPT2ScratchForCausalLM.from_pretrained(tmp_path)
    model = GPT2ScratchForCausalLM.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    assert torch.equal(model.transformer.h[2].ln_1.weight, torch.ones(48))


def test_a_config_of_other_sizes_is_refused_before_memory_is_taken(stock, tmp_path):
    stock.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    # Two terabytes of embeddings.
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 10**10}))
    with pytest.raises(RuntimeError, match=r"weight of shape \(10000000000, 48\), found"):
        GPT2ScratchForCausalLM.from_pretrained(tmp_path)


def test_a_pickled_object_in_a_checkpoint_is_refused_and_not_run(stock, tmp_path):
    stock.save_pretrained(tmp_path)
    touched = replace_by_hostile_pickle(tmp_path)
    with pytest.raises(pickle.UnpicklingError, match="(?i)weights.only"):
        GPT2ScratchForCausalLM.from_pretrained(tmp_path)
    assert not touched.exists()


def test_code_beside_the_weights_is_never_run_and_nobody_is_asked(tmp_path, monkeypatch):
    model = GPT2ScratchForCausalLM(GPT2ScratchForCausalLM.config_class(**SIZES, **TOKENS))
    model.save_pretrained(tmp_path)
    touched = add_hostile_code(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    for options in ({}, {"trust_remote_code": None}, {"trust_remote_code": False}):
        for cls in (GPT2ScratchConfig, GPT2ScratchForCausalLM, GPT2ScratchModel):
            cls.from_pretrained(tmp_path, **options)
    for cls in (AutoConfig, AutoModel, AutoModelForCausalLM):
        cls.from_pretrained(tmp_path, trust_remote_code=False)
    assert sys.stdin.read() == "y\n" * 20
    assert not touched.exists()


def test_a_config_of_transformers_gpt2_is_refused(stock, tmp_path):
    stock.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected a GPT2ScratchConfig, found a GPT2Config; "):
        GPT2ScratchForCausalLM.from_pretrained(tmp_path, config=stock.config)
    for nothing, name in ((None, "NoneType"), ({"n_layer": 1}, "dict")):
        with pytest.raises(ValueError, match=f"expected a GPT2ScratchConfig, found a {name}; "):
            GPT2ScratchForCausalLM(nothing)


def test_a_head_of_transformers_keeps_the_weights_below_it_or_is_refused(tmp_path):
    model = GPT2ScratchForCausalLM(GPT2ScratchConfig(**SIZES, **TOKENS))
    model.save_pretrained(tmp_path)

    class Classifier(GenericForSequenceClassification, GPT2ScratchPreTrainedModel):
        base_model_prefix = "transformer"

    class OfAnotherName(GenericForSequenceClassification, GPT2ScratchPreTrainedModel):
        base_model_prefix = "model"

    classifier = Classifier.from_pretrained(tmp_path, num_labels=3, pad_token_id=0)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    assert classifier(ids).logits.shape == (1, 3)
    expected, found = model.transformer.state_dict(), classifier.transformer.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    with pytest.raises(ValueError, match=r"expected all tensors of OfAnotherName, found none for"):
        OfAnotherName.from_pretrained(tmp_path, num_labels=3)


def test_an_adapter_that_transformers_cannot_load_is_left_to_peft(tmp_path):
    GPT2ScratchForCausalLM(GPT2ScratchConfig(**SIZES, **TOKENS)).save_pretrained(tmp_path / "base")
    base = GPT2ScratchForCausalLM.from_pretrained(tmp_path / "base")
    peft = get_peft_model(base, LoraConfig(target_modules="all-linear", use_dora=True))
    peft.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"expected an adapter .* peft\.PeftModel\.from_pretrai"):
        GPT2ScratchForCausalLM.from_pretrained(tmp_path / "adapter")
