"""Models that are no plain transformer: each text has the scores of a row of its own."""

import re

import numpy as np
import pytest
import torch
from support import evaluation as tiny
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    Lfm2Config,
    LlamaConfig,
    OPTConfig,
    Phi3Config,
    Qwen3NextConfig,
    RobertaConfig,
)

from modeling_gpt2scratch import GPT2ScratchConfig
from modeling_gpt2scratch.evaluation.scoring import scorer as causal_scorer
from modeling_gpt2scratch.evaluation.scoring.encoding import encode_pairs
from modeling_gpt2scratch.evaluation.scoring.greedy import greedy_continuations
from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer

TOKENIZER = tiny.tiny_tokenizer()
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"vocab_size": len(TOKENIZER), "max_position_embeddings": 128}
IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
GATED = SIZES | IDS | {"intermediate_size": 48, "num_key_value_heads": 2}
GPT2 = {"vocab_size": len(TOKENIZER), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
SHORT_TOKENS = 24  # for which the model of `longrope` takes the short factors
HYBRIDS = {
    "lfm2": Lfm2Config(**GATED, layer_types=["conv", "full_attention"]),
    "qwen3_next": Qwen3NextConfig(
        **{**GATED, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"]},
        **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8},
        **{"linear_value_head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2},
        **{"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    ),
    "bamba": BambaConfig(
        **{**GATED, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8},
        attn_layer_indices=[1],
    ),
}
CONFIGS = HYBRIDS | {
    "bloom": BloomConfig(**SIZES),
    "gemma2": Gemma2Config(**GATED, head_dim=8),
    "gpt2": GPT2Config(**GPT2),
    "gpt2scratch": GPT2ScratchConfig(**GPT2),
    "gpt_neox": GPTNeoXConfig(**SIZES, intermediate_size=48),
    "llama": LlamaConfig(**GATED),
    "opt": OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32),
    "roberta": RobertaConfig(**SIZES, intermediate_size=48, pad_token_id=1, is_decoder=True),
}
CONTEXTS = ["the cat sat on the mat and the", "a dog", "the end of the dog was " * 3 + "the"]
CHOICES = [
    [" cat sat", " dog on the mat", " dog and"],
    [" sat on", " sat and sat"],
    [" cat", " mat."],
]


def made(config, dtype=torch.float32):
    """A scorer of a model with weights large enough for the logits to differ visibly."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return CausalScorer(model.to(dtype).eval(), TOKENIZER, batch_tokens=512)


@torch.no_grad()
def scores_of_rows(scorer, contexts, choices):
    """The log-probability of each choice, from the logits of one row at a time."""
    pairs = [(c, choice) for c, own in zip(contexts, choices, strict=True) for choice in own]
    found = []
    for before, after in encode_pairs(TOKENIZER, pairs):
        row = torch.tensor([*before, *after])
        logits = scorer.model(row[None, :-1], use_cache=False).logits[0, -len(after) :]
        log_probs = logits.float().log_softmax(-1)
        found.append(float(log_probs.gather(1, row[-len(after) :, None]).sum()))
    return np.array(found)


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", HYBRIDS)
def test_a_hybrid_is_scored_in_whole_rows(name, dtype, is_named, caplog, monkeypatch):
    """As its configuration says, and as is seen right after a branch where that says nothing."""
    if not is_named:
        monkeypatch.setattr(causal_scorer, "layers_without_mask", lambda config: None)
    scorer = made(HYBRIDS[name], dtype)
    found = scorer.score_choices(CONTEXTS, CHOICES).log_probs
    expected = scores_of_rows(scorer, CONTEXTS, CHOICES)
    # Rows of one batch round otherwise than one row.
    np.testing.assert_allclose(found, expected, atol=1e-3 if dtype == torch.float32 else 0.5)
    reason = "layers of (conv|linear_attention)" if is_named else "other hidden states"
    (record,) = [record for record in caplog.records if record.name.endswith(".scorer")]
    assert re.search(f"found {reason}; rows that begin alike", record.message)


@pytest.mark.parametrize("name", CONFIGS)
def test_words_written_with_a_cache_are_those_of_whole_rows(name):
    scorer = made(CONFIGS[name])
    rows = [TOKENIZER(context)["input_ids"] for context in CONTEXTS]
    written, _ = greedy_continuations(scorer, rows, n_tokens=5, description="test")
    assert written == [written_without_cache(scorer, row, 5) for row in rows]


@torch.no_grad()
def written_without_cache(scorer, row, n_tokens):
    ids = list(row)
    for _ in range(n_tokens):
        logits = scorer.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(int(logits.argmax()))
    return ids[len(row) :]


@pytest.fixture(scope="module")
def longrope():
    """A model that takes other rotations for texts of more than `SHORT_TOKENS`."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, **factors, "partial_rotary_factor": 1.0}
    rope["original_max_position_embeddings"] = SHORT_TOKENS
    config = Phi3Config(
        **GATED, rope_parameters=rope, original_max_position_embeddings=SHORT_TOKENS
    )
    return made(config)


def test_the_batch_does_not_choose_the_rotations_of_longrope(longrope):
    # The endings of the last context are on both sides.
    contexts = [*CONTEXTS, "the cat sat " * 12]
    choices = [*CHOICES, [" on", " the mat and the dog" * 6]]
    expected = scores_of_rows(longrope, contexts, choices)
    lengths = [len(TOKENIZER(context)["input_ids"]) for context in contexts]
    assert min(lengths) < SHORT_TOKENS < max(lengths)
    for planned in (4096, 1):
        longrope.planned_tokens = planned
        found = longrope.score_choices(contexts, choices).log_probs
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_windows_of_any_length_have_their_own_rotations(longrope):
    windows = [np.arange(n) + 5 for n in (SHORT_TOKENS, SHORT_TOKENS + 1, SHORT_TOKENS + 2, 60)]
    found = {}
    for planned in (4096, 1):
        longrope.planned_tokens = planned
        found[planned] = dict(longrope.score_windows(windows))
    assert list(found[1]) == [3, 2, 1, 0]
    for index in range(len(windows)):
        np.testing.assert_allclose(found[4096][index], found[1][index], atol=1e-4)


def test_a_text_that_grows_long_is_written_with_the_rotations_of_long_ones(longrope):
    longrope.planned_tokens = 4096
    rows = [[5 + i % 200 for i in range(SHORT_TOKENS - n)] for n in range(-1, 5)]
    written, _ = greedy_continuations(longrope, rows, n_tokens=4, description="test")
    assert written == [written_without_cache(longrope, row, 4) for row in rows]
