"""Sample by sample, our tasks have what lm-evaluation-harness has with the task files we ship."""

import copy
import functools
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support import evaluation as tiny
from support.paths import REPOSITORY, SHARED_DATA

from modeling_gpt2scratch.evaluation.results.cache import ResultCache
from modeling_gpt2scratch.evaluation.results.measurements import Measurement, ModelMeasurements
from modeling_gpt2scratch.evaluation.results.sample_logs import write_samples
from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer
from modeling_gpt2scratch.evaluation.tasks.arc_easy import ArcEasyTask
from modeling_gpt2scratch.evaluation.tasks.blimp import BlimpTask
from modeling_gpt2scratch.evaluation.tasks.hellaswag import HellaswagTask
from modeling_gpt2scratch.evaluation.tasks.lambada import STANDARD, read_texts
from modeling_gpt2scratch.evaluation.tasks.lambada import TASKS as LAMBADA_TASKS
from modeling_gpt2scratch.evaluation.tasks.piqa import PiqaTask
from modeling_gpt2scratch.evaluation.tasks.samples import Selection
from modeling_gpt2scratch.evaluation.tasks.wikitext import DATA as WIKITEXT
from modeling_gpt2scratch.evaluation.tasks.wikitext import WikitextTask, read_pages

TASK_FILES = REPOSITORY / "evaluate" / "lm_eval_tasks"
HARNESS_FILES = {
    "lambada_openai": "lambada/lambada_openai.yaml",
    "lambada_standard": "lambada/lambada_standard.yaml",
    "wikitext": "wikitext/wikitext.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "piqa": "piqa/piqa.yaml",
    "blimp": "blimp/_template_yaml",
}
# Files that the tasks read, and where the official ones are.
OFFICIAL = {
    "lambada_test.jsonl": "lambada/lambada_test.jsonl",
    "lambada_test_plain_text.txt": "lambada/lambada_test_plain_text.txt",
    "hellaswag_val.jsonl": "hellaswag/hellaswag_val_subset_official_format.jsonl",
    "wiki.test.raw": "wikitext2_raw/wiki.test.raw",
}
PARADIGMS = ("adjunct_island", "passive_1", "wh_island")  # of BLiMP
N_REAL_LINES = 40
N_REAL_PAGES = 2
WORDS = ("the", "cat", "sat", "on", "mat", "[title] dog", "[step]", "naïve", "end.", "“a”")


def made_files() -> dict[str, str]:
    """Texts over the words that the tiny tokenizer knows, odd ones among them."""
    random = np.random.default_rng(0)

    def text(n_words):
        return " ".join(random.choice(WORDS[:5] + WORDS, size=n_words))

    passages = [text(6) for _ in range(20)] + [
        'a "cat',
        "the cat\nsat",
        "the  mat\n\non the\n\nmat",
    ]
    scenes = [
        {"activity_label": text(1), "ctx_a": text(5), "ctx_b": text(i % 3), "label": i % 4}
        | {"endings": [f"the {text(n)}" for n in random.integers(1, 8, size=4)]}
        for i in range(20)
    ]
    labels = [list("ABCD"), list("1234"), list("ABC"), list("ABCDE")]
    questions = [
        {"question": text(7), "choices": {"text": [text(n + 1) for n in range(len(own))]}}
        | {"answerKey": own[i % len(own)]}
        for i, own in enumerate(labels * 4)
    ]
    for question, own in zip(questions, labels * 4, strict=True):
        question["choices"]["label"] = own
    goals = [
        {"goal": text(5), "sol1": text(4), "sol2": text(i % 5 + 1), "label": i % 2}
        for i in range(16)
    ]
    pairs = {
        f"blimp/{name}.jsonl": json_lines(
            {"sentence_good": text(i % 4 + 2), "sentence_bad": text(i % 3 + 3)}
            | {"UID": name, "linguistics_term": "islands"}
            for i in range(8)
        )
        for name in PARADIGMS
    }
    page = ' = The mat = \n \n The cat \'s " naïve " mat , 2 @,@ 000 ( or N ) @-@ old . \n \n'
    section = " = = On it = = \n \n the dog sat on the mat ; the cat ' s end ' : 5 ° \n \n"
    return {
        "lambada_test.jsonl": json_lines({"text": passage} for passage in passages),
        "lambada_test_plain_text.txt": "".join(p.replace("\n", " ") + "\n" for p in passages),
        "hellaswag_val.jsonl": json_lines(scenes),
        "arc_easy_test.jsonl": json_lines(questions),
        "piqa_validation.jsonl": json_lines(goals),
        "wiki.test.raw": " \n" + (page + section * 9) * 3,
    } | pairs


def real_files() -> dict[str, str]:
    """The first lines of the official files, with the same made ones where there is none."""
    files = made_files()
    for name, place in OFFICIAL.items():
        path = SHARED_DATA / place
        if not path.exists():
            pytest.skip(f"needs the official file {place} beside the repository, in shared/data")
        text = path.read_text(encoding="utf-8")
        if name == "wiki.test.raw":
            titles = [match.start() for match in re.finditer(r"(?m)^ = [^=]", text)]
            files[name] = text[: titles[N_REAL_PAGES]]
        else:
            files[name] = "".join(text.splitlines(keepends=True)[:N_REAL_LINES])
    path = SHARED_DATA / "blimp" / "blimp.zip"
    if not path.exists():
        pytest.skip("needs blimp/blimp.zip beside the repository, in shared/data")
    with zipfile.ZipFile(path) as archive:
        for name in PARADIGMS:
            lines = archive.read(f"{name}.jsonl").decode().splitlines(keepends=True)
            files[f"blimp/{name}.jsonl"] = "".join(lines[:N_REAL_LINES])
    return files


def json_lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module", params=[made_files, real_files], ids=["made", "real"])
def directory(request, tmp_path_factory):
    """A directory with a file for each task."""
    directory = tmp_path_factory.mktemp("data")
    (directory / "blimp").mkdir()
    for name, text in request.param().items():
        (directory / name).write_text(text, encoding="utf-8", newline="")
    return directory


MODELS = {
    "gpt2": (tiny.tiny_tokenizer, tiny.tiny_gpt2),
    "llama": (tiny.bos_tokenizer, tiny.tiny_llama),
}


@pytest.fixture(scope="module", params=MODELS)
def scorer(directory, request):
    """A model that has learnt some passages of both files, so that some last words are right.

    The tokenizer of one adds nothing to a text, that of the other a beginning-of-text token.
    """
    make_tokenizer, make_model = MODELS[request.param]
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, n_positions=512)
    texts = read_texts(str(directory / "lambada_test.jsonl"), limit=4)
    texts += read_texts(str(directory / STANDARD.file), limit=4, data=STANDARD)
    rows = [tokenizer(text)["input_ids"] for text in texts]
    longest = max(map(len, rows))
    input_ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    labels = input_ids.masked_fill(input_ids == 0, -100)
    for row_labels, row in zip(labels, rows, strict=True):
        row_labels[: len(row) - 8] = -100  # the last word is enough
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(input_ids=input_ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return CausalScorer(model, tokenizer, batch_tokens=4096)


@pytest.fixture(scope="module")
def harness(directory, scorer):
    """Results and samples of lm-evaluation-harness, by our names of the tasks."""
    lm_eval = pytest.importorskip("lm_eval", reason="needs the extra `eval`")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        found = lm_eval.simple_evaluate(
            HFLM(pretrained=scorer.model, tokenizer=scorer.tokenizer, batch_size=8, device="cpu"),
            tasks=[f"{name}_local" for name in HARNESS_FILES],
            task_manager=TaskManager(include_path=str(TASK_FILES), include_defaults=False),
            bootstrap_iters=0,
        )
    return {
        name: (found["results"][f"{name}_local"], found["samples"][f"{name}_local"])
        for name in HARNESS_FILES
    }


def read_task(name, directory):
    """The task of this name of the harness, from the files."""
    own = {task.protocol: task for task in (HellaswagTask, ArcEasyTask, PiqaTask)}
    if name in own:
        return own[name](own[name].read(str(directory / own[name].data.file), limit=None))
    if name == "wikitext":
        return WikitextTask.from_pages(read_pages(str(directory / WIKITEXT.file), data=WIKITEXT))
    task = LAMBADA_TASKS[name.replace("_openai", "")]
    return task(read_texts(str(directory / task.data.file), limit=None, data=task.data))


@pytest.fixture(scope="module")
def evaluated(directory, scorer):
    """The task of a name and its result, which is made once."""

    @functools.cache
    def evaluate(name):
        task = read_task(name, directory)
        return task, task.evaluate(scorer)

    return evaluate


@pytest.mark.gate
@pytest.mark.parametrize("name", ["lambada_openai", "lambada_standard"])
def test_last_words_score_as_in_lm_evaluation_harness(name, evaluated, harness):
    expected, samples = harness[name]
    _, found = evaluated(name)
    samples = [sample["filtered_resps"][0] for sample in samples]
    assert found.samples["acc"].tolist() == [float(greedy) for _, greedy in samples]
    assert 0 < found.estimates["acc"].value < 1
    np.testing.assert_allclose(
        found.samples["perplexity"], [-nats for nats, _ in samples], atol=1e-4, rtol=1e-6
    )
    assert found.estimates["acc"].value == expected["acc,none"]
    assert found.estimates["perplexity"].value == pytest.approx(expected["perplexity,none"])


@pytest.mark.gate
def test_pages_score_as_in_lm_evaluation_harness(evaluated, harness):
    expected, samples = harness["wikitext"]
    _, found = evaluated("wikitext")
    assert found.n_samples == len(samples) > 1
    np.testing.assert_allclose(
        found.samples["word_perplexity"],
        [-sample["filtered_resps"][0] for sample in samples],
        rtol=1e-5,
    )
    for metric in WikitextTask.metrics:
        assert found.estimates[metric].value == pytest.approx(expected[f"{metric},none"], rel=1e-5)


@pytest.mark.gate
@pytest.mark.parametrize("name", ["hellaswag", "arc_easy", "piqa"])
def test_answers_score_as_in_lm_evaluation_harness(name, scorer, evaluated, harness):
    expected, samples = harness[name]
    task, found = evaluated(name)
    for metric in ("acc", "acc_norm"):
        assert found.samples[metric].tolist() == [sample[metric] for sample in samples]
        assert found.estimates[metric].value == expected[f"{metric},none"]
    pairs = [(q.context, " " + answer) for q in task.questions for answer in q.answers]
    answers = [answer for sample in samples for answer in sample["filtered_resps"]]
    scores = scorer.score_continuations(pairs)
    np.testing.assert_allclose(scores.log_probs, [nats for nats, _ in answers], atol=1e-4)
    assert scores.is_greedy.tolist() == [greedy for _, greedy in answers]


@pytest.mark.gate
def test_minimal_pairs_score_as_in_lm_evaluation_harness(directory, scorer, harness):
    task = BlimpTask.load(Selection(data_dir=str(directory)))
    expected, samples = harness["blimp"]
    found = task.evaluate(scorer)
    # The harness reads one file after the other.
    docs = [sample["doc"] for sample in samples]
    places = [(doc["sentence_good"], doc["sentence_bad"]) for doc in docs]
    own = [samples[places.index(pair.answers)] for pair in task.questions]
    assert len(samples) == len(task.questions) >= 24 and found.details["n_ties"] == 0
    assert found.samples["acc"].tolist() == [sample["acc"] for sample in own]
    assert 0 < found.estimates["acc"].value == expected["acc,none"] < 1
    nats = [[nats for nats, _ in sample["filtered_resps"]] for sample in own]
    np.testing.assert_allclose([[n for n, _ in r] for r in found.responses], nats, atol=1e-4)


def log_of_harness(samples, directory):
    """Rows of the file that lm-evaluation-harness writes of these samples."""
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(directory))
    tracker.general_config_tracker.model_name_sanitized, tracker.date_id = "model", "today"
    tracker.save_results_samples("task", copy.deepcopy(samples))
    path = directory / "model" / "samples_task_today.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.gate
@pytest.mark.parametrize("name", [name for name in HARNESS_FILES if name != "blimp"])
@pytest.mark.parametrize("is_from_cache", [False, True])
def test_samples_are_logged_as_in_lm_evaluation_harness(
    name, is_from_cache, evaluated, harness, tmp_path
):
    task, result = evaluated(name)
    if is_from_cache:
        cache = ResultCache(tmp_path / "cache")
        cache.write({}, Measurement(result), {})
        result = cache.read({})[0].result
    cells = {name: Measurement(result)}
    write_samples(tmp_path, ModelMeasurements("model", tasks=cells), {name: task}, "today")
    path = tmp_path / f"samples_{name}_today.jsonl"
    ours = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    theirs = log_of_harness(harness[name][1], tmp_path)
    assert len(ours) == len(theirs)
    same = ["doc_id", "target", "arguments", "filter", "prompt_hash", "target_hash"]
    if name.startswith("lambada"):  # elsewhere the sample is what the task made of it
        same += ["doc", "doc_hash"]
    for row, expected in zip(ours, theirs, strict=True):
        assert set(row) == set(expected) | {"task_hash"}
        assert {key: row[key] for key in same} == {key: expected[key] for key in same}
        assert sorted(row["metrics"]) == sorted(expected["metrics"])
        assert shape_of(row["resps"]) == shape_of(expected["resps"])
        for key in ("resps", "filtered_resps", *row["metrics"]):
            found, right = leaves_of(row[key]), leaves_of(expected[key])
            assert found == pytest.approx(right, abs=1e-3, rel=1e-5), key


def shape_of(value):
    """Nested lists with the kind of what is in them: text of a number, or True or False."""
    if isinstance(value, list):
        return [shape_of(part) for part in value]
    return value if value in ("True", "False") else type(value)


def leaves_of(value):
    """All numbers in nested lists, those of texts among them."""
    if isinstance(value, list):
        return [leaf for part in value for leaf in leaves_of(part)]
    return [float(value == "True") if value in ("True", "False") else float(value)]


@pytest.mark.parametrize("name", list(HARNESS_FILES))
def test_a_task_file_differs_from_the_harness_in_its_data_alone(name):
    lm_eval = pytest.importorskip("lm_eval", reason="needs the extra `eval`")
    (package,) = lm_eval.__path__

    class Loader(yaml.SafeLoader):
        """Reads `!function file.name` as the name."""

    Loader.add_constructor("!function", lambda _, node: node.value.rpartition(".")[2])
    ours, theirs = (
        yaml.load(path.read_text(), Loader)
        for path in (TASK_FILES / f"{name}_local.yaml", Path(package, "tasks", HARNESS_FILES[name]))
    )
    assert ours.pop("task") == f"{name}_local"
    data_keys = ("dataset_path", "dataset_kwargs", "custom_dataset")
    for key in (*data_keys, "test_split", "validation_split"):
        ours.pop(key, None)
    if name == "wikitext":
        assert ours.pop("process_docs") == "wikitext_pages"  # the data set has pages already
    assert ours == {key: theirs[key] for key in ours}
    assert set(theirs) - set(ours) <= {
        *("task", "tag", "dataset_path", "dataset_name"),
        *("training_split", "validation_split", "test_split"),
        *("should_decontaminate", "doc_to_decontamination_query"),
    }
