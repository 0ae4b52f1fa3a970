"""`.ci/clients`: its driver, its comparison, and what belongs to each client."""

import re
import subprocess
import sys
from datetime import date
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support.paths import REPOSITORY

FOLDER = REPOSITORY / ".ci" / "client_checks"
EXPECTED = {"tokens": [[1, 2, 3], [4, 5, 6]], "nll": [1.0, 2.0], "n_new": 3}


@pytest.fixture(autouse=True)
def path(monkeypatch):
    """Where the modules of the checks are found."""
    monkeypatch.syspath_prepend(REPOSITORY / ".ci")


@pytest.fixture
def comparison():
    return import_module("client_checks.comparison")


@pytest.fixture
def driver():
    return import_module("client_checks.__main__")


def test_a_client_that_is_not_known_is_one_line():
    command = [REPOSITORY / ".ci" / "clients", "peft", "ollama"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr == (
        ".ci/clients: error: expected clients among vllm, llama.cpp, ctranslate2, onnxruntime, "
        "torchao, serve, transformer-lens, nnsight, peft, trl, found ollama\n"
    )


def test_equal_tokens_are_counted(comparison):
    same = comparison.Answer([[1, 2, 3], [4, 5, 6]])
    assert comparison.verdict_on(EXPECTED, same) == "equal, 2 of 2"
    scored = comparison.Answer(same.tokens, [1.0, 2.00004], "8 layers in int8")
    assert comparison.verdict_on(EXPECTED, scored) == (
        "equal, 2 of 2; NLL within 1e-04; 8 layers in int8"
    )


@pytest.mark.parametrize(("found", "place"), [([4, 9, 6], 2), ([4, 5], 3), ([4, 5, 6, 7], 4)])
def test_the_first_token_that_differs_is_named(comparison, found, place):
    answer = comparison.Answer([[1, 2, 3], found])
    assert comparison.verdict_on(EXPECTED, answer) == (
        f"1 of 2 equal; prompt 2 differs from token {place} on"
    )


def test_a_form_that_a_client_said_nothing_of_has_no_result(comparison):
    verdicts = {"gpt2": "equal, 4 of 4"}
    assert comparison.complete(verdicts) == {"run": "no result", "gpt2": "equal, 4 of 4"}


def test_what_a_client_refuses_is_quoted_in_one_cell(comparison, monkeypatch, tmp_path, capsys):
    def answer(directory, expected):
        if directory.name == "run":
            raise ValueError(f"{directory}: unknown\n| model")
        return comparison.Answer(expected["tokens"])

    (tmp_path / "expected.json").write_text('{"tokens": [[1]]}')
    monkeypatch.setattr(sys, "argv", ["client", str(tmp_path)])
    comparison.check(answer)
    assert capsys.readouterr().out == (
        '{"run": "refused: ValueError: run: unknown / model", "gpt2": "equal, 1 of 1"}\n'
    )


def test_every_client_has_a_module_and_every_module_a_row(driver):
    modules = {driver.module_of(name).removeprefix("client_checks.") for name in driver.CLIENTS}
    of_the_driver = {"__init__", "__main__", "causal_lm", "comparison", "forms", "page"}
    assert {file.stem for file in FOLDER.glob("*.py")} == modules | of_the_driver
    page = driver.PAGE.read_text(encoding="utf-8")
    for name, client in driver.CLIENTS.items():
        row = {"client": name, "title": client.title, "versions": "1"}
        row |= {"run": "equal, 4 of 4", "gpt2": "refused: no"}
        lines = driver.with_row(page, row, date(2026, 1, 2)).splitlines()
        assert lines.count(f"| {client.title} | yes | no | 1 |") == 1
        entry = (
            f"- **{client.title}** (2026-01-02). The run: equal, 4 of 4. Stock `gpt2`: refused: no."
        )
        assert lines.count(entry) == 1
        assert driver.with_row("\n".join(lines) + "\n", row, date(2026, 1, 2)).splitlines() == lines
    other = row | {"client": "ollama", "title": "Ollama"}
    with pytest.raises(ValueError, match="expected one row of ollama, found 0"):
        driver.with_row(page, other, date(2026, 1, 2))


def test_a_verdict_is_one_word_in_the_table_and_whole_in_the_list():
    page = import_module("client_checks.page")
    for verdict, word in (
        ("equal, 4 of 4; NLL within 1e-06", "yes"),
        ("equal, 4 of 4; converts only with a patch", "see note"),
        ("3 of 4 equal; prompt 3 differs from token 10 on", "see note"),
        ("refused: ValueError: unknown", "no"),
        ("no result: ERROR: no such version", "no result"),
    ):
        assert page.in_a_word(verdict) == word
    row = {"title": "Client", "run": "equal, 4 of 4", "gpt2": "equal, 4 of 4"}
    assert page.answer(row, date(2026, 1, 2)) == "- **Client** (2026-01-02). Both: equal, 4 of 4.\n"
    entry = page.answer(row | {"gpt2": "refused: " + "a b " * 60}, date(2026, 1, 2))
    assert max(map(len, entry.splitlines())) <= page.WIDTH and "\n  " in entry


def test_a_client_that_cannot_be_installed_is_a_row(driver, monkeypatch, tmp_path):
    def failing(command, **_):
        raise subprocess.CalledProcessError(1, "pip", stderr="first\nERROR: no such version\n")

    monkeypatch.setattr(driver.venv, "create", lambda *_, **__: None)
    monkeypatch.setattr(driver, "run", failing)
    client = driver.CLIENTS["peft"]
    assert driver.check(client, "client_checks.peft", tmp_path, tmp_path) == (
        "",
        dict.fromkeys(("run", "gpt2"), "no result: ERROR: no such version"),
    )


def test_the_constraints_parse_and_name_what_the_clients_need(driver):
    lines = driver.CONSTRAINTS.read_text().splitlines()
    pinned = {Requirement(line).name for line in lines if not line.startswith("#")}
    packages = {name for client in driver.CLIENTS.values() for name in client.packages}
    ours = {"-e", f"{REPOSITORY}[serve]"}
    assert packages - ours <= pinned
    assert all(re.search(r"[=<]=\d", line) for line in lines if not line.startswith("#"))
    npm = [package for client in driver.CLIENTS.values() for package in client.npm]
    assert npm and all(re.search(r".@\d+\.\d+", package) for package in npm)


def test_the_run_of_a_client_is_the_last_checkpoint(monkeypatch, tmp_path):
    forms = import_module("client_checks.forms")
    commands = []
    monkeypatch.setattr(forms.subprocess, "run", lambda command, **_: commands.append(command))
    monkeypatch.setattr(forms, "expected_of", lambda run: {"run": str(run)})
    forms.make_forms(tmp_path)
    _, train, convert = commands
    last = train[train.index("--max_steps") + 1]
    assert train[train.index("--save_every") + 1] == last
    output = Path(train[train.index("--output_dir") + 1])
    assert (tmp_path / "run").resolve() == output / f"checkpoint-{last}"
    assert str(tmp_path / "run") in convert


def test_every_example_is_run_by_a_client_and_shown_on_a_page():
    clients = "".join(file.read_text() for file in FOLDER.glob("*.py"))
    pages = "".join(page.read_text() for page in (REPOSITORY / "docs").rglob("*.md"))
    examples = {file.name for file in (REPOSITORY / "docs" / "examples").glob("*.py")}
    assert {"attention_heads.py", "patch_activation.py", "to_gguf.py"} <= examples
    for name in examples:
        assert f'"{name}"' in clients and f"\ndocs/examples/{name}\n" in pages


def test_the_gate_does_not_run_the_clients():
    assert "clients" not in Path(REPOSITORY / ".ci" / "run").read_text()
