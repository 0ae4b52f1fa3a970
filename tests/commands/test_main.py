"""The command `gpt2scratch`: its verbs, its help, and how it ends."""

import importlib.metadata
import os
import re
import signal
import subprocess
import sys

import pytest
from support.paths import REPOSITORY

import modeling_gpt2scratch
from modeling_gpt2scratch.__main__ import VERBS, main
from modeling_gpt2scratch.common.command_line import parse_config
from modeling_gpt2scratch.data.preparation.configuration import PrepareConfig
from modeling_gpt2scratch.training.configuration import TrainConfig

# Prints which of the heavy libraries the command has loaded when it ends.
HEAVY_AT_THE_END = """
import atexit, sys
atexit.register(lambda: print("loaded:", sorted({"torch", "transformers"} & {*sys.modules})))
from modeling_gpt2scratch.__main__ import main
main(sys.argv[1:])
"""
# A program that is still importing when Ctrl-C reaches it: a verb that waits in place of torch.
INTERRUPTED = """
import sys, time, types
class Waiting(types.ModuleType):
    def __getattr__(self, name):
        print("importing", flush=True)
        time.sleep(60)
sys.modules["modeling_gpt2scratch.commands.report"] = Waiting("report")
from modeling_gpt2scratch.__main__ import main
main(["report"])
"""


def run(*words: str, code: str = HEAVY_AT_THE_END) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("--version",),
        # The help of launch is Accelerate's.
        *((verb, "--help") for verb in VERBS if verb != "launch"),
        *(("shards", command, "--help") for command in ("inspect", "convert", "publish")),
        ("convert", "from-nanogpt", "--help"),
        ("shards", "verify"),  # which lacks its directory
        ("publish", "--runn", "x"),
    ],
    ids=" ".join,
)
def test_help_and_mistakes_load_neither_torch_nor_transformers(words):
    process = run(*words)
    assert process.stdout.endswith("loaded: []\n"), process.stderr
    assert process.returncode == (0 if words[-1] in ("--help", "--version") else 2)
    assert process.stderr.count("\n") == (process.returncode == 2)


def test_help_lists_every_verb(capsys):
    with pytest.raises(SystemExit, match="^0$"):
        main(["--help"])
    listed = re.findall(r"^    (\w+) +\w", capsys.readouterr().out, re.MULTILINE)
    assert listed == [*VERBS]


def test_the_version_is_that_of_the_installed_package(capsys):
    with pytest.raises(SystemExit, match="^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"gpt2scratch {modeling_gpt2scratch.__version__}\n"
    assert modeling_gpt2scratch.__version__ == importlib.metadata.version("gpt2scratch")


def test_no_verb_at_all_is_answered_with_the_verbs(capsys):
    with pytest.raises(SystemExit, match="^0$"):
        main([])
    shown = capsys.readouterr().out
    assert all(f"    {verb} " in shown for verb in VERBS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("sampel",),
            f"gpt2scratch: error: VERB: expected one of {', '.join(VERBS)}, found 'sampel'; "
            "did you mean sample?",
        ),
        (("report",), "gpt2scratch report: error: the following arguments are required: --run"),
    ],
)
def test_a_command_that_is_not_there_is_one_line(capsys, words, message):
    with pytest.raises(SystemExit, match="^2$"):
        main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)


def test_ctrl_c_is_one_line_even_while_a_verb_is_imported():
    command = [sys.executable, "-c", INTERRUPTED]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=REPOSITORY, **pipes) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert errors == "gpt2scratch report: interrupted\n"
    assert process.returncode == 130


@pytest.mark.slow
def test_the_package_runs_as_a_module_without_a_warning(ours):
    command = [sys.executable, "-W", "error", "-m", "modeling_gpt2scratch", "shards", "verify"]
    good = subprocess.run([*command, ours], capture_output=True, text=True)
    assert good.returncode == 0
    assert good.stdout.startswith(f"ok: {ours}: ")
    assert "Warning" not in good.stderr
    bad = subprocess.run([*command, ours / "none"], capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.startswith("gpt2scratch shards verify: error: ")
    assert len(bad.stderr.splitlines()) == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["shards", "inspect", "DATA", "DATA"]])
def test_a_reader_who_has_enough_ends_the_command_without_a_word(words, unbuffered, ours):
    words = [str(ours) if word == "DATA" else word for word in words]
    read, write = os.pipe()
    os.close(read)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with os.fdopen(write, "w") as nobody:
        process = subprocess.run(
            [sys.executable, "-m", "modeling_gpt2scratch", *words],
            **{"stdout": nobody, "stderr": subprocess.PIPE, "text": True},
            **{"cwd": REPOSITORY, "env": environment},
        )
    assert process.returncode in (0, 1)
    assert process.stderr == ""


@pytest.mark.parametrize(
    ("verb", "flag"), [("report", "run"), ("publish", "run"), ("plot", "runs")]
)
def test_a_directory_without_its_flag_is_told_which(tmp_path, capsys, verb, flag):
    with pytest.raises(SystemExit, match="^2$"):
        main([verb, str(tmp_path)])
    error = capsys.readouterr().err
    assert f"found a directory; name a file, or a flag: --{flag} {tmp_path}" in error


@pytest.mark.parametrize(("config", "flag"), [(TrainConfig, "data"), (PrepareConfig, "dataset")])
def test_a_directory_without_its_flag_is_told_which_by_the_scripts(tmp_path, capsys, config, flag):
    with pytest.raises(SystemExit, match="^2$"):
        parse_config(config, description=None, argv=[str(tmp_path)])
    assert f"or a flag: --{flag} {tmp_path}" in capsys.readouterr().err
