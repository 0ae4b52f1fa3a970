import json
import math

import pytest
from support import evaluation as tiny

from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer
from modeling_gpt2scratch.evaluation.tasks.local_text import LocalTextTask
from modeling_gpt2scratch.evaluation.tasks.samples import Selection

DOCUMENTS = ["the cat sat\n\non the mat", "a naïve café"]


@pytest.fixture
def files(tmp_path):
    """The same two documents in both formats."""
    text, lines = tmp_path / "mine.txt", tmp_path / "mine.jsonl"
    text.write_text("<|endoftext|>".join([*DOCUMENTS, "\n"]), encoding="utf-8", newline="")
    lines.write_text("".join(json.dumps({"text": d}) + "\n" for d in DOCUMENTS))
    return str(text), str(lines)


def test_text_and_jsonl_are_the_same_documents(files):
    from_text, from_lines = (LocalTextTask.from_source(file, limit=None) for file in files)
    assert from_text == from_lines
    assert [document.text for document in from_text.documents] == DOCUMENTS
    assert [document.n_words for document in from_text.documents] == [6, 3]
    assert [document.n_bytes for document in from_text.documents] == [23, 14]
    config = Selection(place=files[0], limit=1)
    assert LocalTextTask.load(config).documents == from_text.documents[:1]


def test_each_document_begins_anew(files):
    tokenizer = tiny.tiny_tokenizer()
    scorer = CausalScorer(tiny.tiny_gpt2(tokenizer), tokenizer, batch_tokens=64)
    nats = [
        float(tiny.naive_nats(scorer.model, [0, *tokenizer(d)["input_ids"]]).sum())
        for d in DOCUMENTS
    ]
    result = LocalTextTask.from_source(files[0], limit=None).evaluate(scorer)
    assert result.samples["bits_per_byte"] == pytest.approx(nats, rel=1e-5)
    value = {name: estimate.value for name, estimate in result.estimates.items()}
    assert value["word_perplexity"] == pytest.approx(math.exp(sum(nats) / 9), rel=1e-4)
    assert value["bits_per_byte"] == pytest.approx(sum(nats) / math.log(2) / 37, rel=1e-5)


def test_a_file_without_text_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n<|endoftext|>\n")
    with pytest.raises(ValueError, match="expected at least one document with text, found none"):
        LocalTextTask.from_source(str(tmp_path / "empty.txt"), limit=None)
    (tmp_path / "bad.jsonl").write_text('{"content": "a"}\n')
    with pytest.raises(ValueError, match="expected an object with a str `text`"):
        LocalTextTask.from_source(str(tmp_path / "bad.jsonl"), limit=None)
