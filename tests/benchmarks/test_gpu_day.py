"""The day on a GPU: its parts, its time limits, its data and its page."""

import importlib
import json
import os
import sys

import pytest
import torch
from support.paths import REPOSITORY
from support.processes import run_process
from support.tiny_corpus import fables, write_jsonl

# Writes a result at once, and then hangs or fails.
PART = """
import json, pathlib, sys, time
name, plan = sys.argv[1], json.loads(sys.argv[2])
path = pathlib.Path(plan["output_dir"], "parts", name + ".json")
path.write_text(json.dumps({"sizes": {"rows": 7}, "contestants": {"ours": {"rows": 8}}}))
if name == "losses":
    time.sleep(600)
raise ValueError("no such device")
"""

# Hides packages that an image for GPUs may lack, from a process and all that it starts.
HIDE = """
import sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {"datasets", "itables", "lm_eval", "plotly", "wandb"}:
            return None
        return PathFinder.find_spec(name, path, target)

sys.meta_path = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.fixture
def scripts(monkeypatch):
    """Imports a module from `benchmarks/`."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module


@pytest.mark.gate
def test_a_smoke_test_runs_every_part_and_writes_the_page(tmp_path):
    """On what such a machine has: without the packages that the day must not need."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(HIDE)
    environment = os.environ | {"PYTHONPATH": str(hidden)}
    assert run_process([sys.executable, "-c", "import plotly"], env=environment).returncode == 1
    command = [sys.executable, "benchmarks/gpu_day.py", "--smoke", "--output_dir", str(tmp_path)]
    process = run_process(command, cwd=REPOSITORY, env=environment)
    assert process.returncode == 0, process.stdout + process.stderr
    parts = json.loads((tmp_path / "gpu_day.json").read_text())["parts"]
    assert all(part["status"] == "finished" for part in parts.values())
    results = {name: part["results"] for name, part in parts.items()}
    tests = results["machine"]["tests"]
    assert tests and tests.keys() <= {"passed", "skipped"}
    for part in ("steps", "larger_steps"):
        assert not results[part].get("problems") and len(results[part]["contestants"]) == 7
    losses = results["losses"]["losses"]
    assert losses["chunked"]["loss"] == pytest.approx(losses["plain"]["loss"], rel=1e-2)
    assert (results["training"]["end"], results["training"]["last_step"]) == ("finished", 6)
    assert all("alias" in scores for scores in results["training"]["scores"].values())
    assert results["scoring"]["scoring"]["hellaswag"]["largest_difference"] < 1e-3
    assert results["scoring"]["scoring"]["cbt-like"]["largest_difference"] < 1e-3
    assert len(results["scoring"]["generation"]) == 3
    page = (tmp_path / "gpu_day.md").read_text()
    assert page.count("\n## ") == len(parts) == 7 and "did not finish" not in page


def test_a_machine_that_lacks_a_package_hears_it_before_the_clock_runs(
    scripts, monkeypatch, tmp_path
):
    gpu_day = scripts("gpu_day")
    monkeypatch.setitem(sys.modules, "tenacity", None)
    command = ["gpu_day.py", "--smoke", "--output_dir", str(tmp_path / "day")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="found no tenacity; `pip download --no-deps tenacity`"):
        gpu_day.main()
    assert not (tmp_path / "day").exists()


@pytest.mark.gate
def test_a_part_that_hangs_or_fails_leaves_what_it_found(scripts, monkeypatch, tmp_path):
    gpu_day = scripts("gpu_day")
    fake = tmp_path / "fake" / "gpu_parts"
    fake.mkdir(parents=True)
    (fake / "__main__.py").write_text(PART)
    monkeypatch.setattr(gpu_day, "HERE", tmp_path / "fake")
    config = gpu_day.GpuDayConfig(
        output_dir=str(tmp_path / "day"), data="d", seconds=12, parts=["losses", "larger_steps"]
    )
    assert not gpu_day.Day(config, tmp_path).run()
    parts = json.loads((tmp_path / "day" / "gpu_day.json").read_text())["parts"]
    assert parts["losses"]["status"] == "ended after 4 s"  # 12 x 20 / (20 + 40)
    assert parts["larger_steps"]["status"] == "failed: ValueError: no such device"
    assert all(part["results"]["sizes"] == {"rows": 7} for part in parts.values())
    page = (tmp_path / "day" / "gpu_day.md").read_text()
    assert "This part did not finish: ended after 4 s." in page
    assert "| ours         | 8      |" in page


def test_a_contestant_that_cannot_be_made_in_time_is_left_out(scripts, monkeypatch, tmp_path):
    steps, plans = scripts("gpu_parts.steps"), scripts("gpu_parts.plan")
    clock, made = [0.0], []

    def largest(entry, *_, **__):
        made.append((entry.kind, entry.is_compiled))
        clock[0] += 31.0 if entry.is_compiled else 1.0
        return entry, 8

    monkeypatch.setattr(plans.time, "time", lambda: clock[0])
    monkeypatch.setattr(steps.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(steps, "largest", largest)
    monkeypatch.setattr(steps, "batches", lambda _: [(torch.zeros(1), torch.zeros(1))])
    monkeypatch.setattr(steps, "speed_of", lambda *_: 1.0)
    plan = plans.Plan(str(tmp_path), "", seconds=105, is_smoke=False, started=0.0)
    record = plans.Record(tmp_path / "steps.json")
    steps.measure(plan, record, "gpt2")
    found = json.loads((tmp_path / "steps.json").read_text())
    # Of 105 s, two compilations of ours leave 43, and 21 are kept for the rounds.
    assert found["problems"] == {
        "plain GPT, AdamW, compiled": "no time: 43 s left, about 24 needed",
        "transformers, AdamW, compiled": "no time: 43 s left, about 24 needed",
    }
    eager = [("ours", False), ("transformers", False), ("ours", False)]
    assert made == [("ours", True), ("ours", True), *eager]
    assert found["rounds"] == steps.ROUNDS and found["contestants"].keys() == found["rows"].keys()


def test_the_day_runs_every_file_of_tests_for_an_accelerator(scripts):
    listed = scripts("gpu_parts.machine").TESTS
    files = [str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("tests/gpu/test_*.py")]
    assert files and set(files) <= set(listed)
    assert all((REPOSITORY / path).is_file() for path in listed)


def test_the_data_keep_to_their_limit_and_are_those_of_the_text(scripts, monkeypatch, tmp_path):
    data = scripts("gpu_parts.data")
    monkeypatch.setattr(data, "BLOCK_BYTES", 15_000)
    text = [str(write_jsonl(tmp_path / f"{n}.jsonl", fables(300, seed=n))) for n in (1, 2)]
    official = tmp_path / "lambada_test.jsonl"
    official.write_text('{"text": "the end"}\n')
    options = {"text": text, "official": [str(official)], "tokenizer": "bytes"}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    n_bytes = data.make_folder(whole, **options, megabytes=45)
    assert n_bytes == data.size_of(whole) < 45e6
    assert (whole / "official" / official.name).read_text() == official.read_text()
    assert list(data.documents_of(str(whole / "text"))) == fables(300, seed=1) + fables(300, seed=2)
    limit = n_bytes - data.size_of(whole / "text") // 3
    assert data.make_folder(cut, **options, megabytes=limit / 1e6) <= limit
    assert 300 <= len(list(data.documents_of(str(cut / "text")))) < 600


def test_a_day_without_data_or_with_an_unknown_part_is_refused(scripts):
    config = scripts("gpu_day").GpuDayConfig
    with pytest.raises(ValueError, match="expected --data, as --make_data writes it, or --smoke"):
        config()
    with pytest.raises(ValueError, match="expected --parts of machine, .*, found step"):
        config(smoke=True, parts=["step"])
