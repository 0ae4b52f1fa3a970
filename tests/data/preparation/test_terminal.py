"""At a terminal: one bar after another, and Ctrl-C at any moment costs one line and no work."""

import random
import re
import shlex
import sys
import time

import pytest
from support.paths import REPOSITORY
from support.prepared_data import contents
from support.processes import run_process
from support.terminal import terminal
from support.tiny_corpus import fables, write_jsonl

pytestmark = [
    pytest.mark.slow,
    pytest.mark.gate,
    pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo-terminal"),
]
SCRIPT = str(REPOSITORY / "prepare_data.py")
# On an idle machine it takes a second, and the promise is five; without an effect, minutes.
LONG_SECONDS = 30
BAR = r"\[\d\d:\d\d|\.\.\. \d\d:\d\d$"  # the time that it shows
MOMENTS = (
    "loading the libraries",
    "looking at the text",
    "training a tokenizer of 3000: +[1-9]",
    "learning what makes",
    "tokenizing",
    r"tokenizing: +[1-9.]+M",
)


def press_ctrl_c_at(command, moment, delay, **options):
    """What the terminal shows from then on, if it is not over already."""
    with terminal(command, **options) as there:
        assert there.wait_for(moment), there.output
        there.go_on_for(delay)
        there.press_ctrl_c()
        start = time.monotonic()
        code = there.wait()
        assert time.monotonic() - start < LONG_SECONDS
        return code, there.output


def check(code, output, command):
    """Ctrl-C leaves one line, which holds the command."""
    assert code == 130, output
    shown = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", output)  # how a bar is erased
    lines = [line.strip().split("\r")[-1] for line in shown.split("\n")]
    # A bar that was interrupted stays as it was.
    lines = [line for line in lines if line not in ("", "^C") and not re.search(BAR, line)]
    typed = shlex.join(["python", *command[1:]])
    assert lines == [f"prepare_data.py: interrupted; to go on, run again: {typed}"]


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    """Text that takes a while."""
    directory = tmp_path_factory.mktemp("large")
    return write_jsonl(directory / "a.jsonl", fables(60_000))


@pytest.fixture(scope="module")
def command(large_file):
    """Prepares it; where to is still to be said."""
    flags = ["--tokenizer", "bpe:3000", "--shuffle_buffer_tokens", "50000", "--num_workers", "2"]
    return [sys.executable, SCRIPT, "--dataset", str(large_file), *flags, "--output_dir"]


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """The directory that the command makes undisturbed, and what the terminal shows."""
    directory = tmp_path_factory.mktemp("whole") / "out"
    with terminal([*command, str(directory)]) as there:
        assert there.wait() == 0
        return directory, there.output


def test_ctrl_c_works_at_every_moment_and_the_same_command_goes_on(tmp_path, command, whole):
    interrupted = [*command, str(tmp_path / "out")]
    generator = random.Random(2)
    n_pressed = 0
    for moment in MOMENTS:
        code, output = press_ctrl_c_at(interrupted, moment, generator.random())
        if code == 0:
            break
        check(code, output, interrupted)
        n_pressed += 1
    # A fast machine may be done before the press at a late moment.
    assert n_pressed >= len(MOMENTS) // 2
    if code != 0:
        run_process(interrupted, check=True)
    assert contents(tmp_path / "out") == contents(whole[0])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("seed", range(3))
def test_ctrl_c_works_while_docstrings_are_read(tmp_path, seed):
    command = [sys.executable, SCRIPT, "--output_dir", str(tmp_path / "out")]
    generator = random.Random(seed)
    code, output = press_ctrl_c_at(command, "reading docstrings", 3 * generator.random())
    check(code, output, command)


def test_one_bar_follows_another(whole):
    _, output = whole
    assert "\x1b[A" not in output  # how a second bar would be drawn below the first
    places = [re.search(moment, output).start() for moment in MOMENTS]
    assert places == sorted(places)
