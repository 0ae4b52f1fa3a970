"""Notebooks: clean as they are committed; that of the first hour is run as a reader would."""

import base64
import json
import re

import nbformat
import pytest
from nbclient import NotebookClient
from support.paths import REPOSITORY

NOTEBOOK = REPOSITORY / "docs" / "notebooks" / "first_hour.ipynb"
CHECKPOINT, RUN = "first_hour/run/checkpoint-250", "first_hour/run"


def read(path=NOTEBOOK):
    return nbformat.read(path, as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", sorted(NOTEBOOK.parent.glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_committed_notebook_is_valid_and_without_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in code_of(notebook):
        assert (cell.outputs, cell.execution_count) == ([], None)
        assert len(cell.source.splitlines()) <= 40


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """The notebook with its outputs, run in an empty directory by a kernel of this environment."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "work").mkdir()
    place = {"metadata": {"path": str(tmp_path / "work")}}
    client = NotebookClient(read(), timeout=900, kernel_name="python3", resources=place)
    return client.execute()


def printed(cell):
    """What a cell wrote to the standard output."""
    return "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")


def shown(notebook, kind):
    """What cells displayed of a kind, such as image/png."""
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


@pytest.mark.gate
def test_the_notebook_learns_its_stories_and_makes_a_repository_of_the_run(executed, tmp_path):
    work = tmp_path / "work"
    assert [path.name for path in work.iterdir()] == ["first_hour"]
    text = "".join(printed(cell) for cell in code_of(executed))
    best = float(re.search(r"at best (\d\.\d+) bits per byte", text)[1])
    ratios = dict(re.findall(r"^(\S+): \d\.\d+ bits per byte, (\d\.\d+) times", text, re.MULTILINE))
    assert 1 < float(ratios[RUN]) < float(ratios[CHECKPOINT])
    assert float(ratios[RUN]) < 1.5
    assert "the difference from checkpoint-250 (for perplexities, the ratio); p from" in text
    assert text.count("(new)") + text.count("(from the text)") == 3

    # The same windows, by the loop of the training and by the comparison.
    (row,) = re.findall(r"\| val .*\| loss .*\|", text)
    lines = (work / RUN / "metrics.jsonl").read_text().splitlines()
    losses = [row["eval_loss"] for row in map(json.loads, lines) if "eval_loss" in row]
    assert float(row.split("|")[6].split("±")[0]) == pytest.approx(losses[-1], abs=1e-3)
    results = json.loads((work / RUN / "results.json").read_text())["models"][RUN]["results"]
    found = results["val"]["bits_per_byte,none"]
    assert found / best == pytest.approx(float(ratios[RUN]), abs=0.02)

    (picture,) = shown(executed, "image/png")
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    (card,) = shown(executed, "text/markdown")
    assert f"{found:.4f}" in card
    hub = {path.name for path in (work / "first_hour" / "hub").iterdir()}
    assert hub >= {"README.md", "config.json", "model.safetensors", "loss.png", "results.json"}
