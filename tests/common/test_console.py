"""Signs of life: on a terminal, by one process, and for as long as something goes on."""

import ast
import errno
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import REPOSITORY
from support.terminal import terminal

from modeling_gpt2scratch.common.console import activity, gigabytes, has_terminal, tell, warn

PACKAGE = REPOSITORY / "modeling_gpt2scratch"
PROGRAM = """
import sys
from tqdm import tqdm
from modeling_gpt2scratch.common import console as module
from modeling_gpt2scratch.common.console import activity
module.REFRESH_SECONDS = 0.05
with activity("making the model"):
    input()
    tqdm.write("a line above")
print("done")
"""


def test_a_terminal_shows_what_goes_on_and_its_clock_moves():
    with terminal([sys.executable, "-c", PROGRAM]) as shown:
        assert shown.wait_for(r"making the model \.\.\. 00:00")
        assert shown.wait_for(r"making the model \.\.\. 00:02")  # though nothing happens
        shown.type("\n")
        assert shown.wait() == 0
    assert "a line above" in shown.output
    assert re.search(r"\r *\rdone\r\n$", shown.output)  # what was shown is gone


class Broken(io.StringIO):
    """A pipe whose reader has gone, or a log file on a full disk."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_line_that_cannot_be_written_is_lost_and_the_next_one_is_not(monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Broken())
        tell("lost")
        tell("lost as well", file=Broken())
    tell("written")
    assert capsys.readouterr().out == "written\n"


SPEAKER = """
import subprocess, sys
from modeling_gpt2scratch.common.console import activity, readable_output, tell, warn
def speak():
    with activity("working"):
        tell("told")
        tell("told", file=sys.stderr)
        warn("warned")
{}
"""
PROGRAM_OF_OURS = """
with readable_output():
    speak()
    with open(sys.argv[1], "w") as file:  # whose number is none that others write to
        subprocess.run([sys.executable, "-c", "import os; os.write(2, b'lost')"])
        file.write(str(file.fileno() > 2))
"""
PROGRAM_OF_OTHERS = """
speak()
open(sys.argv[1], "w").write("True")
"""
FULL = pytest.param(
    "2>/dev/full",
    marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full"),
)


FULL_OUTPUT = pytest.param(">/dev/full", marks=FULL.marks)


@pytest.mark.parametrize("program", [PROGRAM_OF_OURS, PROGRAM_OF_OTHERS], ids=["ours", "others"])
@pytest.mark.parametrize("streams", ["2>&-", "<&- >&- 2>&-", "| true", FULL, FULL_OUTPUT])
def test_output_that_is_closed_or_full_ends_nothing(tmp_path, program, streams):
    path = tmp_path / "file"
    command = [sys.executable, "-c", SPEAKER.format(program), str(path)]
    shell = ["bash", "-o", "pipefail", "-c", f'"$@" {streams}', "bash", *command]
    assert subprocess.run(shell, cwd=REPOSITORY, stdout=subprocess.DEVNULL).returncode == 0
    assert path.read_text() == "True"


@pytest.mark.parametrize(
    ("streams", "expected"),
    [
        ("| sleep 0", ""),
        pytest.param(
            ">/dev/full",
            "error: expected to write the output, found No space left on device\n",
            marks=FULL.marks,
        ),
    ],
)
def test_results_that_cannot_be_written_are_a_failure(streams, expected):
    program = (
        "import time\n"
        "from modeling_gpt2scratch.common.console import readable_output\n"
        "with readable_output():\n"
        "    time.sleep(0.5)\n"
        "    print('a result')\n"
    )
    command = ["bash", "-o", "pipefail", "-c", f'"$@" {streams}', "bash", sys.executable, "-c"]
    options = {"env": os.environ | {"PYTHONUNBUFFERED": ""}, "capture_output": True, "text": True}
    process = subprocess.run([*command, program], cwd=REPOSITORY, **options)
    assert (process.returncode, process.stderr) == (1, expected)


def test_an_object_in_place_of_stderr_need_not_know_what_a_terminal_is(monkeypatch):
    class Log:
        def write(self, text): ...
        def flush(self): ...

    monkeypatch.setattr(sys, "stderr", Log())
    assert not has_terminal()
    with activity("working"):
        warn("warned")


def test_a_line_is_written_in_one_piece():
    pieces = []
    stream = io.StringIO()
    stream.write = pieces.append
    tell("a line", file=stream)
    assert pieces[0] == "a line\n" and not any(pieces[1:])


def test_what_is_said_on_stderr_is_said_by_tell_and_warn():
    files = [*PACKAGE.rglob("*.py"), *REPOSITORY.glob("*.py"), *REPOSITORY.glob("evaluate/*.py")]
    found = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) != "tell":
                streams = [ast.unparse(word.value) for word in node.keywords if word.arg == "file"]
                if ast.unparse(node.func) == "sys.stderr.write" or "sys.stderr" in streams:
                    found.append(f"{file}:{node.lineno}")
    assert not found, found


def test_beside_the_first_process_and_without_a_terminal_nothing_is_shown():
    with terminal([sys.executable, "-c", PROGRAM], env={"RANK": "1"}) as shown:
        shown.type("\n")
        assert shown.wait() == 0
    assert "making" not in shown.output
    command = [sys.executable, "-c", PROGRAM]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, input="\n")
    assert (process.stdout, process.stderr) == ("a line above\ndone\n", "")


def test_letters_that_a_terminal_does_not_know_end_nothing():
    program = (
        "from modeling_gpt2scratch.common.console import readable_output\n"
        "with readable_output():\n"
        "    print('a \\u2193 b')\n"
    )
    command = [sys.executable, "-c", program]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, env=environment)
    assert (process.returncode, process.stdout, process.stderr) == (0, b"a ? b\n", b"")


def test_small_numbers_of_bytes_are_not_nothing():
    sizes = (1_234_500_000_000, 2_000_000_000, 31_400_000, 1_000)
    assert [*map(gigabytes, sizes)] == ["1,234.5", "2.0", "0.031", "1e-06"]
