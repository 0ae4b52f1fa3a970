import dataclasses
import io
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import evaluation as tiny
from support.paths import REPOSITORY
from support.real.questions import BOOKS, official_text, practice_questions
from support.servers.fake_hub import serve

from modeling_gpt2scratch.common.command_line import ArgumentError
from modeling_gpt2scratch.evaluation.configuration import CompareConfig
from modeling_gpt2scratch.evaluation.results.cache import ResultCache
from modeling_gpt2scratch.evaluation.results.measurements import Measurement
from modeling_gpt2scratch.evaluation.scoring.encoding import encode_pairs
from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer
from modeling_gpt2scratch.evaluation.tasks.cbt import TASKS, detokenize
from modeling_gpt2scratch.evaluation.tasks.cbt_questions import (
    CATEGORIES,
    HUB_NAME,
    question_data,
    read_questions,
)
from modeling_gpt2scratch.evaluation.tasks.samples import Selection

N_QUESTIONS = 5
DATA = question_data("CN", "validation")
WORDS = ("king", "cat", "mat", "dog", "queen", "old dog", "house", "naïve", "end", "boy")
SENTENCES = ["the cat sat on the mat , and `` so did the dog '' .", "the end !"] * 10


def small_questions(n):
    """Sentences, query, answer and candidates of some 200 tokens under the tiny tokenizer."""
    random = np.random.default_rng(0)
    questions = []
    for index in range(n):
        sentences = random.permutation(SENTENCES).tolist()
        query = f"`` XXXXX {'sat ' * (index % 4)}on the mat , '' said he ."
        questions.append((sentences, query, WORDS[index], random.permutation(WORDS).tolist()))
    return questions


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("cbt") / "cbtest_CN_valid_2000ex.txt"
    path.write_text(official_text(small_questions(N_QUESTIONS)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def scorer():
    tokenizer = tiny.tiny_tokenizer()
    model = tiny.tiny_gpt2(tokenizer, n_positions=4096)
    return CausalScorer(model, tokenizer, batch_tokens=4096)


def task_of(name, file):
    return TASKS[name].load(Selection(place=str(file)))


def nats_of(scorer, context, choice):
    """Nats of every token of the text but the first, and how many of them are the choice's."""
    ((before, after),) = encode_pairs(scorer.tokenizer, [(context, choice)])
    return tiny.naive_nats(scorer.model, [*before, *after]), len(after)


def chosen_by(scorer, task, value):
    """Index of the best candidate of each question, each of which is scored on its own."""
    chosen = []
    for question in task.questions:
        context, choices = task.request(question)
        chosen.append(np.argmin([value(*nats_of(scorer, context, own)) for own in choices]))
    return chosen


def test_an_official_file_is_read_whole_or_up_to_a_limit(file):
    questions = read_questions(str(file), DATA, limit=None)
    expected = small_questions(N_QUESTIONS)
    assert [list(question.sentences) for question in questions] == [row[0] for row in expected]
    assert [question.query for question in questions] == [row[1] for row in expected]
    for question, (_, _, answer, candidates) in zip(questions, expected, strict=True):
        assert list(question.candidates) == candidates
        assert question.candidates[question.right] == answer
    assert read_questions(str(file), DATA, limit=2) == questions[:2]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub whose data set has what the Hub's own parquet branch has, and other files beside it.

    Category NE has the questions of `file` in its validation split.
    """
    rows = {name: small_questions(n) for name, n in (("NE", N_QUESTIONS), ("CN", 2))}
    files = {
        f"{category}/{split}/0000.parquet": parquet_of(rows[category], split)
        for category in rows
        for split in ("train", "validation", "test")
    }
    branches = {"refs/convert/parquet": files}
    with serve(HUB_NAME, {"README.md": b"A data set.\n"}, revisions=branches) as hub:
        hub.use_here(monkeypatch, tmp_path)
        yield hub


def parquet_of(questions, split):
    """A parquet file of questions; those of other splits begin with the split's name."""
    prefix = "" if split == "validation" else f"{split} "
    columns = ("sentences", "question", "answer", "options")
    rows = [dict(zip(columns, row, strict=True)) for row in questions]
    rows = [row | {"question": prefix + row["question"]} for row in rows]
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), content)
    return content.getvalue()


def test_file_and_data_set_of_the_same_questions_have_one_checksum(file, hub):
    from_hub = TASKS["cbt-ne"].load(Selection())
    assert from_hub.sha256 == task_of("cbt-cn", file).sha256
    test = TASKS["cbt-cn-test"].load(Selection(limit=1))
    assert [question.query[:10] for question in test.questions] == ["test `` XX"]
    # The training split of 100,000 questions stays where it is.
    read = [request for request in hub.requests if "/resolve/" in request]
    assert any("NE/validation" in request for request in read)
    assert not any("train" in request for request in read)


def test_the_task_files_of_the_harness_read_the_data_set(file, hub):
    pytest.importorskip("lm_eval", reason="needs the extra `eval`")
    from lm_eval.tasks import TaskManager

    folder = str(REPOSITORY / "evaluate" / "lm_eval_tasks")
    tasks = TaskManager(include_path=folder, include_defaults=False)
    same = shutil.copy(file, file.with_name("cbtest_NE_valid_2000ex.txt"))
    expected = task_of("cbt-ne", same)
    task = tasks.load("cbt_ne")["tasks"]["cbt_ne"]
    for doc, question in zip(task.validation_docs(), expected.questions, strict=True):
        assert (task.doc_to_text(doc), task.doc_to_choice(doc)) == expected.request(question)
        assert task.doc_to_target(doc) == question.right


def test_the_task_files_of_the_harness_differ_in_the_category_alone():
    texts = set()
    for category in CATEGORIES:
        path = REPOSITORY / "evaluate" / "lm_eval_tasks" / f"cbt_{category.lower()}.yaml"
        text = path.read_text()
        assert text.count(f"{category}/") == 2 and f"task: cbt_{category.lower()}\n" in text
        text = text.replace(f"cbt_{category.lower()}", "cbt_")
        texts.add(text.replace(f"{category}/", "").replace(f"Category {category} ", ""))
    assert len(texts) == 1


def test_the_file_of_a_category_and_split_is_found_below_a_directory(tmp_path):
    config = Selection(data_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="expected cbtest_P_test_2500ex.txt in it"):
        question_data("P", "test").source(config)
    (tmp_path / "CBTest" / "data").mkdir(parents=True)
    path = tmp_path / "CBTest" / "data" / "cbtest_P_test_2500ex.txt"
    path.touch()
    assert question_data("P", "test").source(config) == str(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-200], r"2000ex\.txt, line 39: expected a line feed at its end"),
        (lambda text: text[:-2], r"line 43: expected a line feed at its end: the file is cut"),
        (lambda text: text.replace("\n3 ", "\n4 ", 1), "line 3: expected line 3 .* found '4'"),
        (lambda text: text.replace("\n7 ", "\n\n7 ", 1), "line 7: expected line 7, found none"),
        (lambda text: text.rsplit("\n", 5)[0] + "\n", "line 40: expected line 19, found the end"),
        (lambda text: text.replace("\t\t", "\t", 1), "line 21: .* found 3 fields"),
        (lambda text: text.replace("XXXXX", "X", 1), "line 21: expected a query with XXXXX"),
        (lambda text: text.replace("|", "", 1), "line 21: expected 10 candidates with the answer"),
        (lambda text: "", "expected at least one question, found none"),
        (lambda text: "\udcff" + text, "line 1: expected UTF-8"),
    ],
)
def test_a_wrong_or_cut_file_is_refused_by_its_line(tmp_path, change, message):
    row = (SENTENCES, "The XXXXX was here .", "king", list(WORDS))
    path = tmp_path / "cbtest_CN_valid_2000ex.txt"
    text = change(official_text([row, row]))
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message):
        read_questions(str(path), DATA, limit=None)


def test_questions_of_another_category_are_refused(tmp_path):
    path = tmp_path / "cbtest_NE_valid_2000ex.txt"
    path.write_text(official_text([(SENTENCES, "The XXXXX was here .", "king", list(WORDS))]))
    with pytest.raises(ValueError, match="NE_valid.*expected cbtest_CN_valid_2000ex.txt, found qu"):
        read_questions(str(path), DATA, limit=None)
    own = path.rename(tmp_path / "own.txt")
    assert len(read_questions(str(own), DATA, limit=None)) == 1


def test_one_file_is_not_taken_for_several_categories(tmp_path):
    own = tmp_path / "own.txt"
    own.touch()

    def config(*tasks, place=str(own)):
        return CompareConfig(models=["gpt2"], tasks=list(tasks), cbt_data=place)

    for place in (str(own), "someone/else"):
        with pytest.raises(ArgumentError, match="expected a directory with cbtest_CN_v.*, cbtest_"):
            config("cbt-cn", "cbt-ne", place=place)
    config("cbt-cn", "cbt-cn:query-only")
    config("cbt-cn", "cbt-ne", place=str(tmp_path))
    config("cbt-cn", "cbt-ne", place=HUB_NAME)


def test_empty_candidates_are_no_candidates_and_counted(tmp_path, scorer):
    path = tmp_path / "questions.txt"
    candidates = ["cat", "", *WORDS[2:]]
    path.write_text(official_text([(SENTENCES, "The XXXXX was here .", "mat", candidates)]))
    task = task_of("cbt-cn", path)
    assert task.questions[0].candidates == ("cat", *WORDS[2:])
    assert task.evaluate(scorer).details["n_without_10_candidates"] == 1


def test_the_detokenizer_joins_marks_to_their_words():
    text = "`` I do n't know , '' said the king 's son ; ` who ? ' He left : all : . !"
    joined = "\"I don't know,\" said the king's son; ` who?' He left: all:.!"
    assert detokenize(text) == joined


def test_the_paper_protocol_is_the_sum_over_candidate_and_rest(scorer, file):
    task = task_of("cbt-cn", file)
    context, choices = task.request(task.questions[0])
    assert context + choices[3] == detokenize(
        " ".join([*task.questions[0].sentences, task.questions[0].query])
    ).replace("XXXXX", task.questions[0].candidates[3])
    result = task.evaluate(scorer)
    chosen = chosen_by(scorer, task, lambda nats, n: float(nats[-n:].sum()))
    right = np.equal(chosen, [question.right for question in task.questions])
    assert result.samples["acc"].tolist() == right.tolist()
    assert result.estimates["acc"].value == right.mean()
    assert result.n_samples == len(task.questions)
    counts = [result.details[f"n_answers_of_{name}_tokens"] for name in ("1", "2", "3_or_more")]
    assert sum(counts) == result.n_samples


def test_the_predecessor_protocol_is_the_mean_over_the_whole_text(scorer, file):
    task = task_of("cbt-cn:predecessor", file)
    context, choices = task.request(task.questions[0])
    assert " , " in context + choices[0]
    chosen = chosen_by(scorer, task, lambda nats, n: float(nats.mean()))
    right = np.equal(chosen, [question.right for question in task.questions])
    assert task.evaluate(scorer).samples["acc"].tolist() == right.tolist()


def test_the_predecessor_protocol_leaves_out_what_is_longer_than_the_context(
    scorer, file, tmp_path
):
    task = task_of("cbt-cn:predecessor", file)
    n_tokens = []
    for question in task.questions:
        context, choices = task.request(question)
        n_tokens.append(max(len(scorer.tokenizer(context + own)["input_ids"]) for own in choices))
    model = tiny.tiny_gpt2(scorer.tokenizer, n_positions=sorted(n_tokens)[1])
    short = CausalScorer(model, scorer.tokenizer, batch_tokens=4096)
    result = task.evaluate(short)
    assert 0 < result.n_samples == N_QUESTIONS - result.details["n_left_out"] < N_QUESTIONS
    is_left_out = np.array(n_tokens) > short.context_tokens
    assert np.isnan(result.samples["acc"]).tolist() == is_left_out.tolist()
    cache = ResultCache(tmp_path)
    cache.write({}, Measurement(result), {})
    found = cache.read({})[0].result
    assert (found.estimates, found.details) == (result.estimates, result.details)
    np.testing.assert_array_equal(found.samples["acc"], result.samples["acc"])


def test_the_paper_protocol_cuts_what_is_longer_than_the_context_and_counts_it(scorer, file):
    model = tiny.tiny_gpt2(scorer.tokenizer, n_positions=100)
    short = CausalScorer(model, scorer.tokenizer, batch_tokens=4096)
    result = task_of("cbt-cn", file).evaluate(short)
    assert result.details["n_truncated"] == result.n_samples == N_QUESTIONS


def test_without_sentences_or_without_the_rest(scorer, file):
    by_sum = {}
    for name in ("query-only", "candidate-only"):
        task = task_of(f"cbt-cn:{name}", file)
        chosen = chosen_by(scorer, task, lambda nats, n: float(nats[-n:].sum()))
        right = np.equal(chosen, [question.right for question in task.questions])
        assert task.evaluate(scorer).samples["acc"].tolist() == right.tolist()
        by_sum[name] = task.request(task.questions[0])
    question = task.questions[0]
    assert by_sum["query-only"][0] == detokenize(question.query).partition("XXXXX")[0]
    assert by_sum["candidate-only"][1] == list(question.candidates)


def test_a_query_that_begins_with_its_blank_has_the_end_of_text_before_it(scorer, tmp_path):
    path = tmp_path / "questions.txt"
    path.write_text(official_text([(SENTENCES, "XXXXX was here .", "king", list(WORDS))]))
    task = task_of("cbt-cn:query-only", path)
    assert task.request(task.questions[0])[0] == ""
    assert task.evaluate(scorer).n_samples == 1


def test_every_category_and_split_has_four_protocols():
    assert len(TASKS) == 4 * 2 * 4
    assert all(task.protocol == name for name, task in TASKS.items())
    assert TASKS["cbt-v"].data.file == "cbtest_V_valid_2000ex.txt"
    assert TASKS["cbt-v-test"].data.file == "cbtest_V_test_2500ex.txt"
    assert all(dataclasses.is_dataclass(task) for task in TASKS.values())


@pytest.fixture(scope="module")
def bos_scorer():
    """Its tokenizer begins each text with a token of its own."""
    tokenizer = tiny.bos_tokenizer()
    model = tiny.tiny_llama(tokenizer, n_positions=4096)
    return CausalScorer(model, tokenizer, batch_tokens=4096)


@pytest.mark.gate
@pytest.mark.parametrize("kind", ["scorer", "bos_scorer"])
def test_choices_are_those_of_lm_evaluation_harness_with_the_task_file(
    kind, tmp_path, monkeypatch, request
):
    scorer = request.getfixturevalue(kind)
    lm_eval = pytest.importorskip("lm_eval", reason="needs the extra `eval`")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    questions = small_questions(N_QUESTIONS) + (practice_questions(2) if BOOKS.exists() else [])
    file = tmp_path / "cbtest_CN_valid_2000ex.txt"
    file.write_text(official_text(questions), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    folder = str(REPOSITORY / "evaluate" / "lm_eval_tasks")
    tasks = TaskManager(include_path=folder, include_defaults=False)
    assert {"cbt_cn", "cbt_ne", "cbt_v", "cbt_p"} <= set(tasks.all_tasks)
    harness = HFLM(pretrained=scorer.model, tokenizer=scorer.tokenizer, batch_size=4, device="cpu")
    expected = lm_eval.simple_evaluate(
        harness, tasks=["cbt_local"], task_manager=tasks, bootstrap_iters=0
    )
    samples = sorted(expected["samples"]["cbt_local"], key=lambda sample: sample["doc_id"])
    task = task_of("cbt-cn", file)
    result = task.evaluate(scorer)
    assert result.samples["acc"].tolist() == [sample["acc"] for sample in samples]
    requests = [task.request(question) for question in task.questions]
    scores = scorer.score_choices(*zip(*requests, strict=True))
    log_probs = [float(nats) for sample in samples for nats, _ in sample["filtered_resps"]]
    np.testing.assert_allclose(scores.log_probs, log_probs, atol=1e-3, rtol=1e-5)
