"""Tasks of one's own that do not keep the interface cost their own cell, and no other number."""

import json

import pytest
from support import evaluation as tiny
from support.evaluation import compare

from modeling_gpt2scratch.evaluation.tasks.registry import TaskError, known_tasks

TASK = """
import numpy as np
from modeling_gpt2scratch.evaluation import Estimate, SampleData, TaskResult
from modeling_gpt2scratch.evaluation.tasks.lambada import LambadaTask


class Kept:
    protocol, version, samples, metrics = "kept", 1, "things", {{"acc": True}}
    data = SampleData(argument="kept_data", file="kept.jsonl", hub_name="a/b")
    sha256 = "x"

    @classmethod
    def load(cls, selection):
        return cls()

    def evaluate(self, scorer):
        return TaskResult(1, {{"acc": Estimate(0.25, None)}})


class Own(Kept):
    protocol = "own"
    {change}


TASKS = {{"kept": Kept, "own": Own}}
"""
RETURNS = "evaluate = lambda self, scorer: "


@pytest.fixture
def measure(tmp_path, capsys):
    """Measures the two tasks of a file, and returns results, exit code and output."""

    def measure(change, *options):
        tokenizer = tiny.tiny_tokenizer()
        tiny.tiny_gpt2(tokenizer).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        (tmp_path / "tasks").mkdir()
        (tmp_path / "tasks" / "own.py").write_text(TASK.format(change=change))
        places = ["--models", str(tmp_path / "model"), "--output_dir", str(tmp_path / "out")]
        places += ["--include_path", str(tmp_path / "tasks"), "--device", "cpu"]
        code = compare.main([*places, "--tasks", "own", "kept", *options])
        (model,) = json.loads((tmp_path / "out" / "results.json").read_text())["models"].values()
        assert model["results"]["kept"]["acc,none"] == 0.25
        return model, code, capsys.readouterr()

    return measure


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            RETURNS + "{'acc': 0.5}",
            "expected a TaskResult from evaluate of Own, found dict; return TaskResult(",
        ),
        (RETURNS + "None", "expected a TaskResult from evaluate of Own, found NoneType"),
        ("sha256 = None", "expected a text as sha256 of the data, found None; set it"),
        (
            RETURNS + "TaskResult(1, {'acc': 0.5})",
            "estimates: expected an Estimate for acc, found 0.5; write Estimate(value, stderr)",
        ),
        (
            RETURNS + "TaskResult(1, {'acc': Estimate('0.5', None)})",
            "expected a number as value of an Estimate, found '0.5'",
        ),
        (
            RETURNS + "TaskResult(1, {'acc': Estimate(0.5, None)}, samples={'acc': 0.5})",
            "samples: expected one number of acc for each, found 0.5",
        ),
        (
            RETURNS + "TaskResult(1, {'accuracy': Estimate(0.5, None)})",
            "expected estimates of acc, found accuracy; add it to metrics of Own",
        ),
        (RETURNS + "exit(0)", "SystemExit: 0"),
    ],
)
def test_what_is_no_result_is_an_error_of_its_cell(measure, change, message):
    model, code, output = measure(change)
    assert code == 1 and model["errors"]["own"].startswith(message)
    assert f"error [1]: {message}" in output.out


@pytest.mark.parametrize(
    "change",
    [
        RETURNS + "TaskResult(np.int64(2), {'acc': Estimate(np.float32(0.5), np.float32(0.1))})",
        RETURNS + "TaskResult(2, {'acc': Estimate(0.5, None)}, samples={'acc': [1, 0]})",
        RETURNS
        + "TaskResult(1, {'acc': Estimate(0.5, None)}, responses=[[(np.float32(-1), np.True_)]])",
        RETURNS + "TaskResult(1, {'acc': Estimate(0.5, None)}, {'n': np.int64(3)})",
        "data = SampleData(argument='own_data', file='own.jsonl')",
        "metrics = {'acc': True, 'f1': True}; "
        + RETURNS
        + "TaskResult(1, {'acc': Estimate(0.5, None)})",
    ],
    ids=[
        "numbers of numpy",
        "a list of samples",
        "responses of numpy",
        "a detail of numpy",
        "no file",
        "fewer",
    ],
)
def test_numbers_of_any_kind_and_data_of_no_file_are_taken(measure, change):
    model, code, _ = measure(change)
    assert code == 0
    assert model["results"]["own"]["acc,none"] == (0.25 if "data" in change else 0.5)
    assert (model["configs"]["own"]["dataset_path"] is None) == ("data" in change)


def test_samples_that_do_not_go_together_cost_their_log_alone(measure):
    samples = "{'acc': [1, 0], 'f1': [1]}"
    change = "metrics = {'acc': True, 'f1': True}; " + RETURNS
    change += f"TaskResult(2, {{'acc': Estimate(0.5, None)}}, samples={samples})"
    model, code, output = measure(change, "--log_samples")
    assert code == 0 and model["results"]["own"]["acc,none"] == 0.5
    assert "no samples_own_" in output.err and "shorter than argument" in output.err
    assert "| own " in output.out


def test_fewer_samples_than_passages_cost_log_and_page_their_rows_alone(measure):
    change = """pass


class Own(LambadaTask):
    load = classmethod(lambda cls, selection: cls(["the cat sat", "the dog sat"]))
    evaluate = lambda self, scorer: TaskResult(
        1, {'acc': Estimate(0.5, None)}, samples={'acc': [1]}
    )
"""
    model, code, output = measure(change, "--log_samples")
    assert code == 0 and model["results"]["own"]["acc,none"] == 0.5
    found = [line.split(":")[0] for line in output.err.splitlines() if line.startswith("no ")]
    assert found[0].startswith("no samples_own_")
    assert found[1] == "no samples of own in comparison.html"
    assert "| own " in output.out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "metrics = ['acc']",
            "expected metrics of the task 'own' as a dictionary of name and whether higher is "
            "better, found ['acc']",
        ),
        ("data = None", "expected data of the task 'own' as a SampleData, found None"),
        *(
            (
                f"data = SampleData(argument={name!r}, file='own.jsonl')",
                f"expected letters, digits and _ as argument of the data of the task 'own', found "
                f"{name!r}; rename it",
            )
            for name in ("own-data", "class", "", 3)
        ),
    ],
)
def test_a_class_that_is_no_task_is_refused_before_anything_is_measured(tmp_path, change, message):
    (tmp_path / "own.py").write_text(TASK.format(change=change))
    with pytest.raises(TaskError) as caught:
        known_tasks(str(tmp_path))
    assert str(caught.value) == f"{tmp_path}/own.py: {message}"


@pytest.mark.parametrize("name", ["models", "limit", "help", "kinds", "only_with"])
def test_data_may_not_be_called_like_another_argument(tmp_path, capsys, name):
    change = f"data = SampleData(argument={name!r}, file='own.jsonl')"
    (tmp_path / "own.py").write_text(TASK.format(change=change))
    with pytest.raises(SystemExit) as caught:
        compare.main(["--models", "m", "--tasks", "own", "--include_path", str(tmp_path)])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "task 'own': expected a new name as argument of its data" in line
    assert f"found {name!r}, which has another meaning; rename it" in line
