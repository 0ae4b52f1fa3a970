"""Files that are not what a task reads are named, with what they hold."""

import json

import pytest
from support.damaged_files import LFS_POINTER

from modeling_gpt2scratch.evaluation.tasks.arc_easy import ArcEasyTask
from modeling_gpt2scratch.evaluation.tasks.cbt import TASKS as CLOZE_TASKS
from modeling_gpt2scratch.evaluation.tasks.lambada import OPENAI, STANDARD, read_texts
from modeling_gpt2scratch.evaluation.tasks.local_text import LocalTextTask
from modeling_gpt2scratch.evaluation.tasks.paper_corpora import TASKS as PAPER_TASKS
from modeling_gpt2scratch.evaluation.tasks.piqa import PiqaTask
from modeling_gpt2scratch.evaluation.tasks.samples import Selection
from modeling_gpt2scratch.evaluation.tasks.wikitext import WikitextTask

PAGE = b"<!DOCTYPE html>\n<html>the cat sat</html>\n"
CLOZE = {"sentences": ["a"] * 20, "question": "a XXXXX", "answer": "k"}
ARC = {"question": "q", "answerKey": "A"}


@pytest.mark.parametrize("content", [LFS_POINTER, PAGE], ids=["pointer", "page"])
@pytest.mark.parametrize(
    "task",
    [*(PAPER_TASKS[name] for name in ("ptb", "1bw", "enwik8")), WikitextTask, PiqaTask],
    ids=lambda task: task.data.argument,
)
def test_what_came_in_place_of_a_file_is_not_scored_as_its_text(tmp_path, task, content):
    path = tmp_path / task.data.file
    path.write_bytes(content)
    found = "a Git-LFS pointer; run `git lfs" if content != PAGE else "a web page; download"
    for selection in (Selection(place=str(path)), Selection(data_dir=str(tmp_path))):
        with pytest.raises(ValueError, match=f"{task.data.file}: expected .*, found {found}"):
            task.load(selection)


def test_a_text_of_ones_own_may_be_a_page_and_no_pointer(tmp_path):
    path = tmp_path / "own.txt"
    path.write_bytes(PAGE)
    assert len(LocalTextTask.load(Selection(place=str(path))).documents) == 1
    path.write_bytes(LFS_POINTER)
    with pytest.raises(ValueError, match=r"own\.txt: expected .*, found a Git-LFS pointer"):
        LocalTextTask.load(Selection(place=str(path)))


@pytest.mark.parametrize(
    "name", ["rows.jsonl.gz", "rows.md", "rows.parquet", "rows.csv", "rows.CSV"]
)
def test_a_file_of_another_kind_is_named_and_so_is_one_that_is_not_there(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(FileNotFoundError, match=f"expected a file {path}, found none"):
        read_texts(str(path), limit=None)
    path.write_text('{"text": "the cat"}\n')
    for data in (OPENAI, STANDARD):
        with pytest.raises(ValueError) as caught:
            read_texts(str(path), limit=None, data=data)
        assert str(caught.value) == (
            f"{path}: expected .jsonl, .txt or .zip, found {path.suffix}; unpack or convert it"
        )


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows", "rows.ndjson", "rows.v2"])
def test_json_lines_have_one_of_three_names(tmp_path, name):
    (tmp_path / name).write_text('{"text": "the cat"}\n')
    assert read_texts(str(tmp_path / name), limit=None) == ["the cat"]


@pytest.mark.parametrize("rows", [[{"text": "the cat"}], {"text": "the cat"}])
def test_json_on_several_lines_is_named(tmp_path, rows):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows, indent=2))
    with pytest.raises(ValueError, match="line 1: expected JSON, found the beginning of a longer"):
        read_texts(str(path), limit=None)


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (
            PiqaTask,
            {"goal": "g", "sol1": "a", "sol2": "b", "label": "1"},
            "expected an object with a int `label`, found a `label` of str: '1'",
        ),
        (
            PiqaTask,
            {"goal": "g", "sol1": "a", "sol2": "b", "label": None},
            "found ['goal', 'label', 'sol1', 'sol2'], with null as `label`",
        ),
        *(
            (
                ArcEasyTask,
                ARC | {"choices": choices},
                f"expected `choices` with lists of texts as `text` and `label`, found {choices}",
            )
            for choices in (
                {"text": [1, 2], "label": ["A", "B"]},
                {"text": "ab", "label": "AB"},
                {"text": ["a", "b"]},
            )
        ),
        (
            CLOZE_TASKS["cbt-cn"],
            CLOZE | {"options": ["k", *range(9)]},
            "expected candidates as texts, found ['k', 0, 1, 2, 3, 4, 5, 6, 7, 8]",
        ),
    ],
)
def test_values_of_another_type_are_shown_with_their_line(tmp_path, task, row, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError) as caught:
        task.load(Selection(place=str(path)))
    assert f"{path}, line 1: " in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize("name", ["ptb", "1bw"])
def test_a_text_that_cannot_be_read_is_named_and_the_mark_of_windows_is_no_text(tmp_path, name):
    path, task = tmp_path / "text", PAPER_TASKS[name]
    with pytest.raises(ValueError) as caught:
        task.load(Selection(place=str(path)))
    assert str(caught.value) == f"{path}: expected a file of text, found No such file or directory"
    path.write_bytes("the café\n".encode("latin-1"))
    with pytest.raises(ValueError, match=f"{path}: expected UTF-8, found .*0xe9.*; convert it"):
        task.load(Selection(place=str(path)))
    path.write_bytes("\ufeffthe café\n".encode())
    assert [document.text for document in task.load(Selection(place=str(path))).documents] == [
        "the café\n"
    ]


@pytest.mark.parametrize("name", ["rows.txt", "rows.TXT", "rows.Raw"])
def test_an_ending_counts_in_capitals_too(tmp_path, name):
    path = tmp_path / name
    path.write_text("the cat\n")
    assert read_texts(str(path), limit=None) == ["the cat"]
