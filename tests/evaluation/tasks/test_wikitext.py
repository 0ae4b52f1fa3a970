"""WikiText in two protocols, and the other corpora of the GPT-2 paper."""

import dataclasses
import hashlib
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import evaluation as tiny
from support.paths import SHARED_DATA

from modeling_gpt2scratch.evaluation.results.differences import differences_of
from modeling_gpt2scratch.evaluation.results.measurements import Measurement, ModelMeasurements
from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer
from modeling_gpt2scratch.evaluation.tasks import wikitext
from modeling_gpt2scratch.evaluation.tasks.documents import Document, DocumentsTask, rolling_windows
from modeling_gpt2scratch.evaluation.tasks.samples import Selection
from modeling_gpt2scratch.evaluation.tasks.wikitext import (
    DisjointTask,
    StrideTask,
    WikitextTask,
    detokenize,
    join_lines,
    split_pages,
)

RAW = SHARED_DATA / "wikitext2_raw" / "wiki.test.raw"
PAGE = ' = The cat = \n \n The cat \'s " mat " , 2 @,@ 000 ( or N ) @-@ old . \n \n'
FILE = " \n" + (PAGE + " = = On it = = \n \n the dog sat ; \n") * 3


@pytest.fixture(scope="module")
def scorer():
    tokenizer = tiny.tiny_tokenizer()
    return CausalScorer(tiny.tiny_gpt2(tokenizer), tokenizer, batch_tokens=96)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "wiki.test.raw"
    path.write_text(FILE, encoding="utf-8", newline="")
    return Selection(place=str(path))


def test_a_page_begins_with_a_title_and_keeps_its_sections():
    pages = split_pages(FILE.split("\n"))
    assert len(pages) == 3
    assert pages[0] == PAGE + " = = On it = = \n \n the dog sat ; "
    assert "\n".join([" ", *pages]) == FILE


def test_a_page_is_attached_as_in_print():
    assert detokenize(PAGE) == ' = The cat =\n\nThe cat\'s "mat", 2,000 (or N)-old.\n\n'
    assert detokenize("= = = = A , N cats ; s ' [ b ] = =\n") == "==== A, 1 cats; s' [b] ==\n"


def test_windows_are_those_of_the_harness():
    utils = pytest.importorskip("lm_eval.utils", reason="needs the extra `eval`")
    for n_tokens in (0, 1, 4, 5, 8, 9, 31):
        for context_tokens in (1, 4, 8):
            ids = list(range(100, 100 + n_tokens))
            expected = [
                ([*inputs, targets[-1]], len(targets))
                for inputs, targets in utils.get_rolling_token_windows(
                    ids, prefix_token=0, max_seq_len=context_tokens, context_len=1
                )
            ]
            found = rolling_windows([0, *ids], context_tokens)
            assert [(window.tolist(), n) for window, n in found] == expected


@given(st.integers(0, 60), st.integers(1, 12))
def test_windows_score_each_token_once(n_tokens, context_tokens):
    scored = [
        id_
        for window, n in rolling_windows(range(n_tokens + 1), context_tokens)
        for id_ in window[-n:]
    ]
    assert scored == list(range(1, n_tokens + 1))


def test_nats_are_divided_by_the_words_of_the_page_as_it_was(config, scorer):
    result = WikitextTask.load(config).evaluate(scorer)
    pages = split_pages(FILE.split("\n"))
    nats = []
    for page in pages:
        ids = [0, *scorer.tokenizer(detokenize(page))["input_ids"]]
        page_nats = []
        for start in range(0, len(ids) - 1, 32):
            stop = min(start + 32, len(ids) - 1)
            row = ids[max(0, stop - 32) : stop + 1]
            page_nats += tiny.naive_nats(scorer.model, row)[start - stop :].tolist()
        assert len(page_nats) == len(ids) - 1
        nats.append(sum(page_nats))
    n_words = sum(len(re.split(r"\s+", page)) for page in pages)
    n_bytes = sum(len(page.encode()) for page in pages)
    np.testing.assert_allclose(result.samples["word_perplexity"], nats, rtol=1e-5)
    value = {name: estimate.value for name, estimate in result.estimates.items()}
    assert value["word_perplexity"] == pytest.approx(math.exp(sum(nats) / n_words), rel=1e-4)
    assert value["byte_perplexity"] == pytest.approx(math.exp(sum(nats) / n_bytes), rel=1e-4)
    assert value["bits_per_byte"] == pytest.approx(math.log2(value["byte_perplexity"]))
    assert result.n_samples == 3 and result.estimates["word_perplexity"].stderr is not None
    assert result.details["n_target_words"] == n_words


def test_the_limit_takes_the_first_pages(config, scorer):
    config = dataclasses.replace(config, limit=2)
    task = WikitextTask.load(config)
    assert task.evaluate(scorer).n_samples == 2
    assert task.data_status == "2 of 62 samples, unchecked"


@pytest.mark.parametrize("task_class", [StrideTask, DisjointTask])
def test_a_stride_gives_the_number_of_transformers_guide(config, scorer, task_class):
    task = task_class.load(config)
    input_ids = scorer.tokenizer(task.text, return_tensors="pt")["input_ids"]
    stride = 32 // task_class.strides_of_context
    total, n_tokens, scored_end = 0.0, 0, 0
    for start in range(0, input_ids.shape[1], stride):
        end = min(start + 32, input_ids.shape[1])
        window = input_ids[:, start:end]
        labels = window.clone()
        labels[:, : scored_end - end or None] = -100
        if scored_end == 0:
            labels = window.clone()
        n_loss = int((labels != -100).sum()) - 1
        with torch.no_grad():
            loss = float(scorer.model(window, labels=labels).loss)
        total += loss * n_loss if n_loss else 0.0
        n_tokens += n_loss
        scored_end = end
        if end == input_ids.shape[1]:
            break
    result = task.evaluate(scorer)
    assert result.details["n_target_tokens"] == n_tokens
    assert result.details["stride_tokens"] == stride
    assert result.estimates["token_perplexity"].value == pytest.approx(
        math.exp(total / n_tokens), rel=1e-4
    )
    config = dataclasses.replace(config, limit=2)
    assert task_class.load(config).evaluate(scorer).n_samples == 2


@pytest.mark.parametrize("task_class", [StrideTask, DisjointTask])
def test_a_window_of_one_token_has_nothing_to_predict(config, scorer, task_class):
    task = task_class.load(config)
    ids = scorer.tokenizer(task.text)["input_ids"][:33]  # one more than the context
    text = scorer.tokenizer.decode(ids)
    assert scorer.tokenizer(text)["input_ids"] == ids
    result = dataclasses.replace(task, text=text).evaluate(scorer)
    assert result.details["n_target_tokens"] == 31


@pytest.mark.parametrize("task_class", [StrideTask, DisjointTask])
def test_windows_of_another_tokenizer_are_not_compared_in_pairs(config, scorer, task_class):
    config = dataclasses.replace(config, limit=2)
    task = task_class.load(config)
    measured = {}
    for name, n_merges in (("first", 60), ("same", 60), ("other", 2)):
        tokenizer = tiny.tiny_tokenizer(n_merges)
        model = tiny.tiny_gpt2(tokenizer)
        with torch.no_grad():
            model.lm_head.weight.mul_(0.9 if name == "same" else 1)
        own = CausalScorer(model, tokenizer, batch_tokens=96)
        cell = Measurement(task.evaluate(own))
        measured[name] = ModelMeasurements(name, tasks={"wikitext:stride": cell})
    metrics = {"wikitext:stride": ["token_perplexity"]}
    for name, is_tested in (("same", True), ("other", False)):
        (row,) = differences_of(measured[name], measured["first"], metrics).values()
        assert (row.test is not None) == is_tested


def test_a_data_set_of_pages_and_the_file_are_one(config, monkeypatch):
    import datasets

    asked = []
    pages = datasets.Dataset.from_dict({"page": split_pages(FILE.split("\n"))})
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *a, **k: asked.append((*a, k["name"])) or pages
    )
    of_hub = WikitextTask.load(Selection())
    of_file = WikitextTask.load(config)
    assert of_hub.documents == of_file.documents
    assert of_hub.sha256 == of_file.sha256 == hashlib.sha256(FILE.encode()).hexdigest()
    assert asked == [("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1")]


def test_a_file_without_text_is_refused(config):
    with open(config.place, "w") as file:
        file.write(" \n \n")
    with pytest.raises(ValueError, match="expected at least one page, found none"):
        WikitextTask.load(config)


def test_the_official_file_has_the_published_counts():
    if not RAW.exists():
        pytest.skip(f"needs the raw test file at {RAW}")
    pages = wikitext.read_pages(str(RAW), data=wikitext.DATA)
    task = WikitextTask.from_pages(pages)
    assert task.data_status == "official"
    assert len(task.documents) == 62
    assert sum(document.n_words for document in task.documents) == 241_335
    assert sum(document.n_bytes for document in task.documents) == 1_290_527
    # One row for each line and two line feeds between: 4,357 of them.
    assert join_lines(pages).count("\n") == 2 * 4357 + sum(
        bool(line.strip()) for line in RAW.read_text(encoding="utf-8").split("\n")
    )
    preprocess = pytest.importorskip("lm_eval.tasks.wikitext.preprocess_wikitext")
    expected = [preprocess.wikitext_detokenizer({"page": page}) for page in pages]
    assert [document.text for document in task.documents] == expected


def test_an_empty_document_costs_nothing(scorer):
    class Task(DocumentsTask):
        protocol = "test"
        metrics = {"bits_per_byte": False}

    documents = [Document("", 0, 0), Document("the cat", 2, 7)]
    assert Task(documents, "").evaluate(scorer).samples["bits_per_byte"][0] == 0
