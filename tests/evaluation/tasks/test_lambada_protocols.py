"""The protocols of LAMBADA besides the harness's own."""

import numpy as np
import pytest
import torch
from support import evaluation as tiny

from modeling_gpt2scratch.evaluation.scoring import greedy as greedy_words
from modeling_gpt2scratch.evaluation.scoring.greedy import greedy_continuations
from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer
from modeling_gpt2scratch.evaluation.scoring.written_words import (
    STOP_WORDS,
    begins_with_stop_word,
    begins_with_words,
    stop_word_ids,
)
from modeling_gpt2scratch.evaluation.tasks import lambada
from modeling_gpt2scratch.evaluation.tasks.lambada import (
    STANDARD,
    TASKS,
    read_texts,
    split_last_word,
    straighten_quotes,
)

WORDS = ("the", "cat", "sat", "on", "mat", "and", "dog", "end", "of", "naïve")


@pytest.fixture(scope="module")
def texts():
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, size=size)) for size in random.integers(4, 8, size=24)]
    return [*texts, 'a "cat', "the cat\nsat", "the cat and The"]


@pytest.fixture(scope="module")
def scorer(texts):
    """A model that has learnt half of the passages and a full stop after them."""
    tokenizer = tiny.tiny_tokenizer()
    return learnt(tiny.tiny_gpt2(tokenizer, n_positions=64), tokenizer, texts)


def learnt(model, tokenizer, texts):
    """A scorer of the model after it has learnt half of the texts and a full stop."""
    rows = [tokenizer(f"{text}.")["input_ids"] for text in texts[::2]]
    longest = max(map(len, rows))
    input_ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    labels = input_ids.masked_fill(input_ids == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(input_ids=input_ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return CausalScorer(model, tokenizer, batch_tokens=100)


def written_by_transformers(scorer, text, n_tokens, suppressed=None):
    """What `generate` makes of one text, unbatched."""
    input_ids = torch.tensor([scorer.tokenizer(text)["input_ids"]])
    output = scorer.model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        do_sample=False,
        max_new_tokens=n_tokens,
        min_new_tokens=n_tokens,
        begin_suppress_tokens=suppressed,
        pad_token_id=0,
    )
    return output[0, input_ids.shape[1] :].tolist()


def naive_results(scorer, contexts, words):
    """Greedy decisions and nats of the words, from a row's whole logits each."""
    greedy, nats = [], []
    for context_ids, word_ids in zip(contexts, words, strict=True):
        row = [*context_ids, *word_ids]
        with torch.no_grad():
            logits = scorer.model(torch.tensor([row])).logits[0, len(context_ids) - 1 : -1]
        greedy.append(logits.argmax(-1).tolist() == word_ids)
        picked = logits.log_softmax(-1).gather(1, torch.tensor(word_ids)[:, None])
        nats.append(-float(picked.sum()))
    return greedy, nats


def test_both_files_have_the_same_protocols():
    assert list(TASKS) == [
        f"{name}{protocol}"
        for name in ("lambada", "lambada_standard")
        for protocol in (
            *("", ":bos", ":openai-preprocessing", ":last-token", ":stopword-filter", ":generate"),
        )
    ]
    assert TASKS["lambada:bos"].protocol == "lambada_openai:bos"
    assert TASKS["lambada_standard:bos"].protocol == "lambada_standard:bos"
    assert TASKS["lambada_standard:bos"].data is STANDARD


def test_bos_stands_before_the_whole_passage(scorer, texts):
    pairs = [split_last_word(text) for text in texts]
    whole = [scorer.tokenizer(text)["input_ids"] for text in texts]
    contexts = [scorer.tokenizer(context)["input_ids"] for context, _ in pairs]
    words = [ids[len(context) :] for ids, context in zip(whole, contexts, strict=True)]
    bos = scorer.tokenizer.bos_token_id
    greedy, nats = naive_results(scorer, [[bos, *context] for context in contexts], words)
    result = TASKS["lambada:bos"](texts).evaluate(scorer)
    assert result.samples["acc"].tolist() == greedy
    np.testing.assert_allclose(result.samples["perplexity"], nats, rtol=1e-4)
    without = TASKS["lambada"](texts).evaluate(scorer)
    assert not np.allclose(without.samples["perplexity"], nats, rtol=1e-2)


def test_openais_preprocessing_straightens_quotes_and_begins_with_a_line_feed(scorer):
    assert straighten_quotes("“a” ``b'' c  ") == '\n"a" "b" c'
    task = TASKS["lambada:openai-preprocessing"](["the “cat” sat "])
    assert task.pairs(scorer.tokenizer) == [('\nthe "cat"', " sat")]


def test_the_last_token_is_given_all_others(scorer, texts):
    rows = [scorer.tokenizer(text)["input_ids"] for text in texts]
    expected, _ = naive_results(scorer, [row[:-1] for row in rows], [row[-1:] for row in rows])
    result = TASKS["lambada:last-token"](texts).evaluate(scorer)
    assert result.samples["acc"].tolist() == expected
    assert 0 < result.estimates["acc"].value < 1
    assert list(result.estimates) == ["acc"]


def test_what_is_written_is_what_transformers_generates(scorer, texts):
    contexts = [split_last_word(text)[0] for text in texts]
    encoded = scorer.tokenizer(contexts)["input_ids"]
    suppressed = stop_word_ids(scorer.tokenizer)
    for excluded in ([], suppressed):
        written, n_truncated = greedy_continuations(
            scorer, encoded, n_tokens=5, first_excluded=excluded, description="test"
        )
        assert n_truncated == 0
        for text, ids in zip(contexts, written, strict=True):
            # It suppresses the end-of-text token too if it must write so many.
            if 0 not in ids:
                assert ids == written_by_transformers(scorer, text, 5, excluded or None)
    assert sum(0 in ids for ids in written) < len(written) / 2


def test_a_word_must_be_written_and_ended(scorer, texts):
    result = TASKS["lambada:generate"](texts).evaluate(scorer)
    for text, is_right in zip(texts, result.samples["acc"], strict=True):
        context, word = split_last_word(text)
        written = scorer.tokenizer.decode(written_by_transformers(scorer, context, 9))
        after = written[len(word) :]
        is_ended = not after[:1].isalnum() and not (after[:1] in "'-’" and after[1:2].isalnum())
        assert is_right == (written.startswith(word) and is_ended)
    assert 0 < result.estimates["acc"].value < 1


def test_with_the_filter_no_word_begins_with_a_stop_word(scorer, texts):
    filtered = TASKS["lambada:stopword-filter"](texts).evaluate(scorer).samples["acc"]
    plain = TASKS["lambada:generate"](texts).evaluate(scorer).samples["acc"]
    is_stop_word = [text.split(" ")[-1].lower() in STOP_WORDS.split() for text in texts]
    assert filtered.sum() > 0 and plain[is_stop_word].sum() > 0
    assert not filtered[is_stop_word].any()
    # Whoever wrote the right word writes it still.
    assert (filtered >= plain)[np.logical_not(is_stop_word)].all()


def test_a_word_that_begins_as_a_stop_word_does_is_written_with_the_filter(scorer, monkeypatch):
    calls = []
    scripts = iter([[" onto.", " On the dog"], [" dog."]])

    def write(scorer, contexts, *, first_excluded=(), **options):
        calls.append((contexts, first_excluded))
        return [scorer.tokenizer(text)["input_ids"] for text in next(scripts)], 0

    monkeypatch.setattr(lambada, "_write", write)
    excluded = stop_word_ids(scorer.tokenizer)
    assert scorer.tokenizer(" onto.")["input_ids"][0] in excluded
    task = TASKS["lambada:stopword-filter"](["the cat sat onto", "the cat and the dog"])
    assert task.evaluate(scorer).samples["acc"].tolist() == [1, 1]
    contexts = scorer.tokenizer(["the cat sat", "the cat and the"])["input_ids"]
    assert calls == [(contexts, ()), (contexts[1:], excluded)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [(" The", True), (" don's", False), (" of\nit", True), (" tube", False), ("the", False)],
)
def test_a_stop_word_stands_after_a_space_and_ends_there(text, expected):
    assert begins_with_stop_word(text) is expected


def test_stop_words_are_tokens_with_a_space_before_them(scorer):
    found = scorer.tokenizer.batch_decode([[i] for i in stop_word_ids(scorer.tokenizer)])
    assert {" the", " on"} <= set(found)
    assert all(text[0] == " " and text[1:].lower() in STOP_WORDS.split() for text in found)
    assert len(set(STOP_WORDS.split())) == 127


@pytest.fixture(scope="module")
def sentencepiece_scorer(texts):
    """A model like that of `scorer`, its tokenizer like that of Llama 2."""
    tokenizer = tiny.sentencepiece_tokenizer()
    return learnt(tiny.tiny_llama(tokenizer, n_positions=64), tokenizer, texts)


@pytest.mark.parametrize("name", ["generate", "stopword-filter"])
def test_words_keep_their_space_where_decoding_takes_it_off(sentencepiece_scorer, texts, name):
    tokenizer = sentencepiece_scorer.tokenizer
    assert tokenizer.decode(tokenizer("the")["input_ids"][1:]) == "the"
    result = TASKS[f"lambada:{name}"](texts).evaluate(sentencepiece_scorer)
    suppressed = stop_word_ids(tokenizer) if name == "stopword-filter" else None
    for text, is_right in zip(texts, result.samples["acc"], strict=True):
        context, word = split_last_word(text)
        row = tokenizer(context)["input_ids"]
        for excluded in (None, suppressed):
            written = written_by_transformers(sentencepiece_scorer, context, 12, excluded)
            # Decoded whole, the text keeps the space between context and word.
            after = tokenizer.decode(row + written)[len(tokenizer.decode(row)) :]
            if not begins_with_stop_word(after):
                break
        is_expected = begins_with_words(after, word)
        if suppressed:
            is_stop_word = word.strip().lower() in STOP_WORDS.split()
            is_expected = begins_with_words(after.lower(), word.lower()) and not is_stop_word
        assert is_right == is_expected
    assert 0 < result.estimates["acc"].value < 1


def test_stop_words_are_found_where_decoding_takes_their_space_off(sentencepiece_scorer):
    tokenizer = sentencepiece_scorer.tokenizer
    found = {tokenizer.convert_ids_to_tokens(index) for index in stop_word_ids(tokenizer)}
    assert {"▁the", "▁on", "▁and"} <= found
    assert all(token[0] == "▁" and token[1:].lower() in STOP_WORDS.split() for token in found)


def test_nothing_is_written_after_the_end_of_a_text(texts):
    tokenizer = tiny.eos_tokenizer()
    scorer = learnt(tiny.tiny_gpt2(tokenizer, n_positions=64), tokenizer, texts)
    for name in ("generate", "last-token"):
        assert TASKS[f"lambada:{name}"](texts).evaluate(scorer).estimates["acc"].value > 0.3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" sign", True),
        (" sign.", True),
        (" sign\nand", True),
        (" sign-", True),
        (" sign'", True),
        (" signs", False),
        (" sign's", False),
        (" sign-off", False),
        ("sign", False),
        (" a sign", False),
    ],
)
def test_a_word_ends_where_no_letter_follows(text, expected):
    assert begins_with_words(text, " sign") is expected


def test_a_context_that_is_too_long_loses_its_beginning(scorer):
    ids = np.random.default_rng(0).integers(1, 256, size=90).tolist()
    (written,), n_truncated = greedy_continuations(scorer, [ids], n_tokens=3, description="test")
    assert n_truncated == 1
    row = ids[-62:]  # 62 inputs and two written ones fill the 64 positions
    for token in written:
        with torch.no_grad():
            assert token == int(scorer.model(torch.tensor([row])).logits[0, -1].argmax())
        row.append(token)


def test_batches_are_halved_when_memory_runs_out(scorer, monkeypatch, caplog):
    contexts = [[index + 1, 5, 6] for index in range(8)]
    expected, _ = greedy_continuations(scorer, contexts, n_tokens=2, description="test")
    write, sizes = greedy_words._write_batch, []

    def write_if_small(scorer, context_ids, *rest):
        sizes.append(len(context_ids))
        if len(context_ids) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return write(scorer, context_ids, *rest)

    monkeypatch.setattr(greedy_words, "_write_batch", write_if_small)
    monkeypatch.setattr(scorer, "batch_tokens", 40)
    assert greedy_continuations(scorer, contexts, n_tokens=2, description="test") == (expected, 0)
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert "forward passes have 10 tokens now" in caplog.text


def test_logits_that_are_not_numbers_are_no_accuracy(texts):
    tokenizer = tiny.tiny_tokenizer()
    model = tiny.tiny_gpt2(tokenizer, n_positions=64)
    scorer = CausalScorer(model, tokenizer, batch_tokens=100)
    torch.nn.init.constant_(model.transformer.ln_f.bias, torch.nan)
    with pytest.raises(ValueError, match="expected finite logits"):
        TASKS["lambada:generate"](texts).evaluate(scorer)


def test_a_plain_text_file_has_a_passage_on_each_line(tmp_path):
    path = tmp_path / STANDARD.file
    path.write_bytes("the cat sat\na naïve\x85 café\n".encode())
    assert read_texts(str(path), limit=None, data=STANDARD) == ["the cat sat", "a naïve\x85 café"]
    assert read_texts(str(path), limit=1, data=STANDARD) == ["the cat sat"]
    path.write_bytes(b"the cat\n\xff\n")
    with pytest.raises(ValueError, match=r"plain_text\.txt, line 2: expected UTF-8"):
        read_texts(str(path), limit=None, data=STANDARD)
