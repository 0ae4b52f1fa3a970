"""Texts have the token ids of lm-evaluation-harness, whatever a tokenizer adds to them.

The exception is pairs of a tokenizer that ends each text, of which the harness scores the end.
"""

from types import SimpleNamespace

import pytest
from support import evaluation as tiny
from transformers import (
    BloomConfig,
    CodeGenConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    Mistral3Config,
    MptConfig,
)

from modeling_gpt2scratch.evaluation.scoring.encoding import (
    context_length,
    encode_document,
    encode_pairs,
    encode_plain,
    encode_texts,
)
from modeling_gpt2scratch.evaluation.tasks.cbt import ClozeTask
from modeling_gpt2scratch.evaluation.tasks.cbt_questions import ClozeQuestion
from modeling_gpt2scratch.evaluation.tasks.documents import rolling_windows
from modeling_gpt2scratch.evaluation.tasks.lambada import TASKS

TOKENIZERS = {
    "nothing added": tiny.tiny_tokenizer,
    "bos": tiny.bos_tokenizer,
    "bos and eos": tiny.eos_tokenizer,
    "sentencepiece": tiny.sentencepiece_tokenizer,
}
CONTEXT_TOKENS = 32


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def pairs(tokenizer):
    bos = tokenizer.decode(tokenizer.bos_token_id)
    return [
        *[("the cat sat on the", " mat"), ("the end of the dog\n\n", "was"), ("the cat ", "sat")],
        *[("a naïve", " café"), ("", "the mat"), ("", f"{bos}the mat")],
        *[(f"{bos}the dog", " sat"), (f"the {bos} dog", " sat"), ("the dog " * 40, "sat")],
    ]


@pytest.fixture(scope="module")
def harness(tokenizer):
    """The harness, which writes down what it would have the model score."""
    pytest.importorskip("lm_eval", reason="needs the extra `eval`")
    from lm_eval.models.huggingface import HFLM

    class Recorder(HFLM):
        """Its token ids are of interest, not its scores."""

        def _loglikelihood_tokens(self, requests, **options):
            self.recorded = [(list(before), list(after)) for _, before, after in requests]
            return super()._loglikelihood_tokens(requests, **options)

    model = tiny.tiny_llama(tokenizer, CONTEXT_TOKENS)
    return Recorder(pretrained=model, tokenizer=tokenizer, batch_size=64, device="cpu")


def ask(harness, kind, arguments):
    from lm_eval.api.instance import Instance

    requests = [Instance(kind, {}, argument, index) for index, argument in enumerate(arguments)]
    getattr(harness, kind)(requests, disable_tqdm=True)
    return harness.recorded


def ends_texts(tokenizer):
    return encode_texts(tokenizer, [""])[0][1:] == [tokenizer.eos_token_id]


def test_pairs_are_encoded_and_split_as_in_lm_evaluation_harness(tokenizer, pairs, harness):
    expected = ask(harness, "loglikelihood", pairs)
    if ends_texts(tokenizer):
        assert expected[0][0][-1] == expected[0][1][-1] == tokenizer.eos_token_id
        expected = list(encode_pairs(tiny.bos_tokenizer(), pairs))  # equal to the harness's
    assert list(encode_pairs(tokenizer, pairs)) == expected


def test_documents_are_encoded_and_cut_as_in_lm_evaluation_harness(tokenizer, pairs, harness):
    texts = [before + after for before, after in pairs]
    found = [
        window
        for text in texts
        for window in rolling_windows(encode_document(tokenizer, text), CONTEXT_TOKENS)
    ]
    expected = ask(harness, "loglikelihood_rolling", [(text,) for text in texts])
    assert len(found) > len(texts)
    assert [(window[:-n].tolist(), window[-n:].tolist()) for window, n in found] == expected


def test_a_context_of_white_space_is_what_the_tokenizer_adds(harness, tokenizer):
    if tokenizer.bos_token_id in encode_texts(tokenizer, [""])[0]:
        pairs = [("  ", "mat")]
        if ends_texts(tokenizer):
            expected = [([tokenizer.bos_token_id], encode_plain(tokenizer, ["  mat"])[0])]
        else:
            expected = ask(harness, "loglikelihood", pairs)
        assert list(encode_pairs(tokenizer, pairs)) == expected
    else:
        with pytest.raises(ValueError, match="context with a token, found '  '"):
            list(encode_pairs(tokenizer, [("  ", "mat")]))


def test_an_end_of_the_text_is_no_part_of_a_pair(tokenizer, pairs):
    eos = tokenizer.eos_token_id
    for before, after in encode_pairs(tokenizer, pairs):
        assert eos not in (before[-1], after[-1]) or before == [tokenizer.bos_token_id]
    plain = encode_plain(tokenizer, ["the cat", "the cat sat"])
    ((before, after),) = encode_pairs(tokenizer, [("the cat", " sat")])
    n_added = len(before) - len(plain[0])
    assert (before[n_added:], before[n_added:] + after) == tuple(plain)


def test_the_protocol_with_a_beginning_token_has_one_of_them(tokenizer):
    task = TASKS["lambada:bos"](["the cat sat on the mat", "on the mat"])
    for before, after in encode_pairs(tokenizer, task.pairs(tokenizer)):
        assert before[0] == tokenizer.bos_token_id
        assert tokenizer.bos_token_id not in [*before[1:], *after]


def test_words_of_the_cloze_test_are_counted_without_what_is_added(tokenizer):
    question = ClozeQuestion(("the cat",), "the XXXXX sat", ("dog", "mat"), 0)
    scorer = SimpleNamespace(tokenizer=tokenizer)
    details = ClozeTask([question]).result(scorer, [0], {}, responses=[]).details
    (word,) = encode_plain(tokenizer, [" dog"])
    name = {1: "1", 2: "2"}.get(len(word), "3_or_more")
    assert details[f"n_answers_of_{name}_tokens"] == 1


def test_a_tokenizer_without_a_beginning_or_end_has_no_documents():
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    assert encode_texts(tokenizer, ["the cat"]) == encode_plain(tokenizer, ["the cat"])
    with pytest.raises(ValueError, match="a tokenizer with a bos or eos token, found none"):
        encode_document(tokenizer, "the cat")


@pytest.mark.parametrize("n_tokenizer", [None, 77])
@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(n_positions=48),
        LlamaConfig(max_position_embeddings=64),
        CodeGenConfig(n_positions=80, n_ctx=96),
        Mistral3Config(text_config={"model_type": "mistral", "max_position_embeddings": 128}),
        *(BloomConfig(), MptConfig(max_seq_len=64), MambaConfig()),
    ],
    ids=lambda config: config.model_type,
)
def test_the_context_is_as_long_as_in_lm_evaluation_harness(config, n_tokenizer):
    utils = pytest.importorskip("lm_eval.models.utils", reason="needs the extra `eval`")
    tokenizer = tiny.tiny_tokenizer()
    if n_tokenizer is not None:
        tokenizer.model_max_length = n_tokenizer
    found = context_length(config, tokenizer)
    assert found == utils.resolve_max_length(config, tokenizer)
    if config.model_type in ("bloom", "mpt", "mamba"):
        assert found == (n_tokenizer or 2048)
