"""Which models give a text a likelihood, by what small changes do to their logits."""

import numpy as np
import pytest
import torch
from support import evaluation as tiny
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    OPTConfig,
    Qwen2MoeConfig,
    RobertaConfig,
    XLNetConfig,
)

from modeling_gpt2scratch.evaluation.scoring import causal_model
from modeling_gpt2scratch.evaluation.scoring.causal_model import CausalModel
from modeling_gpt2scratch.evaluation.scoring.encoding import context_length
from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer

PRECISIONS = [torch.float32, torch.bfloat16, torch.float16]
N_TOKENS = 300
SIZES = {
    **{"vocab_size": N_TOKENS, "hidden_size": 64, "intermediate_size": 128},
    **{"num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 128},
}
GROUPED = SIZES | {"num_key_value_heads": 2}
CAUSAL = [
    GPT2Config(vocab_size=N_TOKENS, n_embd=64, n_layer=3, n_head=4, n_positions=128),
    LlamaConfig(**GROUPED),
    OPTConfig(**SIZES, ffn_dim=128, word_embed_proj_dim=64),
    MixtralConfig(**GROUPED, num_local_experts=8),
    Qwen2MoeConfig(**GROUPED, num_experts=8, moe_intermediate_size=64),
    MambaConfig(vocab_size=N_TOKENS, hidden_size=64, num_hidden_layers=3, state_size=8),
]
BIDIRECTIONAL = [
    BertConfig(**SIZES | {"num_hidden_layers": 2, "hidden_size": 32}),
    XLNetConfig(vocab_size=N_TOKENS, d_model=64, n_layer=2, n_head=4, d_inner=64),
]


def made(config, dtype=torch.float32, seed=0):
    """A model with random weights."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def kind(value):
    return getattr(value, "model_type", str(value))


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("config", CAUSAL, ids=kind)
def test_causal_models_are_taken_in_any_precision(config, dtype, caplog):
    found = CausalModel(made(config, dtype), context_tokens=64)
    # transformers multiplies Mamba's states and head in other precisions than they are stored in.
    assert found._head is not None or (config.model_type == "mamba" and dtype != torch.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("config", BIDIRECTIONAL, ids=kind)
def test_small_models_that_see_later_tokens_are_refused_in_any_precision(config, dtype, seed):
    with pytest.raises(ValueError, match="expected a model whose tokens see only what comes"):
        CausalModel(made(config, dtype, seed), context_tokens=64)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_a_cap_that_takes_little_off_small_logits_is_not_left_out(dtype, caplog):
    config = Gemma2Config(**GROUPED, head_dim=16, query_pre_attn_scalar=16)
    assert CausalModel(made(config, dtype), context_tokens=64)._head is None
    assert "found other logits; the model's own logits are taken" in caplog.text


class Wavering(torch.nn.Linear):
    """A head whose results differ a little from call to call, as sums in no order do on a GPU."""

    n_calls = 0

    def forward(self, states):
        self.n_calls += 1
        return super().forward(states) * (1 + 1e-4 * (self.n_calls % 3))


def test_a_model_whose_logits_differ_from_call_to_call_is_as_causal_as_it_is_exact():
    model = made(GPT2Config(vocab_size=N_TOKENS, n_embd=64, n_layer=1, n_head=4, n_positions=64))
    model.lm_head.__class__ = Wavering
    assert CausalModel(model, context_tokens=64)._head is model.lm_head


def test_experts_that_round_otherwise_for_another_number_of_tokens_are_no_later_tokens(monkeypatch):
    """As of a mixture whose logits jump if the last token is another, not if it is nearly so."""
    model = made(LlamaConfig(**GROUPED))
    forward = model.forward

    def jump(input_ids, **inputs):
        outputs = forward(input_ids=input_ids, **inputs)
        outputs.logits *= 1 + 1e-3 * bool(input_ids[0, -1] == input_ids[0, 0])
        return outputs

    monkeypatch.setattr(model, "forward", jump)
    CausalModel(model, context_tokens=64)
    monkeypatch.setattr(causal_model, "SHARES", ())
    with pytest.raises(ValueError, match="whose tokens see later ones"):
        CausalModel(model, context_tokens=64)


def test_positions_that_are_for_padding_are_no_part_of_the_context():
    tokenizer = tiny.tiny_tokenizer()
    sizes = SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": 34}
    config = RobertaConfig(**sizes, pad_token_id=1, is_decoder=True)
    scorer = CausalScorer(made(config), tokenizer, batch_tokens=64)
    assert scorer.context_tokens == 32
    (result,) = scorer.score_windows([np.arange(33) + 5])
    assert np.isfinite(result[1]).all() and len(result[1]) == 32


def test_a_length_below_one_is_none():
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.model_max_length = 77
    assert context_length(XLNetConfig(), tokenizer) == 77
