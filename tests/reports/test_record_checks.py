"""Records that somebody has edited: one line names the file, and what was expected."""

import json

import pytest
from support.run_records import REPOSITORY, add_lambada, write_records

from modeling_gpt2scratch.reports.measured_records import read_records
from modeling_gpt2scratch.reports.records import RecordsError

CHANGES = {
    "environment.json": {
        "processes": ("two", "a number of processes"),
        "device": ([], "a word for device"),
        "devices": ("cpu", "the keys of an environment"),
    },
    "train_config.json": {
        "seed": ([1], "another value of seed"),
        "mixed_precision": ("half", "another value of mixed_precision"),
        "project": (5, "another value of project"),
    },
    "results.json": {
        "baseline": ("nobody", "a baseline of the models"),
        "torch_version": (2, "a word for torch_version"),
        "arguments.limit": ("all", "a whole number for limit"),
        "models.*.versions.val": ("1\n", "a version of val"),
        "models.*.versions": ({}, "versions of val, lambada"),
        "models.*.results.val.alias": ("lambada", "the alias val"),
        "models.*.results.val.loss,none": ("low", "a number for loss,none"),
        "models.*.results.val.loss": (1, "METRIC,none of each number"),
        "models.*.higher_is_better.val": ({}, "true or false in higher_is_better.loss"),
        "models.*.n-samples.val.effective": (3, "3 samples, found 40"),
        "models.*.configs.val.task": ("lambada", "the configuration of val"),
        "models.*.configs.val.metadata": ({"version": 2}, "version 1 of val"),
        "models.*.configs.val.sha256": ("1", "a sha256 of the data of val"),
        "models.*.task_hashes": ({"val": "1" * 64}, "the sha256 None of val"),
        "models.*.model_sha256": ({"config.json": ""}, "a sha256 of config.json"),
        "models.*.n-samples": (None, "results of evaluate/compare.py"),
    },
}
CASES = [(file, *case) for file, cases in CHANGES.items() for case in cases.items()]


@pytest.mark.parametrize(("file", "place", "change"), CASES, ids=lambda case: str(case)[:40])
def test_a_record_that_contradicts_itself_is_one_line(tmp_path, file, place, change):
    run = tmp_path / "run"
    write_records(run)
    add_lambada(run)
    value, expected = change
    content = part = json.loads((run / file).read_text())
    *parents, key = place.split(".")
    for parent in parents:
        part = part[str(run) if parent == "*" else parent]
    part[key] = value
    (run / file).write_text(json.dumps(content))
    with pytest.raises(RecordsError) as refused:
        read_records(run, repository=REPOSITORY, sizes={})
    assert str(refused.value).startswith(f"{run / file}: expected {expected}"), refused.value


def test_an_argument_of_another_version_is_named_and_left_out(tmp_path, capsys):
    run = tmp_path / "run"
    write_records(run)
    arguments = json.loads((run / "train_config.json").read_text())
    (run / "train_config.json").write_text(json.dumps(arguments | {"seeds": 3}))
    assert "seeds" not in read_records(run, repository=REPOSITORY, sizes={}).arguments
    line = f"{run}/train_config.json: expected arguments of this version, found seeds"
    assert line in capsys.readouterr().err
