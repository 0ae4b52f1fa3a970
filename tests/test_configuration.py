"""What the configuration refuses, and how it reads a `gpt2` configuration."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import GPT2Config

from modeling_gpt2scratch import GPT2ScratchConfig


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("n_layer", 0, "at least 1"),
        ("n_embd", -768, "at least 1"),
        ("vocab_size", 0, "at least 1"),
        ("n_positions", 0, "at least 1"),
        ("n_head", 0, "at least 1"),
        ("n_inner", 0, "at least 1"),
        ("n_embd", 770, "a multiple of n_head=12"),
        ("resid_pdrop", 1.0, "0 <= p < 1"),
        ("embd_pdrop", -0.1, "0 <= p < 1"),
        ("attn_pdrop", 2, "0 <= p < 1"),
        ("attn_pdrop", float("nan"), "0 <= p < 1"),
        ("activation_function", "relu", "one of gelu_new"),
    ],
)
def test_a_value_that_makes_no_gpt2_is_a_value_error_that_names_the_field(field, value, expected):
    with pytest.raises(ValueError, match=f"^{field}: expected {expected}.*, found ") as error:
        GPT2ScratchConfig(**{field: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("n_layers", "n_layer"), ("hidden_sizes", "hidden_size"), ("attn_pdrops", "attn_pdrop")],
)
def test_a_name_that_is_almost_a_known_one_is_refused(tmp_path, name, meant):
    message = f"^{name}: expected a known name, found none; {meant} is one$"
    with pytest.raises(ValueError, match=message):
        GPT2ScratchConfig(**{name: 6})
    stored = GPT2ScratchConfig().to_dict()
    (tmp_path / "config.json").write_text(json.dumps(stored | {name: 6}))
    with pytest.raises(ValueError, match=message):
        GPT2ScratchConfig.from_pretrained(tmp_path)
    assert (
        GPT2ScratchConfig(my_own=6, num_labels=3, tie_encoder_decoder=False).my_own == 6
    )  # as transformers has it


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"block_size": 256}, "block_size: expected a known name, found none; give n_positions"),
        ({"n_ctx": 128}, "n_ctx: expected a known name, found none; give n_positions"),
        ({"num_layers": 3}, "num_layers: expected a known name, found none; give n_layer"),
        ({"d_model": 96}, "d_model: expected a known name, found none; give n_embd"),
        ({"num_heads": 4}, "num_heads: expected a known name, found none; give n_head"),
        ({"num_key_value_heads": 2}, "num_key_value_heads: expected .* give n_head"),
        ({"hidden_act": "relu"}, "hidden_act: expected .* give activation_function"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps: expected .* give layer_norm_epsilon"),
        ({"sliding_window": 64}, "expected sliding_window=None as in GPT-2, found 64"),
        ({"dropout": 0.2}, "dropout: expected a known name, found none; give resid_pdrop and"),
        ({"scale_attn_by_inverse_layer_idx": True}, "expected scale_attn_by_inverse_layer_idx=Fal"),
        ({"bias": False}, "expected bias=True as in GPT-2, found False"),
        ({"model_type": "gpt2"}, "model_type: expected gpt2scratch, found gpt2; "),
    ],
)
def test_a_name_of_another_project_that_would_change_nothing_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        GPT2ScratchConfig.from_dict(GPT2ScratchConfig().to_dict() | values)
    with pytest.raises(ValueError, match=message):
        GPT2ScratchConfig(**values)
    assert GPT2ScratchConfig(max_position_embeddings=128, n_ctx=128, dropout=0.0).n_positions == 128


def test_a_value_of_the_wrong_type_names_the_field():
    with pytest.raises(StrictDataclassFieldValidationError, match="'n_layer'"):
        GPT2ScratchConfig(n_layer="12")


def test_a_config_spoilt_afterwards_is_not_saved(tmp_path):
    config = GPT2ScratchConfig()
    config.n_head = 7
    with pytest.raises(Exception, match="multiple of n_head=7"):
        config.save_pretrained(tmp_path)


def test_what_is_saved_is_loaded(tmp_path):
    config = GPT2ScratchConfig(n_embd=96, n_head=4, attn_pdrop=0.25, activation_function="gelu")
    config.save_pretrained(tmp_path)
    assert GPT2ScratchConfig.from_pretrained(tmp_path).to_dict() == config.to_dict() | {
        "transformers_version": json.loads((tmp_path / "config.json").read_text())[
            "transformers_version"
        ]
    }


def test_gpt2s_own_names_and_the_librarys_common_ones_are_the_same_fields():
    config = GPT2ScratchConfig(hidden_size=96, num_attention_heads=4, num_hidden_layers=5)
    assert (config.n_embd, config.n_head, config.n_layer) == (96, 4, 5)
    assert config.max_position_embeddings == config.n_positions == 1024
    assert GPT2ScratchConfig(n_head=10, hidden_size=640).n_embd == 640
    with pytest.raises(ValueError, match="multiple of n_head=10, found 641"):
        GPT2ScratchConfig(num_attention_heads=10, hidden_size=641)


def test_a_gpt2_config_becomes_ours_with_the_defaults_of_gpt2(tmp_path):
    stored = {"model_type": "gpt2", "n_embd": 1600, "n_head": 25, "n_layer": 48, "n_ctx": 1024}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    config = GPT2ScratchConfig.from_pretrained(tmp_path)
    stock = GPT2Config.from_pretrained(tmp_path)
    assert config.model_type == "gpt2scratch"
    assert (config.n_embd, config.n_layer, config.resid_pdrop) == (1600, 48, 0.1)
    ours, theirs = config.to_dict(), stock.to_dict()
    common = ours.keys() & theirs.keys() - {"model_type", "auto_map"}
    assert {name: ours[name] for name in common} == {name: theirs[name] for name in common}


@pytest.mark.parametrize(
    ("switch", "value"),
    [
        ("scale_attn_by_inverse_layer_idx", True),
        ("scale_attn_weights", False),
        ("add_cross_attention", True),
    ],
)
def test_a_gpt2_config_of_another_architecture_is_refused(tmp_path, switch, value):
    GPT2Config(**{switch: value}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{switch}={not value} as in GPT-2, found {value}"):
        GPT2ScratchConfig.from_pretrained(tmp_path)
