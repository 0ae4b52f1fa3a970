"""Tasks are found in three places: this package, other packages, and a directory of yours."""

import json
import os
import sys

import pytest
from support import evaluation as tiny
from support.paths import REPOSITORY
from support.processes import run_process

from modeling_gpt2scratch.api import compare as compare_with
from modeling_gpt2scratch.evaluation.configuration import CompareConfig, arguments_for
from modeling_gpt2scratch.evaluation.results.fingerprints import task_code
from modeling_gpt2scratch.evaluation.tasks.registry import TASKS, TaskError, known_tasks

EXAMPLES = REPOSITORY / "docs" / "examples" / "tasks"
# A distribution as pip leaves it, which declares a module of tasks.
ENTRY_POINTS = "[gpt2scratch.tasks]\nopposites = opposites\n"
METADATA = "Metadata-Version: 2.1\nName: opposites\nVersion: 1.0\n"


def compare(inputs, tmp_path, *arguments):
    """The results that the script writes."""
    assert tiny.compare.main(command_line(inputs, tmp_path, *arguments)) == 0
    return results(inputs, tmp_path)


def command_line(inputs, tmp_path, *arguments):
    model, data = map(str, inputs)
    places = ["--opposites_data", data, "--output_dir", str(tmp_path / "out")]
    return ["--models", model, "--device", "cpu", *places, *arguments]


def results(inputs, tmp_path):
    model, _ = inputs
    return json.loads((tmp_path / "out" / "results.json").read_text())["models"][str(model)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model directory, and a file of questions."""
    directory = tmp_path_factory.mktemp("opposites")
    tokenizer = tiny.tiny_tokenizer()
    tiny.tiny_gpt2(tokenizer).save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    rows = [{"word": "the end", "words": ["cat", "the mat", "a dog"], "answer": i} for i in (0, 2)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "questions.jsonl").write_text(lines)
    return directory / "model", directory / "questions.jsonl"


def test_a_task_of_a_directory_has_arguments_scores_and_files_like_any_other(inputs, tmp_path):
    arguments = ["--tasks", "opposites", "--include_path", str(EXAMPLES)]
    found = compare(inputs, tmp_path, *arguments)
    assert set(found["results"]["opposites"]) >= {"acc,none", "acc_norm,none"}
    assert found["n-samples"]["opposites"]["effective"] == 2
    again = compare(inputs, tmp_path, *arguments)
    assert again["from_cache"] == {"opposites": True}


@pytest.mark.parametrize("way", ["hyphen", "recipe", "python"])
def test_the_directory_of_tasks_may_be_named_in_any_way(inputs, tmp_path, monkeypatch, way):
    if way == "python":
        model, data = map(str, inputs)
        options = {"include_path": str(EXAMPLES), "opposites_data": data, "device": "cpu"}
        compare_with([model], ["opposites"], output_dir=str(tmp_path / "out"), **options)
    else:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(f"include_path: {EXAMPLES}\n")
        arguments = command_line(inputs, tmp_path, "--tasks", "opposites")
        given = ["--include-path", str(EXAMPLES)] if way == "hyphen" else []
        first = [str(recipe)] if way == "recipe" else []
        assert tiny.compare.main([*first, *arguments, *given]) == 0
    assert results(inputs, tmp_path)["n-samples"]["opposites"]["effective"] == 2


def test_a_task_whose_file_was_edited_is_measured_again(inputs, tmp_path):
    (tmp_path / "tasks").mkdir()
    source = (EXAMPLES / "opposites.py").read_text()
    arguments = ["--tasks", "opposites", "--include_path", str(tmp_path / "tasks")]
    hits = []
    for text in (source, source, source.replace("The opposite of", "Not")):
        (tmp_path / "tasks" / "opposites.py").write_text(text)
        hits += compare(inputs, tmp_path, *arguments)["from_cache"].values()
    # A file beside it, which it might use.
    (tmp_path / "tasks" / "helper.py").write_text(text.replace("opposites", "others"))
    hits += compare(inputs, tmp_path, *arguments)["from_cache"].values()
    assert hits == [False, True, False, False]


@pytest.mark.gate
def test_a_task_of_an_installed_package_needs_no_argument(inputs, tmp_path):
    packages = tmp_path / "packages"
    (packages / "opposites-1.0.dist-info").mkdir(parents=True)
    (packages / "opposites-1.0.dist-info" / "METADATA").write_text(METADATA)
    (packages / "opposites-1.0.dist-info" / "entry_points.txt").write_text(ENTRY_POINTS)
    (packages / "opposites.py").write_text((EXAMPLES / "opposites.py").read_text())
    arguments = command_line(inputs, tmp_path, "--tasks", "opposites")
    environment = os.environ | {"PYTHONPATH": str(packages)}
    finished = run_process(
        [sys.executable, "evaluate/compare.py", *arguments], cwd=REPOSITORY, env=environment
    )
    assert finished.returncode == 0, finished.stderr
    found = results(inputs, tmp_path)
    assert found["n-samples"]["opposites"]["effective"] == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 / 0", "own.py: expected a module of tasks, found ZeroDivisionError: division by zero"),
        ("tasks = {}", "own.py: expected a dictionary TASKS of name and class, found None"),
        ("TASKS = {'mine': str}", "own.py: expected protocol of the task 'mine', found none"),
        ("TASKS = {1: str}", "own.py: expected a text other than 'all' as name of a task, found 1"),
        ("TASKS = {'all': str}", "name of a task, found 'all'; rename it"),
        ("TASKS = {'lambada': str}", "own.py: expected a new name for a task, found 'lambada'"),
        (None, "--include_path: expected a directory with .py files, found "),
    ],
)
def test_what_is_no_module_of_tasks_is_refused_by_its_file(tmp_path, content, message):
    if content is not None:
        (tmp_path / "own.py").write_text(content)
    with pytest.raises(TaskError) as caught:
        known_tasks(str(tmp_path))
    assert message in str(caught.value)


def test_only_tasks_of_others_have_code_to_be_watched():
    assert {task_code(kind) for kind in TASKS.values()} == {None}
    assert task_code(known_tasks(str(EXAMPLES))["opposites"]) is not None


def test_every_place_of_data_is_an_argument():
    names = {kind.data.argument for kind in TASKS.values()}
    assert {"val_data", "lambada_data", "cbt_data", "ptb_data"} <= names
    assert names <= set(CompareConfig.__dataclass_fields__)
    own = arguments_for(known_tasks(str(EXAMPLES)))
    assert "opposites_data" in own.__dataclass_fields__


def test_the_arguments_and_the_tasks_need_no_torch():
    code = (
        "import sys, modeling_gpt2scratch.evaluation.configuration\n"
        "print({'torch', 'transformers', 'datasets'} & set(sys.modules))\n"
    )
    process = run_process([sys.executable, "-c", code])
    assert process.stdout == "set()\n", process.stderr


def test_help_names_the_hub_only_where_a_task_reads_it():
    for name, kind in TASKS.items():
        help = kind.data.help
        assert ("Hub" in help) == (kind.data.hub_name is not None), name


def test_help_lists_the_tasks_and_not_their_protocols():
    help = CompareConfig.__dataclass_fields__["tasks"].metadata["help"]
    assert " lambada, lambada_standard, cbt-cn, " in help and "lambada:bos" not in help
    assert help.endswith(", or TASK:PROTOCOL (docs/reference/protocols.md)")


def test_help_names_the_place_of_official_files():
    assert TASKS["ptb"].data.help == ("file or directory [default: ptb.test.txt in --data_dir]")
    assert TASKS["blimp"].data.help == (
        "file, directory or Hub data set [default: blimp.zip in --data_dir; without it, "
        "nyu-mll/blimp]"
    )
