"""ARC-easy and PIQA: wording, places of the data and refused rows."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from support import evaluation as tiny

from modeling_gpt2scratch.evaluation.report import data_notes
from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer
from modeling_gpt2scratch.evaluation.tasks.arc_easy import ArcEasyTask
from modeling_gpt2scratch.evaluation.tasks.lambada import LambadaTask
from modeling_gpt2scratch.evaluation.tasks.local_text import LocalTextTask
from modeling_gpt2scratch.evaluation.tasks.multiple_choice import Question
from modeling_gpt2scratch.evaluation.tasks.piqa import PiqaTask
from modeling_gpt2scratch.evaluation.tasks.samples import Selection

ARC = {
    "question": "Where did the cat sit?",
    "choices": {"text": ["on the mat", "on the dog", "nowhere"], "label": ["1", "2", "3"]},
    "answerKey": "2",
}
PIQA = {"goal": "wake the cat", "sol1": "call the dog", "sol2": "take the mat", "label": 1}


@pytest.fixture(scope="module")
def scorer():
    tokenizer = tiny.tiny_tokenizer()
    model = tiny.tiny_gpt2(tokenizer, n_positions=128)
    return CausalScorer(model, tokenizer, batch_tokens=512)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("task_class", "row", "expected"),
    [
        (
            ArcEasyTask,
            ARC,
            Question("Question: Where did the cat sit?\nAnswer:", tuple(ARC["choices"]["text"]), 1),
        ),
        (
            PiqaTask,
            PIQA,
            Question("Question: wake the cat\nAnswer:", ("call the dog", "take the mat"), 1),
        ),
    ],
)
def test_a_question_comes_before_the_word_answer(tmp_path, task_class, row, expected):
    path = write_jsonl(tmp_path / task_class.data.file, [row, row])
    assert task_class.read(path, limit=None) == [expected, expected]
    task = task_class.load(Selection(data_dir=str(tmp_path), limit=1))
    assert task.questions == [expected]
    assert task.data_status == f"1 of {task.data.n_samples} samples, unchecked"


def test_questions_may_have_different_numbers_of_answers(scorer):
    questions = [
        Question("Question: the cat?\nAnswer:", ("sat", "on the mat", "dog"), 2),
        Question("Question: the end?\nAnswer:", ("on", "the"), 0),
        Question("Question: the mat?\nAnswer:", ("a", "the dog", "cat", "sat on", "end"), 3),
    ]
    right, right_norm = [], []
    for question in questions:
        n_context = len(scorer.tokenizer(question.context)["input_ids"])
        log_probs = []
        for answer in question.answers:
            ids = scorer.tokenizer(f"{question.context} {answer}")["input_ids"]
            log_probs.append(-float(tiny.naive_nats(scorer.model, ids)[n_context - 1 :].sum()))
        right.append(np.argmax(log_probs) == question.right)
        per_character = np.array(log_probs) / [len(answer) for answer in question.answers]
        right_norm.append(np.argmax(per_character) == question.right)
    result = ArcEasyTask(questions).evaluate(scorer)
    assert result.samples["acc"].tolist() == right
    assert result.samples["acc_norm"].tolist() == right_norm
    assert result.details["n_truncated"] == 0


def test_a_question_whose_context_is_cut_counts_once(scorer):
    long = "the cat sat on the mat and " * 20
    questions = [Question(long, ("a", "the"), 0), Question("the cat", ("a", "the", "dog"), 1)]
    assert ArcEasyTask(questions).evaluate(scorer).details["n_truncated"] == 1


@pytest.mark.parametrize(
    ("task_class", "row", "change", "message"),
    [
        (ArcEasyTask, ARC, {"answerKey": "C"}, r"expected an `answerKey` among \['1', '2', '3'\]"),
        (ArcEasyTask, ARC, {"choices": {"text": ["a"], "label": []}}, "as many texts as labels"),
        (ArcEasyTask, ARC, {"choices": {"text": [""], "label": ["1"]}}, "as many texts as labels"),
        (ArcEasyTask, ARC, {"choices": {"text": [" "], "label": ["1"]}}, "as many texts as labels"),
        (
            ArcEasyTask,
            ARC,
            {"choices": {"text": ["a", "b"], "label": ["1", "1"]}, "answerKey": "1"},
            r"expected each label once, found \['1', '1'\]",
        ),
        (ArcEasyTask, ARC, {"question": None}, "expected an object with a str `question`"),
        (PiqaTask, PIQA, {"label": -1}, "expected a `label` of 0 or 1, found -1"),
        (PiqaTask, PIQA, {"sol2": ""}, "expected answers with text"),
    ],
)
def test_a_bad_question_is_named_by_its_line(tmp_path, task_class, row, change, message):
    path = write_jsonl(tmp_path / "rows.jsonl", [row, row | change])
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: .*" + message):
        task_class.read(path, limit=None)


@pytest.mark.parametrize(
    ("answers", "right", "message"),
    [
        (("a", "b"), 2, "expected a right answer from 0 to 1, found 2"),
        (("a", "b"), -1, "expected a right answer from 0 to 1, found -1"),
        ((), 0, "expected a right answer from 0 to -1"),
        (("a", ""), 0, "expected answers with text"),
    ],
)
def test_a_question_without_its_right_answer_is_refused_in_any_task(
    tmp_path, answers, right, message
):
    class OwnTask(ArcEasyTask):
        @classmethod
        def question(cls, place, row):
            return Question("Which?", answers, right)

    path = write_jsonl(tmp_path / "rows.jsonl", [ARC])
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1: " + message):
        OwnTask.read(path, limit=None)


def test_the_file_says_whether_it_is_the_official_one(tmp_path, monkeypatch):
    path = tmp_path / PiqaTask.data.file
    write_jsonl(path, [PIQA] * 3)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(PiqaTask, "data", replace(PiqaTask.data, sha256=sha256))
    config = Selection(data_dir=str(tmp_path), limit=2)
    assert PiqaTask.load(config).data_status == "official"
    write_jsonl(path, [PIQA] * 4)
    assert PiqaTask.load(config).data_status == "not the official file"
    assert PiqaTask([], "baber/piqa").data_status == "from the Hub, baber/piqa"
    assert PiqaTask([]).data_status is None
    other = PiqaTask([], "someone/piqa-de").data_status
    assert other == "from the Hub, someone/piqa-de, in place of baber/piqa"
    assert PiqaTask.data.problem(other, limit=None) == (
        "expected baber/piqa, found data from the Hub, someone/piqa-de"
    )


@pytest.mark.parametrize(
    ("n_samples", "limit", "note"),
    [
        (1838, None, "piqa: no official checksum is known of these data."),
        (1838, 2000, "piqa: no official checksum is known of these data."),
        (1837, None, "piqa: expected piqa_validation.jsonl with 1,838 samples, found 1,837"),
        (1837, 1838, "piqa: expected piqa_validation.jsonl with 1,838 samples, found 1,837"),
        (1839, None, "piqa: expected piqa_validation.jsonl with 1,838 samples, found more"),
        (9, 9, "piqa: first samples only, not compared with the official file."),
    ],
)
def test_a_file_without_a_checksum_is_known_by_its_samples(tmp_path, n_samples, limit, note):
    write_jsonl(tmp_path / PiqaTask.data.file, [PIQA] * n_samples)
    config = Selection(data_dir=str(tmp_path), limit=limit)
    notes = data_notes({"piqa": PiqaTask.load(config)}, limit)
    assert [line.partition(": these are")[0] for line in notes] == [note]


def test_a_cut_file_with_a_checksum_is_noted_unless_a_limit_cut_it():
    task = LambadaTask(["the cat sat"] * 12)
    assert data_notes({"lambada": task}, 12) == [
        "lambada: first samples only, not compared with the official file."
    ]
    for limit in (None, 13):
        (note,) = data_notes({"lambada": task}, limit)
        assert "lambada_test.jsonl with 5,153 samples, found 12" in note
    assert data_notes({"text": LocalTextTask([], "")}, None) == []


def test_a_part_of_a_data_set_is_asked_for_by_name(monkeypatch):
    import datasets

    asked = []
    rows = datasets.Dataset.from_list([ARC])
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or rows)
    ArcEasyTask.load(Selection())
    ArcEasyTask.load(Selection(place="another/set"))
    (first, second) = asked
    official = {"name": "ARC-Easy", "split": "test", "revision": None}
    assert first == (("allenai/ai2_arc",), official)
    assert second == (("another/set",), {"split": "test"})
