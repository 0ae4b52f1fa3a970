"""Continuations that share a context have the scores of rows computed whole, for less work."""

import copy
import logging

import numpy as np
import pytest
import torch
from support import evaluation as tiny
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GraniteConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
)

from modeling_gpt2scratch import GPT2ScratchConfig
from modeling_gpt2scratch.evaluation.scoring import scorer as causal_scorer
from modeling_gpt2scratch.evaluation.scoring.causal_model import PROBE_TOKENS
from modeling_gpt2scratch.evaluation.scoring.encoding import encode_pairs
from modeling_gpt2scratch.evaluation.scoring.greedy import greedy_continuations
from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
ROTARY = SIZES | {"intermediate_size": 32, "num_key_value_heads": 1, "initializer_range": 0.3}
CONFIGS = {
    "gpt2scratch": lambda n: GPT2ScratchConfig(
        vocab_size=n,
        n_positions=128,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "llama": lambda n: LlamaConfig(vocab_size=n, max_position_embeddings=128, **ROTARY),
    "sliding window": lambda n: MistralConfig(
        vocab_size=n, max_position_embeddings=128, sliding_window=12, **ROTARY
    ),
    "local attention": lambda n: GPTNeoConfig(
        vocab_size=n,
        max_position_embeddings=128,
        attention_types=[[["global", "local"], 1]],
        window_size=24,
        initializer_range=0.3,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "alibi": lambda n: BloomConfig(
        vocab_size=n, max_position_embeddings=128, initializer_range=0.3, **SIZES
    ),
}


SHORT = ROTARY | {"max_position_embeddings": 128}
OWN_LOGITS = {
    "capped": lambda n: Gemma2Config(
        vocab_size=n, final_logit_softcapping=1.0, sliding_window=12, head_dim=8, **SHORT
    ),
    "divided": lambda n: GraniteConfig(vocab_size=n, logits_scaling=3.0, **SHORT),
    "no base model": lambda n: Llama4TextConfig(
        vocab_size=n,
        attention_chunk_size=12,
        num_local_experts=2,
        intermediate_size_mlp=32,
        head_dim=8,
        **SHORT,
    ),
}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny.tiny_gpt2(tokenizer, n_positions=128)


@pytest.fixture(scope="module")
def examples():
    """Contexts of 2 to 150 words, and 1 to 10 continuations of each."""
    random = np.random.default_rng(0)
    words = ("the", "cat", "sat", "on", "mat", "dog", "naïve", "end.", "“a”")

    def text(size):
        return " ".join(random.choice(words, size=size))

    contexts = [text(size) for size in random.integers(2, 150, size=12)]
    choices = [
        [" " + text(size) for size in random.integers(1, 9, size=i % 10 + 1)] for i in range(12)
    ]
    return contexts, choices


def expected_scores(scorer, contexts, choices):
    """Log-probability and greedy flag of each choice, from one whole row at a time."""
    limit = scorer.context_tokens + 1
    found = []
    for context, own in zip(contexts, choices, strict=True):
        pairs = list(encode_pairs(scorer.tokenizer, [(context, choice) for choice in own]))
        n_dropped = max(0, max(len(before) + len(after) for before, after in pairs) - limit)
        for before, after in pairs:
            row = torch.tensor([*before, *after][n_dropped:])
            with torch.no_grad():
                logits = scorer.model(row[None, :-1]).logits[0, -len(after) :]
            nats = torch.nn.functional.cross_entropy(logits, row[-len(after) :], reduction="sum")
            is_greedy = bool((logits.argmax(-1) == row[-len(after) :]).all())
            found.append((-float(nats), is_greedy, n_dropped > 0))
    return [np.array(column) for column in zip(*found, strict=True)]


def assert_scores_are_those_of_whole_rows(scorer, examples):
    scores = scorer.score_choices(*examples)
    log_probs, is_greedy, is_truncated = expected_scores(scorer, *examples)
    np.testing.assert_allclose(scores.log_probs, log_probs, atol=1e-4)
    assert (scores.is_greedy == is_greedy).all()
    assert (scores.is_truncated == is_truncated).all()
    return scores


def assert_words_are_those_of_whole_rows(scorer, contexts):
    """What is written after a context is the argmax of the model's own logits, pass by pass."""
    rows = [scorer.tokenizer(context)["input_ids"][:100] for context in contexts]
    written, _ = greedy_continuations(scorer, rows, n_tokens=3, description="test")
    for row, ids in zip(rows, written, strict=True):
        with torch.no_grad():
            logits = scorer.model(torch.tensor([[*row, *ids]])).logits[0, len(row) - 1 : -1]
        assert logits.argmax(-1).tolist() == ids


def n_computed_tokens(scorer, call):
    """Input tokens of all forward passes of `call`."""
    counts = []
    hook = scorer.model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: counts.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    call()
    hook.remove()
    return sum(counts)


def n_distinct_beginnings(scorer, contexts, choices):
    """The fewest tokens that can be computed: of those that rows have in common one."""
    pairs = [(c, choice) for c, own in zip(contexts, choices, strict=True) for choice in own]
    rows = [(*before, *after[:-1]) for before, after in encode_pairs(scorer.tokenizer, pairs)]
    return len({row[:end] for row in rows for end in range(1, len(row) + 1)})


@pytest.mark.parametrize("batch_tokens", [100, "auto"])
def test_choices_score_as_whole_rows_in_batches_of_any_size(
    model, tokenizer, examples, batch_tokens
):
    scorer = CausalScorer(model, tokenizer, batch_tokens=batch_tokens)
    scores = assert_scores_are_those_of_whole_rows(scorer, examples)
    assert 0 < scores.is_truncated.sum() < len(scores.is_truncated)


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        *((name, "eager") for name in CONFIGS),
        *((name, "sdpa") for name in ("gpt2scratch", "llama", "sliding window")),
    ],
)
def test_other_architectures_score_as_whole_rows(tokenizer, examples, name, attention, caplog):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        CONFIGS[name](len(tokenizer)), attn_implementation=attention
    )
    scorer = CausalScorer(model, tokenizer, batch_tokens=300)
    assert_scores_are_those_of_whole_rows(scorer, examples)
    # BLOOM counts positions from its mask, and takes none of (B, 1, T, T).
    assert scorer._can_join() == (name != "alibi")
    assert len(caplog.records) == (name == "alibi")


def test_a_tree_is_no_longer_than_the_window_of_attention(tokenizer, monkeypatch):
    """Across a longer one a layer would look further back than it does in a row."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["sliding window"](len(tokenizer)))
    scorer = CausalScorer(model, tokenizer, batch_tokens=300)
    sizes = []
    states_of = scorer._states_of
    monkeypatch.setattr(
        scorer,
        "_states_of",
        lambda trees: (
            sizes.extend((len(tree.paths), len(tree)) for tree in trees) or states_of(trees)
        ),
    )
    contexts = ["the cat", "the cat sat on the mat and the dog" * 2]
    assert_scores_are_those_of_whole_rows(scorer, (contexts, [[" sat", " on", " a"]] * 2))
    joined = [n_tokens for n_rows, n_tokens in sizes if n_rows > 1]
    assert joined and max(joined) <= 12 < max(n_tokens for _, n_tokens in sizes)


def test_a_window_that_the_config_does_not_name_is_noticed(
    tokenizer, examples, caplog, monkeypatch
):
    monkeypatch.setattr(causal_scorer, "smallest_window", lambda config: None)
    torch.manual_seed(0)
    config = CONFIGS["sliding window"](len(tokenizer))
    scorer = CausalScorer(AutoModelForCausalLM.from_config(config), tokenizer, batch_tokens=300)
    assert_scores_are_those_of_whole_rows(scorer, examples)
    assert "found other hidden states; rows that begin alike" in caplog.text


@pytest.mark.parametrize("name", OWN_LOGITS)
def test_a_model_that_changes_its_logits_after_the_head_has_the_scores_of_its_own(
    tokenizer, examples, name, caplog
):
    torch.manual_seed(0)
    config = OWN_LOGITS[name](len(tokenizer))
    scorer = CausalScorer(AutoModelForCausalLM.from_config(config), tokenizer, batch_tokens=300)
    (record,) = caplog.records
    found = "no base model beside it" if name == "no base model" else "other logits"
    assert f"found {found}; the model's own logits are taken" in record.message
    assert_scores_are_those_of_whole_rows(scorer, examples)
    assert len(caplog.records) == 1  # so its rows are joined
    assert_words_are_those_of_whole_rows(scorer, examples[0])


def test_a_model_without_attention_is_scored_whole(tokenizer, examples, caplog):
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=len(tokenizer), state_size=4, initializer_range=0.3, **SIZES)
    scorer = CausalScorer(AutoModelForCausalLM.from_config(config), tokenizer, batch_tokens=300)
    assert scorer.context_tokens == 2048
    assert_scores_are_those_of_whole_rows(scorer, examples)
    assert_words_are_those_of_whole_rows(scorer, examples[0])
    (record,) = [record for record in caplog.records if record.name.endswith(".scorer")]
    assert "expected a model that takes a mask" in record.message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_is_found_in_any_precision(model, tokenizer, dtype, caplog):
    CausalScorer(copy.deepcopy(model).to(dtype), tokenizer, batch_tokens=300)
    assert not caplog.records
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tokenizer), final_logit_softcapping=None, head_dim=8, **SHORT
    )
    capped = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():
        largest = float(capped(torch.arange(PROBE_TOKENS)[None]).logits.abs().max())
    capped.config.final_logit_softcapping = 4 * largest  # takes 2 % off the largest
    CausalScorer(capped, tokenizer, batch_tokens=300)
    assert len(caplog.records) == 1


def test_what_rows_have_in_common_is_computed_once(model, tokenizer):
    scorer = CausalScorer(model, tokenizer, batch_tokens=4096)
    context, choices = "the cat sat on the mat and " * 4, ["the dog", "a café", "the end", "on"] * 3
    examples = [context], [choices]
    scorer._can_join()
    n_tokens = n_computed_tokens(scorer, lambda: scorer.score_choices(*examples))
    assert n_tokens == n_distinct_beginnings(scorer, *examples)
    # Contexts of their own, one by one, begin alike too.
    pairs = [(context, choice) for choice in choices]
    assert n_tokens == n_computed_tokens(scorer, lambda: scorer.score_continuations(pairs))


def test_words_of_one_token_need_no_more_than_the_context(model, tokenizer):
    scorer = CausalScorer(model, tokenizer, batch_tokens=4096)
    contexts, choices = ["the cat sat" * 8, "a dog" + "the cat sat" * 9], list(".,!")
    examples = contexts, [choices, choices]
    assert_scores_are_those_of_whole_rows(scorer, examples)
    n_tokens = n_computed_tokens(scorer, lambda: scorer.score_choices(*examples))
    # One batch, the shorter context padded.
    assert n_tokens == 2 * len(tokenizer(contexts[1])["input_ids"])


def test_a_model_that_ignores_the_mask_is_scored_whole_after_one_warning(
    model, tokenizer, examples, caplog
):
    class Forgetful(GPT2LMHeadModel):
        """Its base model takes a mask, and does not look at it."""

        def __init__(self, config):
            super().__init__(config)
            self.transformer.register_forward_pre_hook(
                lambda _, args, kwargs: (args, kwargs | {"attention_mask": None}),
                with_kwargs=True,
            )

    forgetful = Forgetful(model.config)
    forgetful.load_state_dict(model.state_dict())
    scorer = CausalScorer(forgetful, tokenizer, batch_tokens=300)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert_scores_are_those_of_whole_rows(scorer, examples)
    (record,) = caplog.records
    assert "Forgetful: expected a model that takes a mask of (B, 1, T, T)" in record.message


@pytest.mark.parametrize("limit", [150])
def test_batches_are_halved_until_they_fit_the_memory(
    model, tokenizer, examples, limit, monkeypatch, caplog
):
    scorer = CausalScorer(model, tokenizer, batch_tokens=4096)
    hidden_states = scorer._hidden_states

    def small_device(input_ids, **inputs):
        if input_ids.numel() > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        return hidden_states(input_ids, **inputs)

    monkeypatch.setattr(scorer, "_hidden_states", small_device)
    assert_scores_are_those_of_whole_rows(scorer, examples)
    assert limit / 2 < scorer.batch_tokens <= max(256, limit)
    assert f"forward passes have {scorer.batch_tokens} tokens now" in caplog.text


def test_a_row_that_does_not_fit_the_memory_alone_is_an_error(
    model, tokenizer, examples, monkeypatch
):
    scorer = CausalScorer(model, tokenizer, batch_tokens=4096)

    def full_device(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(scorer, "_hidden_states", full_device)
    with pytest.raises(torch.OutOfMemoryError):
        scorer.score_continuations([("the cat", " sat")])
