"""What is logged of each sample, where lm-evaluation-harness has no such protocol.

What it has, `tasks/test_harness.py` compares with its own files.
"""

import json

import numpy as np
import pytest
from support import evaluation as tiny

from modeling_gpt2scratch.evaluation.results.cache import ResultCache
from modeling_gpt2scratch.evaluation.results.measurements import Measurement
from modeling_gpt2scratch.evaluation.results.sample_logs import sample_rows
from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer
from modeling_gpt2scratch.evaluation.tasks.cbt import TASKS as CBT_TASKS
from modeling_gpt2scratch.evaluation.tasks.cbt_questions import ClozeQuestion
from modeling_gpt2scratch.evaluation.tasks.lambada import TASKS as LAMBADA_TASKS
from modeling_gpt2scratch.evaluation.tasks.multiple_choice import Question
from modeling_gpt2scratch.evaluation.tasks.piqa import PiqaTask
from modeling_gpt2scratch.evaluation.tasks.task import TaskResult
from modeling_gpt2scratch.evaluation.tasks.wikitext import StrideTask

WORDS = ("cat", "mat", "dog", "end", "naïve", "the", "sat", "on", "café", "a")
QUESTIONS = [
    ClozeQuestion(("the cat sat ,",) * n, "on the XXXXX .", WORDS, right)
    for n, right in ((2, 0), (30, 1), (3, 4))
]
TEXTS = ["“the cat sat on the mat", "the dog sat on the cat"]


@pytest.fixture(scope="module")
def scorer():
    tokenizer = tiny.tiny_tokenizer()
    model = tiny.tiny_gpt2(tokenizer, n_positions=96)
    return CausalScorer(model, tokenizer, batch_tokens=4096)


def rows_of(task, result):
    """The rows as a reader of the file gets them."""
    return json.loads(json.dumps(list(sample_rows(task, result)), allow_nan=False))


def test_the_word_that_was_chosen_is_the_one_with_the_highest_log_likelihood(scorer):
    task = CBT_TASKS["cbt-cn"](QUESTIONS)
    result = task.evaluate(scorer)
    rows = rows_of(task, result)
    for row, question, is_right in zip(rows, QUESTIONS, result.samples["acc"], strict=True):
        log_probs = [float(log_prob) for ((log_prob, _),) in row["resps"]]
        assert len(log_probs) == len(WORDS) and row["target"] == str(question.right)
        assert (np.argmax(log_probs) == question.right) == is_right == row["acc"]
        assert row["arguments"]["gen_args_2"]["arg_1"].strip() == "dog."
    context, choice = rows[0]["arguments"]["gen_args_4"].values()
    expected = scorer.score_continuations([(context, choice)]).log_probs[0]
    assert float(rows[0]["resps"][4][0][0]) == pytest.approx(expected, abs=1e-4)


def test_a_question_that_was_left_out_has_no_answer(scorer):
    task = CBT_TASKS["cbt-cn:predecessor"](QUESTIONS)
    rows = rows_of(task, task.evaluate(scorer))
    assert [len(row["resps"]) for row in rows] == [len(WORDS), 0, len(WORDS)]
    assert rows[1]["acc"] is None and rows[0]["acc"] in (0, 1)


def test_protocols_of_last_words_log_what_is_known_of_them(scorer):
    keys = {}
    for protocol in ("", ":bos", ":openai-preprocessing", ":last-token", ":generate"):
        task = LAMBADA_TASKS[f"lambada{protocol}"](TEXTS)
        result = task.evaluate(scorer)
        rows = rows_of(task, result)
        assert [row["doc"] for row in rows] == [{"text": text} for text in TEXTS]
        assert [row["target"] for row in rows] == [" mat", " cat"]
        keys[protocol] = {"arguments", "resps"} & set(rows[0])
        if "resps" in rows[0]:
            nats = result.samples["perplexity"].tolist()
            assert [float(row["resps"][0][0][0]) for row in rows] == [-value for value in nats]
            assert [row["perplexity"] for row in rows] == [-value for value in nats]
        if protocol == ":openai-preprocessing":
            assert rows[0]["arguments"]["gen_args_0"]["arg_0"] == '\n"the cat sat on the'
    both = {"arguments", "resps"}
    assert list(keys.values()) == [both, {"resps"}, both, set(), set()]


def test_windows_have_a_log_likelihood_and_no_text(scorer):
    task = StrideTask("the cat sat on the mat " * 30, "00", None)
    result = task.evaluate(scorer)
    rows = rows_of(task, result)
    values = [-value for value in result.samples["token_perplexity"].tolist()]
    assert [row["token_perplexity"] for row in rows] == values and max(values) < 0
    assert not {"doc", "resps"} & set(rows[0])


def test_a_task_of_ones_own_may_keep_its_answers_to_itself():
    task = PiqaTask([Question("the cat", ("sat", "on"), 1)])
    (row,) = rows_of(task, TaskResult(1, {}, {}, {"acc": np.array([1.0])}))
    assert (row["resps"], row["target"], row["acc"]) == ([], "1", 1.0)


def test_the_checksum_of_all_samples_is_taken_once_not_for_each(monkeypatch):
    taken = []
    monkeypatch.setattr(PiqaTask, "sha256", property(lambda task: taken.append(task) or "00"))
    task = PiqaTask([Question("the cat", ("sat", "on"), 1)] * 3)
    rows = rows_of(task, TaskResult(3, {}, {}, {"acc": np.ones(3)}))
    assert [row["task_hash"] for row in rows] == ["00"] * 3 and len(taken) == 1


def test_an_answer_that_is_impossible_is_logged_and_kept(scorer, tmp_path):
    task = PiqaTask([Question("the cat", ("sat", "on"), 1)])
    result = task.evaluate(scorer)
    result.responses[0][0] = (-np.inf, False)
    (row,) = rows_of(task, result)
    assert row["resps"][0] == [["-inf", "False"]]
    ResultCache(tmp_path).write({}, Measurement(result), {})
    assert ResultCache(tmp_path).read({})[0].result.responses == result.responses
