"""What `--help` prints, and how soon."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

import pytest
from support.paths import REPOSITORY
from support.processes import started

from modeling_gpt2scratch.common.argument_parser import OneLineErrorParser, with_hint
from modeling_gpt2scratch.common.command_line import argument, parse_config

# Runs a script under its own name, and prints which of the heavy libraries it has loaded.
RUN_SCRIPT = """
import atexit, runpy, sys
atexit.register(lambda: print("loaded:", sorted({"torch", "transformers"} & {*sys.modules})))
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Config:
    source: str = argument("where from", group="text")
    max_steps: int | None = argument("how many, 100 % if not given", group="work", default=None)
    keep: list[str] = argument("what stays", group="text", default_factory=list)
    rate: float = argument("how fast", group="work", default=0.0)
    kind: Literal["a", "b"] = argument("which", group="work", default="a")
    careful: bool = argument("look twice", default=True)
    open: bool = argument("look out", default=False)


def help_of(config_class, capsys, monkeypatch) -> str:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit, match="^0$"):
        parse_config(config_class, description="A test.", argv=["--help"], program="test")
    return capsys.readouterr().out


def test_help_names_each_flag_once_under_its_heading(capsys, monkeypatch):
    text = help_of(Config, capsys, monkeypatch)
    headings = re.findall(r"^(\w.*):$", text, re.MULTILINE)
    assert headings == ["options", "text", "work"]
    flags = re.findall(r"--[\w-]+", text.partition("options:")[2])
    assert flags == [
        *("--help", "--careful", "--open"),
        *("--source", "--keep"),
        *("--max_steps", "--rate", "--kind"),
    ]


def test_help_names_the_defaults_that_there_are_and_what_must_be_given(capsys, monkeypatch):
    text = " ".join(help_of(Config, capsys, monkeypatch).split())
    for said in (
        "--source TEXT where from [required] --keep",
        "--keep TEXT [TEXT ...] what stays work:",
        "--max_steps INTEGER how many, 100 % if not given --rate",
        "--rate NUMBER how fast [default: 0.0] --kind",
        "--kind {a,b} which [default: a]",
        "--careful [true|false] look twice [default: true] --open",
        "--open [true|false] look out [default: false] text:",
    ):
        assert said in text


def test_a_name_that_is_not_utf_8_is_refused(capsys):
    parser = OneLineErrorParser(prog="test")
    parser.add_argument("files", nargs="*")
    with pytest.raises(SystemExit, match="^2$"):
        parser.parse_args(["café.txt", "caf\udce9.txt"])
    expected = r"test: error: expected arguments in UTF-8, found 'caf\udce9.txt'"
    assert capsys.readouterr().err == f"{expected}\n"


@pytest.mark.parametrize("spelled", ["--max_steps=3", "--max-steps=3"])
def test_a_flag_is_spelled_with_underscores_or_hyphens(spelled):
    parser = OneLineErrorParser()
    parser.add_argument("--max_steps", type=int)
    parser.add_argument("--name")
    arguments = parser.parse_args([spelled, "--name", "a-b"])
    assert (arguments.max_steps, arguments.name) == (3, "a-b")
    assert parser.parse_args(["--name", "-- a non-null b"]).name == "-- a non-null b"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--sauce", "x"], "test: error: unknown flag --sauce; did you mean --source?"),
        (["--out_dir=x"], "test: error: unknown flag --out_dir; known: source, max_steps, keep, "),
        (
            ["--steps", "3", "--rate", "x"],
            "test: error: unknown flag --steps; did you mean --max_st",
        ),
        (["--max-steps=3"], "test: error: the following arguments are required: --source"),
    ],
)
def test_a_flag_that_does_not_exist_is_named_before_one_that_is_missing(argv, line, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        parse_config(Config, description=None, argv=argv, program="test")
    assert capsys.readouterr().err.startswith(line)


def test_many_flags_are_not_listed_in_an_error():
    few, many = ([f"flag{i}" for i in range(n)] for n in (12, 13))
    assert with_hint("zzz", few, "--").startswith("--zzz; known: flag0, flag1, ")
    assert with_hint("zzz", many, "--") == "--zzz; see --help"
    assert with_hint("flag_12", many, "--") == "--flag_12; did you mean --flag12?"


def test_a_value_may_look_like_a_flag():
    argv = ["--source=--sauce", "--keep", "--no value", "--no=value either"]
    config = parse_config(Config, description=None, argv=argv, program="test")
    assert (config.source, config.keep) == ("--sauce", ["--no value", "--no=value either"])


def test_a_flag_that_a_command_does_not_know_has_a_hint(capsys):
    parser = OneLineErrorParser(prog="test")
    command = parser.add_subparsers(required=True, metavar="COMMAND").add_parser("verify")
    command.add_argument("--workers", type=int)
    command.add_argument("files", nargs="*")
    assert parser.parse_args(["verify", "--workers=3", "--", "--wrokers"]).files == ["--wrokers"]
    for argv, line in (
        (["verify", "--wrokers", "3"], "test verify: error: unknown flag --wrokers; did you mean"),
        (["--wrokers", "verify"], "test: error: unknown flag --wrokers; known: help"),
    ):
        with pytest.raises(SystemExit, match="^2$"):
            parser.parse_args(argv)
        assert capsys.readouterr().err.startswith(line)
    with pytest.raises(SystemExit, match="^0$"):
        parser.parse_args(["verify", "--wrokers", "--help"])


@pytest.mark.parametrize("spelled", ["--no_careful", "--no-careful", "--careful=false"])
def test_a_switch_can_be_switched_off_in_three_ways(spelled):
    argv = ["--source", "x", spelled]
    assert not parse_config(Config, description=None, argv=argv).careful


@pytest.mark.parametrize(
    "script", ["prepare_data.py", "train_accelerate.py", "evaluate/compare.py"]
)
@pytest.mark.parametrize(("flag", "code"), [("--help", 0), ("--no_such_flag", 2)])
def test_help_and_mistakes_need_not_wait_for_torch(script, flag, code):
    command = [sys.executable, "-c", RUN_SCRIPT, script, flag]
    process = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert process.returncode == code, process.stderr
    assert process.stdout.endswith("loaded: []\n")
    assert process.stderr.count("\n") == (code == 2)


@pytest.mark.parametrize(
    ("script", "library", "flags"),
    [
        ("prepare_data.py", "transformers", ["--output_dir", "new"]),
        ("train_accelerate.py", "torch", ["--data", "d", "--output_dir", "new"]),
    ],
)
def test_ctrl_c_while_libraries_load_is_one_line(tmp_path, script, library, flags):
    (tmp_path / f"{library}.py").write_text(
        "import time\nprint('loading', flush=True)\ntime.sleep(60)\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, REPOSITORY / script, *flags]
    with started(command, **pipes, cwd=tmp_path, env=environment) as process:
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130 and errors.count("\n") == 1
    assert errors.startswith(f"{script}: ") and "interrupted" in errors


@pytest.mark.parametrize("text", ["-1e-9", "-1", "-.5", "-2.E+3", "-inf", "-nan"])
def test_a_negative_number_is_a_value_however_it_is_written(text):
    argv = ["--source", "here", "--rate", text]
    rate = parse_config(Config, description="A test.", argv=argv, program="test").rate
    assert str(rate) == str(float(text))
