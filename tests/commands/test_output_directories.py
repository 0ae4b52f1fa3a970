"""Every command that makes a directory harms no other, and says so in one line before it starts."""

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_models import tiny_model
from support.token_directories import CORPUS, before, write_foreign, write_ours
from support.training_runs import SIZES, fresh_state

import prepare_data
import train_accelerate
from modeling_gpt2scratch.__main__ import main as gpt2scratch
from modeling_gpt2scratch.checkpoints.checkpoint import save_model
from modeling_gpt2scratch.common.output_directory import claimed
from modeling_gpt2scratch.training.directory import OutputLock

REPLACEABLE = ("prepare", "train", "to-gpt2", "shards to ours", "shards to llm.c")
COMMANDS = (*REPLACEABLE, "publish", "shards publish")


@dataclasses.dataclass
class Command:
    """A command line of which the output is still open.

    Attributes:
        words: of the command line.
        flag: of the output; a positional argument has none, and stands at the place of None.
        source: what is read.
    """

    main: Callable
    words: list
    source: Path

    def run(self, monkeypatch, capsys, output, *more) -> tuple[int, str]:
        """Exit code, and the lines of errors."""
        words = [str(output if word is None else word) for word in [*self.words, *more]]
        monkeypatch.setattr(sys, "argv", ["program", *words])
        capsys.readouterr()
        code = 0
        try:
            with fresh_state():
                self.main()
        except SystemExit as stop:
            code = stop.code or 0
        errors = capsys.readouterr().err.splitlines()
        if isinstance(code, str):  # which Python prints
            code, errors = 1, [*errors, code]
        return code, "\n".join(line for line in errors if "error:" in line)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The user's files, and the current directory among them."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    return tmp_path


@pytest.fixture
def command(request, home, tokenizer, tokenizer_dir):
    """The command of the test, with small inputs in the user's directory."""
    source = home / "input"
    kind = request.param
    if kind == "prepare":
        source.mkdir()
        (source / "text.txt").write_text("<|endoftext|>".join(CORPUS * 9))
        words = ["--dataset", source, "--output_dir", None, "--tokenizer", tokenizer_dir]
        return Command(prepare_data.main, [*words, "--num_workers", 1], source)
    if kind in ("to-gpt2", "publish"):
        save_model(tiny_model(), tokenizer, source)
        words = ["convert", "to-gpt2", source, None]
        if kind == "publish":
            words = ["publish", "--run", source, "--repository", "me/mine", "--dry_run", None]
        return Command(gpt2scratch, words, source)
    if kind == "shards to ours":
        write_foreign(source, "npy", before(tokenizer, CORPUS), "train")
        words = ["shards", "convert", source, None, "--to", "ours", "--tokenizer", tokenizer_dir]
        return Command(gpt2scratch, words, source)
    write_ours(source, tokenizer, val=CORPUS[:2])
    if kind == "shards to llm.c":
        return Command(gpt2scratch, ["shards", "convert", source, None, "--to", "llm.c"], source)
    if kind == "shards publish":
        words = ["publish", "--data", source, "--repository", "me/mine", "--dry_run", None]
        return Command(gpt2scratch, ["shards", *words], source)
    sizes = SIZES | {"n_positions": 8, "total_batch_tokens": 32, "micro_batch_size": 4}
    sizes |= {"max_steps": 1, "preflight": False, "eval_every": 0}
    del sizes["eval_tokens"]
    flags = [part for name, value in sizes.items() for part in (f"--{name}", value)]
    words = ["--data", source, "--output_dir", None, *flags]
    return Command(train_accelerate.main, words, source)


def of(*kinds):
    return pytest.mark.parametrize("command", kinds, indirect=True)


def contents(directory: Path) -> dict:
    """Everything below a directory, links unresolved."""
    return {
        str(path.relative_to(directory)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in directory.rglob("*")
    }


@of(*COMMANDS)
def test_what_is_no_place_for_a_directory_is_one_line(command, home, monkeypatch, capsys):
    (home / "file").write_text("mine")
    (home / "dangling").symlink_to("nowhere")
    (home / "other").mkdir()
    (home / "other" / "thesis.txt").write_text("years of work")
    (home / "link").symlink_to("other")
    places = ["", ".", "..", "~", "~/runs", "/", home, home / "file", home / "file" / "x"]
    places += [home / "dangling", home / "dangling" / "x", home / "other", home / "link"]
    places += ["/proc/mine", "/proc/self", home / ("x" * 300), command.source]
    before = contents(home)
    for place in places:
        for more in ((), ("--overwrite",)) if "publish" not in command.words else ((),):
            code, error = command.run(monkeypatch, capsys, place, *more)
            assert code in (1, 2) and error and "\n" not in error, (place, error)
            assert "expected " in error and ", found " in error, (place, error)
            assert contents(home) == before, place


@of(*REPLACEABLE)
def test_a_link_stays_a_link_and_what_it_leads_to_is_replaced(command, home, monkeypatch, capsys):
    (home / "disk" / "out").mkdir(parents=True)
    (home / "link").symlink_to(home / "disk" / "out")
    (home / "way").symlink_to(home / "disk")
    assert command.run(monkeypatch, capsys, home / "link") == (0, "")
    assert (home / "link").is_symlink() and any((home / "disk" / "out").iterdir())
    for path in command.source.iterdir():
        path.touch()  # else a preparation has nothing to do
    code, error = command.run(monkeypatch, capsys, home / "link")
    assert code in (1, 2) and "--overwrite" in error.rpartition("; ")[2]
    (home / "disk" / "out" / "old").touch()
    for way in (home / "link", home / "way" / "out"):
        assert command.run(monkeypatch, capsys, way, "--overwrite") == (0, "")
        assert not (home / "disk" / "out" / "old").exists()
    assert sorted(path.name for path in (home / "disk").iterdir()) == ["out"]


FOREIGN = {
    "manifest.json": '{"name": "an extension", "version": 2}',
    "train_config.json": '{"learning_rate": 0.1}',
    "config.json": '{"model_type": "gpt2"}',
    "foreign_train_000001.bin": "tokens",
    ".gpt2scratch.json": "{}",
}


@of(*REPLACEABLE)
def test_a_directory_of_other_programs_is_not_replaced(command, home, monkeypatch, capsys):
    foreign = home / "foreign"
    foreign.mkdir()
    for name, content in FOREIGN.items():
        (foreign / name).write_text(content)
    before = contents(home)
    code, error = command.run(monkeypatch, capsys, foreign, "--overwrite")
    assert code in (1, 2) and f"expected {foreign} to be new or to hold " in error
    assert contents(home) == before


@of(*REPLACEABLE)
def test_a_directory_that_another_command_made_is_not_replaced(
    command, home, tokenizer, monkeypatch, capsys
):
    # Of each kind one; that of the command itself is the only one that it replaces.
    write_ours(home / "data", tokenizer)
    (home / "run").mkdir()
    (home / "run" / "train_config.json").write_text('{"format": "gpt2scratch-run", "version": 1}')
    for kind in ("model", "shards"):
        (home / kind).mkdir()
        marker = {"format": f"gpt2scratch-converted-{kind}", "version": 1}
        (home / kind / ".gpt2scratch.json").write_text(json.dumps(marker))
    kinds = ("data", "run", "model", "shards")
    replaced = []
    for kind in kinds:
        before = contents(home / kind)
        code, error = command.run(monkeypatch, capsys, home / kind, "--overwrite")
        assert code == 0 or "to be new or to hold " in error
        if code == 0:
            replaced.append(kind)
        else:
            assert contents(home / kind) == before
    assert len(replaced) == 1


@of("prepare", "to-gpt2", "shards to ours", "shards to llm.c", "train")
def test_what_is_read_is_not_deleted_with_the_old_output(command, home, monkeypatch, capsys):
    out = home / "out"
    assert command.run(monkeypatch, capsys, out) == (0, "")
    inside = out / "mine"
    shutil.copytree(command.source, inside)
    words, link = command.words, home / "link"
    link.symlink_to(inside)
    before = contents(home)
    for path in (inside, link):
        command.words = [path if word == command.source else word for word in words]
        code, error = command.run(monkeypatch, capsys, out, "--overwrite")
        assert code in (1, 2) and f"found {path} in {out}; choose another" in error
        assert contents(home) == before


@of(*COMMANDS)
def test_nothing_is_made_within_what_is_read(command, home, monkeypatch, capsys):
    before = contents(home)
    for place in (command.source / "made", "../input/made/deeper"):
        code, error = command.run(monkeypatch, capsys, place)
        assert code in (1, 2) and "expected an output directory apart from what is read" in error
        assert contents(home) == before


@of("prepare", "train", "publish")
def test_a_recipe_is_not_deleted_with_the_old_output(command, home, monkeypatch, capsys):
    out = home / "out"
    assert command.run(monkeypatch, capsys, out) == (0, "")
    recipe = out / "recipe.yaml"
    recipe.write_text("{}")
    before = contents(home)
    verb = 1 if command.main is gpt2scratch else 0
    command.words.insert(verb, recipe)
    overwrite = () if "publish" in command.words else ("--overwrite",)
    code, error = command.run(monkeypatch, capsys, out, *overwrite)
    assert code == 2 and ("recipe.yaml in" in error or "name a new directory" in error)
    assert contents(home) == before


@of("train")
def test_files_for_a_run_are_not_deleted_with_the_old_one(command, home, monkeypatch, capsys):
    out = home / "out"
    assert command.run(monkeypatch, capsys, out) == (0, "")
    (out / "lambada.jsonl").write_text('{"text": "a b c"}\n')
    (out / "cache").mkdir()
    shutil.copytree(out / "checkpoint-1", out / "elsewhere" / "checkpoint-1")
    before = contents(home)
    for flags in (
        ("--eval_tasks", "lambada", "--lambada_data", out / "lambada.jsonl"),
        ("--data_cache", out / "cache"),
        ("--resume", out / "elsewhere" / "checkpoint-1"),
        ("--init_from", out),
    ):
        if flags[0] == "--init_from":  # which knows the model
            place = command.words.index("--model")
            del command.words[place : place + 2]
        code, error = command.run(monkeypatch, capsys, out, "--overwrite", *flags)
        assert code == 2 and f"found {flags[-1]} in {out}; choose another" in error
        assert contents(home) == before


@of("prepare")
def test_a_file_of_a_pattern_is_not_deleted_and_the_old_tokenizer_serves(
    command, home, monkeypatch, capsys
):
    out = home / "out"
    assert command.run(monkeypatch, capsys, out) == (0, "")
    (out / "more.txt").write_text("mine")
    words = [home / "**" / "*.txt" if word == command.source else word for word in command.words]
    before = contents(home)
    code, error = Command(command.main, words, out).run(monkeypatch, capsys, out, "--overwrite")
    assert code == 1 and f"found {out / 'more.txt'} in {out}; choose another" in error
    assert contents(home) == before
    assert command.run(monkeypatch, capsys, out, "--tokenizer", out, "--overwrite") == (0, "")


@of(*(kind for kind in COMMANDS if kind != "train"))
def test_one_command_at_a_time_makes_a_directory(command, home, monkeypatch, capsys):
    with claimed(home / "out"):
        code, error = command.run(monkeypatch, capsys, home / "out")
    assert code == 1 and "found one under way; wait for it, or choose another" in error
    assert sorted(path.name for path in home.iterdir()) == ["here", "input"]
    assert command.run(monkeypatch, capsys, home / "out") == (0, "")


@of("train")
def test_a_run_is_refused_before_it_loads_anything_where_another_is(
    command, home, monkeypatch, capsys
):
    lock = OutputLock(home / "out")
    lock.acquire()
    monkeypatch.setattr(train_accelerate, "activity", None, raising=False)
    for flags in ((), ("--resume", "auto"), ("--overwrite",)):
        code, error = command.run(monkeypatch, capsys, home / "out", *flags)
        assert code == 2 and "--output_dir: expected no other run in" in error
    lock.close()
