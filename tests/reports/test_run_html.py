"""`report.html`: one file that leaves nothing out, asks nobody, and takes no text for HTML."""

import json

import pytest
from support.browser.html_pages import HOSTILE, Page, in_chromium

from modeling_gpt2scratch.reports.run_page import write_report

ROWS = [
    {"step": step, "loss": 5.0 - step / 100, "tokens_per_second": 1000.0, "learning_rate": 0.1}
    for step in range(10, 110, 10)
]
ROWS[4] |= {"eval_loss": 4.4321, "sample": HOSTILE}
ROWS[9] |= {"loss": None, "eval_loss": 4.1, "sample": "once\n\nupon"}
EVENTS = [{"step": 50, "event": "spike", "loss": 9.5}, {"step": 70, "event": HOSTILE}]


@pytest.fixture
def run(tmp_path):
    """The directory of a run that has something to say."""
    run = tmp_path / "alice"
    run.mkdir()
    arguments = {"max_steps": 100, "total_batch_tokens": 128, "optimizer": "muon", "seed": 7}
    arguments["output_dir"] = str(run)
    (run / "train_config.json").write_text(json.dumps(arguments))
    (run / "environment.json").write_text(json.dumps({"device": HOSTILE}))
    for name, rows in (("metrics", ROWS), ("events", EVENTS)):
        lines = [json.dumps(row) + "\n" for row in rows]
        (run / f"{name}.jsonl").write_text("".join(lines))
    return run


@pytest.fixture
def page(run):
    write_report(run)
    return (run / "report.html").read_bytes()


def test_the_page_is_one_file_with_the_data_and_without_addresses(page, run):
    found = Page(page)
    assert found.addresses == []
    assert "default-src 'none'" in page.decode()
    assert "alice" not in found.text and str(run.parent).encode() not in page
    assert "Validation loss, best4.1000 nats per token after step 100" in found.text
    assert "optimizermuon" in found.text and "seed7" in found.text
    assert "once\n\nupon" in found.text
    for data in ("4.4321", '"Loss spikes"', "loss 9.5", "tokens per second"):
        assert data in found.scripts
    assert "`report.html`: this report" in (run / "report.md").read_text()


def test_text_that_looks_like_html_is_shown_as_text(page):
    found = Page(page)
    assert found.text.count(HOSTILE) == 2  # the sample and the device
    assert "img" not in found.elements
    assert "alert(1)" in found.scripts  # of the event and the sample, over their points
    assert "<script>alert" not in found.scripts and "<img src=//x" not in found.scripts


@pytest.mark.gate
def test_a_browser_shows_values_and_zooms(page, run):
    with in_chromium(run / "report.html") as browser:
        plot = browser.locator("#curves .nsewdrag").first
        box = plot.bounding_box()
        # Steps 10 to 100: the spike and the sample of step 50.
        left, right = browser.evaluate("document.querySelector('#curves').layout.xaxis.range")
        x = box["x"] + box["width"] * (50 - left) / (right - left)
        middle = box["y"] + box["height"] / 2
        browser.mouse.move(x, middle)
        shown = browser.locator("#curves .hoverlayer .hovertext, #curves .hoverlayer .legend")
        shown.first.wait_for()
        text = browser.locator("#curves .hoverlayer").text_content()
        for part in ("step 50", "training loss : 4.5000", "validation loss : 4.4321", "1,000"):
            assert part in text
        assert "loss 9.5" in text and HOSTILE[:50] in text
        # A drag zooms, and a double click goes back.
        browser.mouse.down()
        browser.mouse.move(x + box["width"] / 4, middle, steps=5)
        browser.mouse.up()
        range_ = "document.querySelector('#curves').layout.xaxis.range"
        browser.wait_for_function(f"{range_}[0] > 45")
        browser.mouse.dblclick(x, middle)
        browser.wait_for_function(f"{range_}[0] < 45")
        buttons = browser.locator(".modebar-btn").evaluate_all("all => all.map(b => b.ariaLabel)")
        assert not any("Share" in button or "Cloud" in button for button in buttons)
        browser.get_by_text("After step 50").click()
        assert browser.locator("details[open] pre").text_content() == HOSTILE
