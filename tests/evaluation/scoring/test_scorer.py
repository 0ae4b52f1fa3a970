import copy
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from support import evaluation as tiny
from transformers import (
    AutoModelForCausalLM,
    GPT2LMHeadModel,
    GraniteConfig,
    RobertaConfig,
)

from modeling_gpt2scratch.evaluation.scoring.batching import PASS_COST, pack_batches
from modeling_gpt2scratch.evaluation.scoring.encoding import encode_pairs
from modeling_gpt2scratch.evaluation.scoring.models import load_scorer, require_fitting
from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer
from modeling_gpt2scratch.evaluation.tasks.task import perplexity_estimate, ratio_estimate
from modeling_gpt2scratch.evaluation.tasks.validation import cut_windows

LOADING = {"device": "cpu", "dtype": "float32", "batch_tokens": "auto", "trust_remote_code": False}
PAIRS = [
    ("the cat sat on the", " mat"),
    ("the", " dog was on the mat"),
    ("a naïve", " café"),
    ("the end of the dog\n\n", "was"),
    ("the cat and the dog ", "sat"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny.tiny_gpt2(tokenizer)


@pytest.fixture(scope="module")
def scorer(model, tokenizer):
    return CausalScorer(model, tokenizer, batch_tokens=64)


def naive_scores(model, tokenizer, context, continuation):
    """Log-probability and greedy flag from the whole logits of one unpadded row."""
    context_ids = tokenizer(context.rstrip())["input_ids"]
    row = tokenizer(context + continuation)["input_ids"][
        -model.config.max_position_embeddings - 1 :
    ]
    n_scored = len(tokenizer(context + continuation)["input_ids"]) - len(context_ids)
    with torch.no_grad():
        logits = model(torch.tensor([row[:-1]])).logits[0, -n_scored:]
    targets = torch.tensor(row[-n_scored:])
    log_probs = logits.log_softmax(-1).gather(1, targets[:, None])
    return float(log_probs.sum()), bool((logits.argmax(-1) == targets).all())


def assert_scores_are_naive(scorer, pairs):
    scores = scorer.score_continuations(pairs)
    expected = [naive_scores(scorer.model, scorer.tokenizer, *pair) for pair in pairs]
    np.testing.assert_allclose(scores.log_probs, [log_prob for log_prob, _ in expected], rtol=1e-5)
    assert scores.is_greedy.tolist() == [greedy for _, greedy in expected]


def test_continuations_score_as_a_loop_over_whole_logits_has_them(scorer):
    assert_scores_are_naive(scorer, PAIRS)


def test_a_model_of_another_architecture_scores_the_same_way(tokenizer):
    llama = tiny.tiny_llama(tokenizer)
    assert_scores_are_naive(CausalScorer(llama, tokenizer, batch_tokens=64), PAIRS)


@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_the_batch_size_does_not_change_the_scores(scorer, batch_tokens):
    other = CausalScorer(scorer.model, scorer.tokenizer, batch_tokens=batch_tokens)
    scores, expected = other.score_continuations(PAIRS), scorer.score_continuations(PAIRS)
    np.testing.assert_allclose(scores.log_probs, expected.log_probs, rtol=1e-5)
    assert scores.n_tokens.tolist() == expected.n_tokens.tolist()


def test_a_continuation_is_greedy_only_if_every_token_is_the_argmax(scorer):
    # Of 40 contexts, follow the argmax for two tokens and keep what survives decoding.
    constructed = []
    for n_words in range(1, 41):
        context = " ".join((tiny.CORPUS[2].split() * 3)[n_words - 1 : n_words + 3])
        row = scorer.tokenizer(context)["input_ids"]
        n_context = len(row)
        for _ in range(2):
            with torch.no_grad():
                row.append(int(scorer.model(torch.tensor([row])).logits[0, -1].argmax()))
        greedy = scorer.tokenizer.decode(row[n_context:])
        if next(encode_pairs(scorer.tokenizer, [(context, greedy)]))[1] == row[n_context:]:
            constructed.append((context, greedy))
    assert constructed
    assert scorer.score_continuations(constructed).is_greedy.all()
    one_wrong_token = [(context, greedy + "!") for context, greedy in constructed]
    assert_scores_are_naive(scorer, constructed + one_wrong_token)
    assert not scorer.score_continuations(one_wrong_token).is_greedy.all()


def test_a_space_at_the_end_of_the_context_belongs_to_the_continuation(tokenizer):
    (spaced,) = encode_pairs(tokenizer, [("the cat ", "sat")])
    (plain,) = encode_pairs(tokenizer, [("the cat", " sat")])
    assert spaced == plain
    assert tokenizer.decode(spaced[1]) == " sat"


def test_an_input_longer_than_the_context_loses_its_leftmost_tokens(scorer):
    assert len(scorer.tokenizer("the dog " * 40)["input_ids"]) > scorer.context_tokens + 1
    assert_scores_are_naive(scorer, [("the dog " * 40, "sat"), ("the cat", " sat")])


def test_an_empty_context_is_the_end_of_text_token(tokenizer):
    (pair,) = encode_pairs(tokenizer, [("", "the")])
    assert pair == ([tokenizer.eos_token_id], tokenizer("the")["input_ids"])


def test_no_pairs_give_no_scores(scorer):
    assert scorer.score_continuations([]).log_probs.shape == (0,)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("the cat", ""), "continuation of 1 to 32 tokens, found 0"),
        (("the cat", " mat" * 40), "continuation of 1 to 32 tokens, found"),
        (("  ", "mat"), "context with a token, found '  '"),
    ],
)
def test_a_pair_that_cannot_be_scored_is_rejected(scorer, pair, message):
    with pytest.raises(ValueError, match=message) as caught:
        scorer.score_continuations([pair])
    assert len(str(caught.value)) < 200


def test_a_model_that_changes_its_logits_after_the_head_has_its_own_scores(
    model, tokenizer, caplog
):
    class ScaledLogits(GPT2LMHeadModel):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 0.5
            return output

    scaled = ScaledLogits(model.config)
    assert_scores_are_naive(CausalScorer(scaled, tokenizer, batch_tokens=64), PAIRS)
    (record,) = caplog.records
    assert record.message.startswith("ScaledLogits: expected get_output_embeddings()")


def test_a_fault_in_the_base_model_is_named(model, tokenizer, caplog):
    class Broken(torch.nn.Linear):
        def forward(self, states):
            raise RuntimeError("no kernel for this head")

    broken = copy.deepcopy(model)
    broken.forward = lambda **inputs: model(**inputs)
    broken.lm_head = Broken(*broken.lm_head.weight.T.shape)
    CausalScorer(broken, tokenizer, batch_tokens=64)
    (record,) = caplog.records
    assert "found RuntimeError: no kernel for this head; the model's own" in record.message


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_model_from_a_directory_has_its_own_scores_on_any_number_of_processes(
    tokenizer, tmp_path, is_shared
):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
    config = GraniteConfig(
        vocab_size=len(tokenizer), logits_scaling=3.0, initializer_range=0.3, **sizes, **heads
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    processes = SimpleNamespace(accelerator=Accelerator(cpu=True) if is_shared else None)
    assert_scores_are_naive(load_scorer(str(tmp_path), processes=processes, **LOADING), PAIRS)


def test_a_model_without_output_embeddings_has_the_scores_of_its_logits(model, tokenizer, caplog):
    class Headless(GPT2LMHeadModel):
        def get_output_embeddings(self):
            return None

    assert_scores_are_naive(CausalScorer(Headless(model.config), tokenizer, batch_tokens=64), PAIRS)
    assert "Headless: expected get_output_embeddings()" in caplog.text


def test_only_added_tokens_may_be_more_than_the_model_has(model, tokenizer):
    added = copy.deepcopy(tokenizer)
    added.add_tokens(["<image>"])
    require_fitting(added, model)
    with pytest.raises(ValueError, match="expected token ids below the model's 296"):
        CausalScorer(model, added, batch_tokens=64).score_continuations([("the <image>", " cat")])
    small = tiny.tiny_gpt2(tiny.tiny_tokenizer(n_merges=20))
    with pytest.raises(ValueError, match="at most the model's 277 entries, found 296"):
        require_fitting(tokenizer, small)


def test_a_token_id_without_an_embedding_is_rejected(scorer):
    with pytest.raises(ValueError, match="expected token ids below .* found 70000"):
        list(scorer.score_windows([np.array([1, 2, 70_000])]))


def test_a_model_whose_tokens_see_later_ones_is_rejected(tokenizer):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(
        vocab_size=len(tokenizer), intermediate_size=32, pad_token_id=0, is_decoder=False, **sizes
    )
    config.max_position_embeddings = 64
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="RobertaForCausalLM: expected a model whose tokens see"):
        CausalScorer(AutoModelForCausalLM.from_config(config), tokenizer, batch_tokens=64)
    config.is_decoder = True
    CausalScorer(AutoModelForCausalLM.from_config(config), tokenizer, batch_tokens=64)


def test_weights_that_are_not_numbers_are_rejected(tokenizer):
    broken = tiny.tiny_gpt2(tokenizer)
    scorer = CausalScorer(broken, tokenizer, batch_tokens=64)
    torch.nn.init.constant_(broken.transformer.ln_f.weight, float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        scorer.score_continuations(PAIRS)


def test_a_model_left_in_training_mode_scores_without_dropout(tokenizer):
    model = tiny.tiny_gpt2(tokenizer).train()
    assert_scores_are_naive(CausalScorer(model, tokenizer, batch_tokens=64), PAIRS)


def test_the_nats_of_windows_are_those_of_whole_logits_in_order(scorer, model):
    stream = np.random.default_rng(0).integers(0, 256, size=150)
    windows = cut_windows(stream, 32)
    scored = list(scorer.score_windows(windows))
    assert [index for index, _ in scored] == [0, 1, 2, 3]
    for index, nats in scored:
        np.testing.assert_allclose(
            nats, tiny.naive_nats(model, windows[index]), rtol=1e-4, atol=1e-5
        )


def test_windows_share_one_token_and_drop_the_tail():
    windows = cut_windows(np.arange(10), 4)
    assert [window.tolist() for window in windows] == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]


def test_a_stream_shorter_than_a_window_is_one_shorter_window():
    assert [window.tolist() for window in cut_windows(np.arange(3), 4)] == [[0, 1, 2]]


def test_a_stream_without_a_target_is_rejected():
    with pytest.raises(ValueError, match="at least 2 tokens, found 1"):
        cut_windows(np.arange(1), 4)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
@settings(deadline=None)
def test_batches_hold_each_row_once_and_keep_the_budget(lengths, batch_tokens):
    batches = list(pack_batches(lengths, batch_tokens))
    assert sorted(sum(batches, [])) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[index] for index in batch)
        assert padded <= batch_tokens or len(batch) == 1


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.integers(1, 400))
@settings(deadline=None)
def test_no_other_cut_of_the_sorted_rows_is_cheaper(lengths, batch_tokens):
    def cost(batches):
        return sum(len(batch) * batch[0] + PASS_COST * batch_tokens for batch in batches)

    ordered = sorted(lengths, reverse=True)
    possible = []
    for is_cut in itertools.product([False, True], repeat=len(lengths) - 1):
        bounds = [0, *(place for place, cut in enumerate(is_cut, 1) if cut), len(lengths)]
        batches = [ordered[start:end] for start, end in itertools.pairwise(bounds)]
        if all(len(batch) == 1 or len(batch) * batch[0] <= batch_tokens for batch in batches):
            possible.append(cost(batches))
    found = [[lengths[index] for index in batch] for batch in pack_batches(lengths, batch_tokens)]
    assert cost(found) == pytest.approx(min(possible))


def test_the_standard_error_of_an_accuracy_is_the_binomial_one():
    estimate = ratio_estimate([True, False, False, False], np.ones(4))
    assert estimate.value == 0.25
    assert estimate.stderr == pytest.approx((0.25 * 0.75 / 3) ** 0.5)


def test_one_sample_has_no_standard_error():
    assert ratio_estimate([3.0], [2.0]).stderr is None
    assert perplexity_estimate(ratio_estimate([0.0], [1.0])).value == 1.0


def test_the_standard_error_of_a_ratio_is_close_to_the_bootstrap():
    random = np.random.default_rng(0)
    x = random.uniform(50, 150, size=400)
    y = 0.9 * x + random.normal(0, 10, size=400)
    resampled = random.integers(0, 400, size=(2000, 400))
    bootstrap = (y[resampled].sum(1) / x[resampled].sum(1)).std()
    assert ratio_estimate(y, x).stderr == pytest.approx(bootstrap, rel=0.1)


def test_the_standard_error_of_a_perplexity_is_that_of_its_logarithm_times_its_value():
    mean = ratio_estimate([1.0, 3.0], [1.0, 1.0])
    assert mean.stderr == pytest.approx(1.0)
    assert perplexity_estimate(mean).stderr == pytest.approx(np.e**2)


def test_continuations_score_as_in_lm_evaluation_harness(scorer):
    pytest.importorskip("lm_eval", reason="needs the extra `eval`")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=scorer.model, tokenizer=scorer.tokenizer, batch_size=2, device="cpu")
    pairs = [*PAIRS, ("", "the mat"), ("the dog " * 40, "sat")]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    expected = harness.loglikelihood(requests, disable_tqdm=True)
    scores = scorer.score_continuations(pairs)
    np.testing.assert_allclose(scores.log_probs, [log_prob for log_prob, _ in expected], rtol=1e-5)
    assert scores.is_greedy.tolist() == [greedy for _, greedy in expected]
