import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import evaluation as tiny
from support.paths import SHARED_DATA

from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer
from modeling_gpt2scratch.evaluation.tasks.lambada import (
    OPENAI,
    STANDARD,
    TASKS,
    LambadaTask,
    read_texts,
    split_last_word,
)

WORDS = ("the", "cat", "sat", "on", "mat", "and", "dog", "end", "of", "naïve")


@pytest.fixture(scope="module")
def texts():
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS, size=6)) for _ in range(24)] + ['a "cat', "the cat\nsat"]


@pytest.fixture(scope="module")
def scorer(texts):
    """A model that has learnt half of the passages, so that some last words are right."""
    tokenizer = tiny.tiny_tokenizer()
    model = tiny.tiny_gpt2(tokenizer)
    rows = [tokenizer(text)["input_ids"] for text in texts[:12]]
    input_ids = torch.tensor([row + [0] * (32 - len(row)) for row in rows])
    labels = input_ids.masked_fill(input_ids == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(input_ids=input_ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return CausalScorer(model, tokenizer, batch_tokens=100)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@given(st.text(alphabet="ab \n\t", max_size=12))
def test_the_last_word_is_what_split_at_single_spaces_leaves(text):
    words = text.split(" ")
    assert split_last_word(text) == (" ".join(words[:-1]), " " + words[-1])


def test_a_newline_is_part_of_the_last_word():
    assert split_last_word("she said\n\nyes") == ("she", " said\n\nyes")


def test_accuracy_and_perplexity_are_those_of_a_loop_over_whole_logits(scorer, texts):
    correct, log_probs = [], []
    for text in texts:
        context_ids = scorer.tokenizer(text[: text.rindex(" ")])["input_ids"]
        row = scorer.tokenizer(text)["input_ids"]
        with torch.no_grad():
            all_log_probs = scorer.model(torch.tensor([row])).logits[0].log_softmax(-1)
        positions = range(len(context_ids) - 1, len(row) - 1)
        correct.append(all(all_log_probs[t].argmax() == row[t + 1] for t in positions))
        log_probs.append(sum(float(all_log_probs[t, row[t + 1]]) for t in positions))
    result = LambadaTask(texts).evaluate(scorer)
    accuracy, n = np.mean(correct), len(texts)
    perplexity = np.exp(-np.mean(log_probs))
    assert 0 < accuracy < 1
    assert result.n_samples == n
    assert result.estimates["acc"].value == accuracy
    assert result.estimates["acc"].stderr == pytest.approx(
        np.sqrt(accuracy * (1 - accuracy) / (n - 1))
    )
    assert result.estimates["perplexity"].value == pytest.approx(perplexity, rel=1e-4)
    assert result.estimates["perplexity"].stderr == pytest.approx(
        perplexity * np.std(log_probs, ddof=1) / np.sqrt(n), rel=1e-4
    )
    assert result.samples["acc"].tolist() == correct
    np.testing.assert_allclose(result.samples["perplexity"], -np.array(log_probs), rtol=1e-4)


def test_the_limit_takes_the_first_passages_of_a_file(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": f"row {i}", "n": i} for i in range(5)])
    assert read_texts(path, limit=2) == ["row 0", "row 1"]
    assert len(read_texts(path, limit=None)) == 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", r"rows\.jsonl, line 2: expected JSON"),
        ('{"txt": "a"}', r"rows\.jsonl, line 2: expected an object .*, found \['txt'\]"),
        ('{"text": null}', r"rows\.jsonl, line 2: expected an object .*, found \['text'\]"),
        ("[1]", r"rows\.jsonl, line 2: expected an object .*, found list"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "good row"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_texts(str(path), limit=None)


@pytest.mark.parametrize("text", ["", "he said no ", "he said no  \n", "he said \t"])
def test_a_passage_without_a_last_word_is_named_by_its_line(tmp_path, text):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a good\nrow"}, {"text": text}])
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: expected a passage that ends in"):
        read_texts(path, limit=None)


@pytest.mark.parametrize("name", ["rows.txt", "rows.jsonl"])
def test_a_file_from_windows_has_the_same_passages(tmp_path, name):
    lines = ["the first row", "the second"]
    if name.endswith("l"):
        lines = [json.dumps({"text": line}) for line in lines]
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + "".join(f"{x}\r\n" for x in lines).encode())
    assert read_texts(str(tmp_path / name), limit=None) == ["the first row", "the second"]


def test_a_file_without_passages_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="at least one passage, found none"):
        read_texts(write_jsonl(tmp_path / "rows.jsonl", []), limit=None)


def test_a_data_set_without_a_text_column_is_rejected(monkeypatch):
    import datasets

    rows = datasets.Dataset.from_dict({"passage": ["a b"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    with pytest.raises(
        ValueError, match=r"some/set, row 1: expected an object .* `text`, found \['passage'\]"
    ):
        read_texts("some/set", limit=None)


def test_file_and_data_set_of_the_same_passages_have_one_checksum(monkeypatch, tmp_path, texts):
    import datasets

    rows = datasets.Dataset.from_dict({"text": texts})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"text": text} for text in texts])
    from_file = LambadaTask(read_texts(str(path), limit=None))
    assert from_file.sha256 == LambadaTask(read_texts("some/set", limit=None)).sha256
    assert from_file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("data", [OPENAI, STANDARD], ids=lambda data: data.file)
def test_the_published_file_has_its_published_checksum(data):
    path = SHARED_DATA / "lambada" / data.file
    if not path.exists():
        pytest.skip(f"needs the LAMBADA test file at {path}")
    task_class = TASKS["lambada" if data is OPENAI else "lambada_standard"]
    task = task_class(read_texts(str(path), limit=None, data=data))
    assert len(task.texts) == 5153
    assert task.sha256 == data.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert task.data_status == "official"
    assert task_class(task.texts[:9]).data_status == "9 of 5153 samples, unchecked"
    assert task_class(["x", *task.texts[1:]]).data_status == "not the official file"
