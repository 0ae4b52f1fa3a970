"""`gpt2scratch launch`: what goes wrong is one line, and the exit code is the script's."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import REPOSITORY
from support.processes import PATIENCE, run_process

pytestmark = pytest.mark.gate


def launch(config: str, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "modeling_gpt2scratch", "launch"]
    path = Path("accelerate_configs", config)
    return run_process([*command, "--config_file", str(path), *words], cwd=REPOSITORY)


@pytest.fixture
def script(tmp_path) -> Path:
    """A script that ends as its argument says, on the last of the processes."""
    path = tmp_path / "script.py"
    path.write_text(
        "import os, signal, sys\n"
        "is_last = int(os.environ.get('RANK', 0)) == int(os.environ.get('WORLD_SIZE', 1)) - 1\n"
        "if is_last and sys.argv[1] == 'killed':\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if is_last and int(sys.argv[1]):\n"
        "    print('script.py: error: mine', file=sys.stderr)\n"
        "    sys.exit(int(sys.argv[1]))\n"
    )
    return path


@pytest.mark.parametrize(
    ("config", "process"), [("cpu.yaml", "the process"), ("cpu_2proc.yaml", "process 1")]
)
def test_the_end_of_a_script_is_the_end_of_the_launch(script, config, process):
    for code, line in (
        (0, ""),
        (1, "script.py: error: mine\n"),
        (2, "script.py: error: mine\n"),
        (7, f"script.py: error: mine\ngpt2scratch launch: {process} ended with code 7\n"),
    ):
        launched = launch(config, str(script), str(code))
        assert (launched.returncode, launched.stderr) == (code, line)
    launched = launch(config, str(script), "killed")
    line = f"gpt2scratch launch: {process} ended with SIGKILL\n"
    assert (launched.returncode, launched.stderr) == (137, line)


def test_sigterm_before_any_process_has_begun_ends_the_launch():
    program = "from modeling_gpt2scratch.commands.launch import hand_on; hand_on(15, None)"
    process = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, timeout=PATIENCE)
    assert process.returncode == 143


def test_a_configuration_that_is_not_there_is_one_line():
    launched = launch("no_such.yaml", "script.py")
    (line,) = launched.stderr.splitlines()
    assert launched.returncode == 1
    assert line.startswith("gpt2scratch launch: error: ") and "no_such.yaml" in line


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "AttributeError: 'NoneType' object"),
        ("a:\t1\n\tb", "cannot start any token"),
        ("[1]", "AttributeError: 'list' object"),
    ],
)
def test_a_configuration_that_is_none_is_one_line(tmp_path, content, found):
    path = tmp_path / "own.yaml"
    path.write_text(content)
    launched = run_process(
        [sys.executable, "-m", "modeling_gpt2scratch", "launch", "--config_file", path, "script.py"]
    )
    (line,) = launched.stderr.splitlines()
    assert launched.returncode == 1
    assert line.startswith(f"gpt2scratch launch: error: --config_file: {path}: cannot be read: ")
    assert found in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_ctrl_c_before_there_are_processes_ends_a_launcher_that_nobody_hears():
    program = (
        "from modeling_gpt2scratch.commands import launch; launch.leave_to_the_processes(2, 0)"
    )
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", program]
        assert subprocess.run(command, cwd=REPOSITORY, stderr=full).returncode == 130
