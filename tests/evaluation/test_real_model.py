"""A really trained model scores as in lm-evaluation-harness, decision by decision.

A few samples of each benchmark; REAL_SAMPLES=100 takes 100 passages, 50 scenes and 10 questions.
"""

import os
import re

import numpy as np
import pytest
import torch
from support.paths import REPOSITORY, SHARED_DATA
from support.real.model import load_real_model, missing_package
from support.real.questions import BOOKS, official_text, practice_questions

from modeling_gpt2scratch.evaluation.scoring.encoding import encode_document
from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer
from modeling_gpt2scratch.evaluation.tasks.registry import TASKS
from modeling_gpt2scratch.evaluation.tasks.samples import Selection

pytestmark = [pytest.mark.gate, pytest.mark.slow]

N_PASSAGES = int(os.environ.get("REAL_SAMPLES", "4"))
N_SCENES, N_QUESTIONS = max(1, N_PASSAGES // 2), max(1, N_PASSAGES // 10)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-4}  # of log-likelihoods, in nats
PAGE = "New York State Route 31B"  # the shortest of WikiText's test set
HARNESS_TASKS = {
    "lambada": "lambada_openai_local",
    "hellaswag": "hellaswag_local",
    "cbt-cn": "cbt_local",
    "wikitext": "wikitext_local",
}
SOURCES = {
    "lambada_test.jsonl": SHARED_DATA / "lambada" / "lambada_test.jsonl",
    "hellaswag_val.jsonl": SHARED_DATA / "hellaswag" / "hellaswag_val_subset_official_format.jsonl",
    "wiki.test.raw": SHARED_DATA / "wikitext2_raw" / "wiki.test.raw",
    "cbtest_CN_valid_2000ex.txt": BOOKS,
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A few samples of each benchmark, under the names of the official files."""
    for path in SOURCES.values():
        if not path.exists():
            pytest.skip(f"needs {path.relative_to(SHARED_DATA)} in shared/data")
    texts = {name: path.read_text(encoding="utf-8") for name, path in SOURCES.items()}
    for name, n_lines in (("lambada_test.jsonl", N_PASSAGES), ("hellaswag_val.jsonl", N_SCENES)):
        texts[name] = "".join(texts[name].splitlines(keepends=True)[:n_lines])
    (page,) = re.findall(rf"(?ms)^ = {PAGE} = \n.*?(?=^ = [^=])", texts["wiki.test.raw"])
    texts["wiki.test.raw"] = " \n" + page
    questions = sorted(practice_questions(40), key=lambda question: len(str(question)))
    texts["cbtest_CN_valid_2000ex.txt"] = official_text(questions[:N_QUESTIONS])
    directory = tmp_path_factory.mktemp("data")
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8", newline="")
    return directory


@pytest.fixture(scope="module")
def real_scorer():
    if (name := missing_package()) is not None:
        pytest.skip(f"needs {name}: tests/support/real/model.py says how to install it")
    return CausalScorer(*load_real_model(), batch_tokens="auto")


@pytest.fixture(scope="module")
def harness(directory, real_scorer):
    """The samples of lm-evaluation-harness, by our names of the tasks."""
    lm_eval = pytest.importorskip("lm_eval", reason="needs the extra `eval`")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tokenizer = real_scorer.tokenizer
    model = HFLM(pretrained=real_scorer.model, tokenizer=tokenizer, batch_size=4, device="cpu")
    files = str(REPOSITORY / "evaluate" / "lm_eval_tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        found = lm_eval.simple_evaluate(
            model,
            tasks=list(HARNESS_TASKS.values()),
            task_manager=TaskManager(include_path=files, include_defaults=False),
            bootstrap_iters=0,
        )
    return {
        name: sorted(found["samples"][own], key=lambda sample: sample["doc_id"])
        for name, own in HARNESS_TASKS.items()
    }


@pytest.mark.parametrize("name", ["lambada", "hellaswag", "cbt-cn"])
def test_a_trained_model_decides_as_in_lm_evaluation_harness(name, directory, real_scorer, harness):
    result = TASKS[name].load(Selection(data_dir=str(directory))).evaluate(real_scorer)
    samples = harness[name]
    assert result.n_samples == len(samples) > 0
    for metric in set(result.samples) - {"perplexity"}:
        assert result.samples[metric].tolist() == [float(sample[metric]) for sample in samples]
    if name == "lambada":
        ours = -result.samples["perplexity"]
    else:
        ours = [nats for answers in result.responses for nats, _ in answers]
    theirs = [nats for sample in samples for nats, _ in sample["filtered_resps"]]
    np.testing.assert_allclose(ours, theirs, **TOLERANCE)


def test_a_page_has_the_log_likelihood_of_float64(directory, real_scorer, harness):
    task = TASKS["wikitext"].load(Selection(data_dir=str(directory)))
    (page,), (sample,) = task.documents, harness["wikitext"]
    ids = torch.tensor([encode_document(real_scorer.tokenizer, page.text)])
    with torch.no_grad():
        logits = real_scorer.model(ids[:, :-1]).logits[0]
    exact = logits.double().log_softmax(-1).gather(1, ids[0, 1:, None]).sum().item()
    (ours,) = -task.evaluate(real_scorer).samples["word_perplexity"]
    (theirs,) = sample["filtered_resps"]
    # The harness adds 49,152 exponentials in float32, and its page is off by more than ours.
    assert abs(ours - exact) <= 1e-6 * abs(exact)
    np.testing.assert_allclose(theirs, exact, **TOLERANCE)
