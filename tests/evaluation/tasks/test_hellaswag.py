import hashlib
import json

import numpy as np
import pytest
from support import evaluation as tiny

from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer
from modeling_gpt2scratch.evaluation.tasks.hellaswag import (
    HellaswagTask,
    PerTokenHellaswagTask,
    clean_text,
)

ROW = {
    "activity_label": "The mat",
    "ctx_a": "A cat sat.",
    "ctx_b": "the DOG",
    "endings": ["sat on the cat.", "was a mat.", "[header] sat.", "was the end of the mat."],
    "label": 2,
}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def rows():
    """Questions over the words that the tiny tokenizer knows, with WikiHow's marks in some."""
    random = np.random.default_rng(0)
    words = ("the", "cat", "sat", "on", "mat", "[title] dog", "[step]", "naïve", "end.", "“a”")

    def text(size):
        return " ".join(random.choice(words[:5] + words, size=size))

    return [
        ROW
        | {"activity_label": text(1), "ctx_a": text(5), "ctx_b": text(i % 3)}
        | {"endings": [f"the {text(n)}" for n in random.integers(1, 8, size=4)], "label": i % 4}
        for i in range(40)
    ]


@pytest.fixture(scope="module")
def scorer():
    tokenizer = tiny.tiny_tokenizer()
    model = tiny.tiny_gpt2(tokenizer, n_positions=512)
    return CausalScorer(model, tokenizer, batch_tokens=2048)


def test_a_question_is_read_as_the_harness_words_it(tmp_path):
    (question,) = HellaswagTask.read(write_jsonl(tmp_path / "rows.jsonl", [ROW]), limit=None)
    assert question.context == "The mat: A cat sat. The dog"
    assert question.answers == ("sat on the cat.", "was a mat.", " sat.", "was the end of the mat.")
    assert question.right == 2
    assert clean_text(" How to sit [title] Sit.  [step] Down ") == "How to sit. Sit.  Down"


def test_accuracies_are_those_of_a_loop_over_whole_logits(scorer, rows, tmp_path):
    questions = HellaswagTask.read(write_jsonl(tmp_path / "rows.jsonl", rows), limit=None)
    best, best_norm = [], []
    for question in questions:
        n_context = len(scorer.tokenizer(question.context.rstrip())["input_ids"])
        sums = []
        for ending in question.answers:
            row = scorer.tokenizer(f"{question.context} {ending}")["input_ids"]
            nats = tiny.naive_nats(scorer.model, row)
            sums.append(-float(nats[n_context - 1 :].sum()))
        best.append(np.argmax(sums) == question.right)
        per_character = np.array(sums) / [len(ending) for ending in question.answers]
        best_norm.append(np.argmax(per_character) == question.right)
    result = HellaswagTask(questions).evaluate(scorer)
    assert result.n_samples == len(rows)
    assert 0 < np.mean(best) < 1 and np.mean(best) != np.mean(best_norm)
    assert result.estimates["acc"].value == np.mean(best)
    assert result.estimates["acc_norm"].value == np.mean(best_norm)
    assert result.samples["acc"].tolist() == best
    assert result.samples["acc_norm"].tolist() == best_norm


def test_per_token_the_text_is_as_it_was_written_and_accuracy_a_mean_over_tokens(scorer, rows):
    rows = [row | {"ctx": f"{row['ctx_a']} {row['ctx_b']}".strip()} for row in rows]
    task = PerTokenHellaswagTask([PerTokenHellaswagTask.question("row", row) for row in rows])
    right, right_norm = [], []
    for row in rows:
        n_context = len(scorer.tokenizer(row["ctx"])["input_ids"])
        nats = [
            tiny.naive_nats(scorer.model, scorer.tokenizer(f"{row['ctx']} {end}")["input_ids"])
            for end in row["endings"]
        ]
        right.append(np.argmin([n[n_context - 1 :].sum() for n in nats]) == row["label"])
        right_norm.append(np.argmin([n[n_context - 1 :].mean() for n in nats]) == row["label"])
    result = task.evaluate(scorer)
    assert result.samples["acc"].tolist() == right
    assert result.samples["acc_norm"].tolist() == right_norm
    assert right != right_norm


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ctx_a": None}, r"rows\.jsonl, line 2: expected an object with a str `ctx_a`, found \["),
        ({"label": ""}, r"line 2: expected a `label` below 4, found ''; the test split has none"),
        ({"label": 4}, r"line 2: expected a `label` below 4, found 4"),
        ({"endings": ["a", "b"]}, r"line 2: expected 4 texts as `endings`, found \['a', 'b'\]"),
        ({"endings": ["a", "b", "c", "[d]"]}, "line 2: expected 4 endings with text, found"),
    ],
)
def test_a_bad_question_is_named_by_its_line(tmp_path, change, message):
    path = write_jsonl(tmp_path / "rows.jsonl", [ROW, ROW | change])
    assert len(HellaswagTask.read(path, limit=1)) == 1
    with pytest.raises(ValueError, match=message):
        HellaswagTask.read(path, limit=None)


@pytest.mark.parametrize("task", [HellaswagTask, PerTokenHellaswagTask])
def test_an_ending_of_white_space_is_none(tmp_path, task):
    path = write_jsonl(
        tmp_path / "rows.jsonl", [ROW | {"ctx": "a", "endings": ["a", "b", "c", " "]}]
    )
    with pytest.raises(ValueError, match="line 1: expected 4 endings with text, found"):
        task.read(path, limit=None)


def test_file_and_data_set_of_the_same_questions_have_one_checksum(monkeypatch, tmp_path, rows):
    import datasets

    asked = []
    of_hub = datasets.Dataset.from_list([row | {"label": str(row["label"])} for row in rows])
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or of_hub)
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    from_file = HellaswagTask(HellaswagTask.read(path, limit=None))
    from_hub = HellaswagTask(HellaswagTask.read("Rowan/hellaswag", limit=None))
    assert from_file.sha256 == from_hub.sha256
    assert len(from_file.sha256) == len(hashlib.sha256().hexdigest())
    assert len(asked[0][1]["revision"]) == 40
