import json
import math
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from support import evaluation as tiny
from support.paths import SHARED_DATA
from transformers import PreTrainedTokenizerFast

from modeling_gpt2scratch.data.sources.local_files import read_documents
from modeling_gpt2scratch.data.tokens.encoder import DocumentEncoder
from modeling_gpt2scratch.data.tokens.tokenizer import tokenizer_spec
from modeling_gpt2scratch.evaluation.scoring.encoding import encode_document
from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer
from modeling_gpt2scratch.evaluation.tasks import samples
from modeling_gpt2scratch.evaluation.tasks.local_text import LocalTextTask
from modeling_gpt2scratch.evaluation.tasks.samples import Selection

CASES = SHARED_DATA / "cases"
DOCUMENTS = ["the cat sat\n\non the mat", "a naïve café"]


@pytest.fixture
def files(tmp_path):
    """The same two documents in both formats."""
    text, lines = tmp_path / "mine.txt", tmp_path / "mine.jsonl"
    text.write_text("<|endoftext|>".join([*DOCUMENTS, "\n"]), encoding="utf-8", newline="")
    lines.write_text("".join(json.dumps({"text": d}) + "\n" for d in DOCUMENTS))
    return str(text), str(lines)


def test_a_text_of_which_the_tokenizer_knows_nothing_is_refused(tmp_path):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({"A": 0, "C": 1, "<end>": 2}, []))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    scorer = CausalScorer(tiny.tiny_gpt2(fast, n_positions=16), fast, batch_tokens=60)
    path = tmp_path / "own.txt"
    path.write_text("ACCA<|endoftext|>so it is")
    task = LocalTextTask.load(Selection(place=str(path)))
    with pytest.raises(ValueError, match="found no token of it in document 1: 'so it is'"):
        task.evaluate(scorer)


def test_text_and_jsonl_are_the_same_documents(files):
    from_text, from_lines = (LocalTextTask.load(Selection(place=file)) for file in files)
    assert from_text == from_lines
    assert [document.text for document in from_text.documents] == DOCUMENTS
    assert [document.n_words for document in from_text.documents] == [6, 3]
    assert [document.n_bytes for document in from_text.documents] == [23, 14]
    config = Selection(place=files[0], limit=1)
    assert LocalTextTask.load(config).documents == from_text.documents[:1]


def test_a_mark_that_is_a_letter_of_one_document_makes_other_data(tmp_path):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    whole.write_text(json.dumps({"text": "A<|endoftext|>B"}) + "\n")
    parts.write_text("".join(json.dumps({"text": text}) + "\n" for text in "AB"))
    digests = {LocalTextTask.load(Selection(place=str(path))).sha256 for path in (whole, parts)}
    assert len(digests) == 2


def test_blank_lines_and_a_directory(files, tmp_path):
    lines = Path(files[1])
    lines.write_text(lines.read_text().replace("\n", "\n\n") + " \n")
    assert len(LocalTextTask.load(Selection(place=str(lines))).documents) == 2
    with pytest.raises(ValueError, match="found a directory; name the file"):
        LocalTextTask.load(Selection(place=str(tmp_path)))


def test_a_line_that_would_fill_the_memory_is_named(files, monkeypatch):
    monkeypatch.setattr(samples, "MAX_LINE_BYTES", 30)
    with pytest.raises(
        ValueError, match=r"mine\.jsonl, line 1: expected a line of at most 30 bytes"
    ):
        LocalTextTask.load(Selection(place=files[1]))


def test_each_document_begins_anew(files):
    tokenizer = tiny.tiny_tokenizer()
    scorer = CausalScorer(tiny.tiny_gpt2(tokenizer), tokenizer, batch_tokens=64)
    nats = [
        float(tiny.naive_nats(scorer.model, [0, *tokenizer(d)["input_ids"]]).sum())
        for d in DOCUMENTS
    ]
    result = LocalTextTask.load(Selection(place=files[0])).evaluate(scorer)
    assert result.samples["bits_per_byte"] == pytest.approx(nats, rel=1e-5)
    value = {name: estimate.value for name, estimate in result.estimates.items()}
    assert value["word_perplexity"] == pytest.approx(math.exp(sum(nats) / 9), rel=1e-4)
    assert value["bits_per_byte"] == pytest.approx(sum(nats) / math.log(2) / 37, rel=1e-5)


def case(name):
    """A small input that went wrong."""
    path = CASES / name
    if not path.is_file():
        pytest.skip(f"needs {path}")
    return path


@pytest.mark.parametrize(
    "content",
    [
        "one<|endoftext|>two",
        "\ufeffof Windows\r\nwith its line ends\r\n<|endoftext|>\n\n next \t\n",
        "<|endoftext|><|endoftext|> alone<|endoftext|>",
    ],
)
def test_a_text_file_has_the_documents_of_the_preparation(tmp_path, content):
    path = tmp_path / "mine.txt"
    path.write_text(content, encoding="utf-8", newline="")
    task = LocalTextTask.load(Selection(place=str(path)))
    assert [d.text for d in task.documents] == [text for _, text in read_documents(path)]


@pytest.mark.parametrize("tokenizer", [tiny.tiny_tokenizer, tiny.eos_tokenizer])
@pytest.mark.parametrize(
    "text", ["a cat<|endoftext|>the mat", "<|endoftext|>the cat", "<|endoftext|>" * 3, "naïve"]
)
def test_a_document_has_the_ids_of_the_preparation(tmp_path, text, tokenizer):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"text": text}))
    tokenizer = tokenizer()
    encoder = DocumentEncoder(tokenizer_spec("tiny", tokenizer), tokenizer.eos_token_id)
    expected, _ = encoder.encode([text])
    scored = []

    class Scorer(CausalScorer):
        """Keeps what it is asked for."""

        def score_windows(self, windows, **options):
            scored.extend(np.concatenate([windows[0], *(w[1:] for w in windows[1:])]).tolist())
            return super().score_windows(windows, **options)

    scorer = Scorer(tiny.tiny_gpt2(tokenizer, n_positions=64), tokenizer, batch_tokens=64)
    LocalTextTask.load(Selection(place=str(path))).evaluate(scorer)
    assert scored == [tokenizer.bos_token_id, *expected[1:].tolist()]


def test_lm_evaluation_harness_alone_makes_a_token_of_a_name_in_the_text():
    tokenizer = tiny.tiny_tokenizer()
    end = tokenizer.eos_token_id
    assert encode_document(tokenizer, "a<|endoftext|>b").count(end) == 2
    options = LocalTextTask.encoding
    assert encode_document(tokenizer, "a<|endoftext|>b", options=options).count(end) == 1


def test_half_a_surrogate_pair_is_mended_as_in_the_preparation():
    path = case("lone_surrogate/surr.jsonl")
    tokenizer = tiny.tiny_tokenizer()
    scorer = CausalScorer(tiny.tiny_gpt2(tokenizer), tokenizer, batch_tokens=64)
    task = LocalTextTask.load(Selection(place=str(path)))
    assert [d.text for d in task.documents] == [text for _, text in read_documents(path)]
    assert "\ufffd" in task.documents[0].text
    assert task.evaluate(scorer).n_samples == 2


def test_a_column_that_nobody_reads_may_hold_any_integer():
    path = case("big_integer/bigint.jsonl")
    documents = LocalTextTask.load(Selection(place=str(path))).documents
    assert [d.text for d in documents] == [text for _, text in read_documents(path)]


def test_text_without_spaces_has_an_infinite_perplexity_per_word_and_all_the_rest():
    tokenizer = tiny.tiny_tokenizer()
    scorer = CausalScorer(tiny.tiny_gpt2(tokenizer), tokenizer, batch_tokens=64)
    task = LocalTextTask.load(Selection(place=str(case("japanese_text/cjk.jsonl"))))
    result = task.evaluate(scorer)
    nats = result.samples["bits_per_byte"].sum()
    n_words = sum(document.n_words for document in task.documents)
    word = result.estimates["word_perplexity"]
    assert (word.value, word.stderr) == (math.inf, None)
    assert word.nats == pytest.approx(nats / n_words) and word.nats > 709
    n_bytes = sum(document.n_bytes for document in task.documents)
    value = result.estimates["byte_perplexity"].value
    assert value == pytest.approx(math.exp(nats / n_bytes))
    assert result.estimates["bits_per_byte"].value == pytest.approx(math.log2(value))


def test_a_file_without_text_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n<|endoftext|>\n")
    with pytest.raises(ValueError, match="expected at least one document with text, found none"):
        LocalTextTask.load(Selection(place=str(tmp_path / "empty.txt")))
    (tmp_path / "bad.jsonl").write_text('{"content": "a"}\n')
    with pytest.raises(ValueError, match="expected an object with a str `text`"):
        LocalTextTask.load(Selection(place=str(tmp_path / "bad.jsonl")))
