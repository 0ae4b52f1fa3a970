"""`comparison.html`: one file with every number and sample, that takes no text for HTML."""

import json
import re

import numpy as np
import pytest
from support.browser.html_pages import HOSTILE, Page, in_chromium

from modeling_gpt2scratch.evaluation import CompareConfig
from modeling_gpt2scratch.evaluation.report import Comparison, report
from modeling_gpt2scratch.evaluation.results import comparison_page
from modeling_gpt2scratch.evaluation.results.measurements import Measurement, ModelMeasurements
from modeling_gpt2scratch.evaluation.tasks.lambada import TASKS as LAMBADA_TASKS
from modeling_gpt2scratch.evaluation.tasks.multiple_choice import Question
from modeling_gpt2scratch.evaluation.tasks.piqa import PiqaTask
from modeling_gpt2scratch.evaluation.tasks.task import Estimate, TaskResult

TEXTS = [f"passage {number} ends with word{number}" for number in range(20)]
TEXTS[3] = f"{HOSTILE} ends with it"
RIGHT = {"runs/a": [1, 0, 0, 1] * 5, "runs/b": [1, 1, 1, 1, 0] * 4, "gone": None}


def result(right: list[int], nats: float) -> TaskResult:
    estimates = {"acc": Estimate(float(np.mean(right)), 0.1)}
    estimates["perplexity"] = Estimate(float(np.exp(nats)), None)
    samples = {"acc": np.array(right, float), "perplexity": np.full(len(right), nats)}
    return TaskResult(len(right), estimates, {}, samples)


def model(name: str, right: list[int] | None) -> ModelMeasurements:
    if right is None:
        cells = {task: Measurement(error=HOSTILE) for task in ("lambada", "piqa")}
        return ModelMeasurements(name, tasks=cells)
    answers = TaskResult(1, {"acc": Estimate(1.0, None)}, {}, {"acc": np.ones(1)})
    cells = {"lambada": result(right, 2.0 + sum(right) / 20), "piqa": answers}
    return ModelMeasurements(
        name, tasks={task: Measurement(result) for task, result in cells.items()}
    )


def test_of_a_long_sample_the_end_is_shown():
    text = "".join(f"{number} " for number in range(999))
    shown = comparison_page._end(text)
    assert shown[:2] == "… " and text.endswith(shown[2:]) and len(shown) == 1_002


@pytest.fixture
def comparison(tmp_path):
    """Writes a comparison of three models, one of which could not be measured."""

    def write(**options):
        place = tmp_path / "lambada_test.jsonl"
        place.touch()
        config = CompareConfig(
            models=list(RIGHT),
            tasks=["lambada", "piqa"],
            lambada_data=str(place),
            piqa_data=str(place),
            output_dir=str(tmp_path),
            **options,
        )
        tasks = {"lambada": LAMBADA_TASKS["lambada"](TEXTS)}
        tasks["piqa"] = PiqaTask([Question("the cat", ("sat", "on"), 1)])
        models = [model(*item) for item in RIGHT.items()]
        assert report(config, Comparison(models, tasks, True), tmp_path, 1.0)
        return tmp_path / "comparison.html"

    return write


@pytest.fixture
def path(comparison):
    return comparison(log_samples=True)


def rows_of(found: Page) -> list[list]:
    return json.loads(re.search(r"\[\[.*\]\]", found.scripts)[0])


def test_the_page_is_one_file_with_the_data_and_without_addresses(path):
    page = path.read_bytes()
    found = Page(page)
    assert found.addresses == []
    assert "default-src 'none'" in page.decode()
    for text in ("0.5000 ± 0.1000", "0.8000 ± 0.1000 (+0.3000, p = ", "± is one standard error."):
        assert text in found.text
    assert "gpt2, lm-evaluation-harness (published)" in found.text
    # Alone right: b in two of each four that a has wrong, and so on.
    only_b = sum(b > a for a, b in zip(RIGHT["runs/a"], RIGHT["runs/b"], strict=True))
    only_a = sum(a > b for a, b in zip(RIGHT["runs/a"], RIGHT["runs/b"], strict=True))
    (about,) = [title for title in found.titles if "McNemar" in title and "lambada" in title]
    assert about.startswith("lambada_openai v")
    assert f"20 passages; exact McNemar test: right here alone {only_b}, in the baseline" in about
    assert f"alone {only_a}; p = " in about and about.endswith("by Holm's method")


def test_every_sample_is_there_with_what_each_model_made_of_it(path):
    rows = rows_of(Page(path.read_bytes()))
    assert len(rows) == len(TEXTS) + 1
    assert rows[1] == ["lambada", 1, TEXTS[1], "word1", "wrong", "right", "–"]
    assert rows[3] == ["lambada", 3, TEXTS[3], "it", "right", "right", "–"]
    assert rows[-1] == ["piqa", 0, "the cat\n– sat\n– on", "on", "right", "right", "–"]


def test_text_that_looks_like_html_is_shown_as_text(path):
    found = Page(path.read_bytes())
    assert "img" not in found.elements and found.elements.count("script") == 2
    assert f"error [1]: {HOSTILE}" in found.text
    assert "<script>alert" not in found.scripts and "<img src=//x" not in found.scripts


def test_samples_that_were_not_logged_are_not_there(comparison):
    page = comparison().read_bytes()
    assert b"passage 1" not in page and b"samples-data" in page  # in the script alone


@pytest.mark.gate
def test_a_browser_sorts_filters_and_searches(path):
    with in_chromium(path) as browser:

        def wait_for(place: str, text: str) -> None:
            browser.locator(place, has_text=re.compile(text)).wait_for()

        def choose(column: int, value: str) -> None:
            """Shows only the samples with this value in a column."""
            head = browser.locator("#samples thead th").nth(column)
            head.locator(".dtcc-button_dropdown").click()
            dialog = browser.get_by_role("dialog")
            dialog.get_by_role("button", name=value, exact=True).click()
            browser.keyboard.press("Escape")

        first = "#scores tbody tr:first-child td:first-child"
        accuracy = browser.locator(".dt-scroll-head th", has_text="lambadaacc")
        wait_for(first, "^a$")
        names = browser.locator("#scores tbody td:first-child")
        accuracy.click()
        wait_for(first, "published")  # gpt2's 0.3256
        assert [n for n in names.all_text_contents() if n in ("a", "b", "gone")] == [
            "a",
            "b",
            "gone",
        ]
        accuracy.click()
        wait_for(first, "^b$")
        assert [n for n in names.all_text_contents() if n in ("a", "b", "gone")] == [
            "b",
            "a",
            "gone",
        ]
        wait_for("#samples_info", "of 21 entries")
        choose(0, "lambada")
        wait_for("#samples_info", "of 20 entries")
        choose(4, "wrong")
        choose(5, "right")
        only_b = sum(b > a for a, b in zip(RIGHT["runs/a"], RIGHT["runs/b"], strict=True))
        wait_for("#samples_info", f"of {only_b} entries")
        search = browser.locator("#samples_wrapper .dt-search input")
        search.fill("word17")
        wait_for("#samples_info", "of 1 entry")
        wait_for("#samples tbody", re.escape(TEXTS[17]))
        search.fill("alert(1)")
        wait_for("#samples_info", "of 0 entries")
        choose(4, "wrong")  # which takes it back
        wait_for("#samples_info", "of 1 entry")
        assert HOSTILE in browser.locator("#samples tbody").text_content()
