"""`gpt2scratch launch`: what goes wrong is one line, and the exit code is the script's."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed
import yaml
from accelerate.commands import launch as accelerate_launch
from accelerate.commands.config import config_args
from support.paths import REPOSITORY
from support.processes import PATIENCE, run_process
from torch.distributed.elastic.rendezvous import RendezvousError

from modeling_gpt2scratch.commands import launch as command

pytestmark = pytest.mark.gate


@pytest.fixture(scope="module")
def launch(warm_commands):
    """Runs `gpt2scratch launch` in a Python whose imports are done; a script has one of its own."""

    def launch(config: str | Path, *words: str) -> subprocess.CompletedProcess:
        path = Path("accelerate_configs", config)
        command = [warm_commands / "gpt2scratch", "launch", "--config_file", path, *words]
        return run_process(command, cwd=REPOSITORY)

    return launch


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
def test_the_end_of_a_script_is_the_end_of_the_launch(launch, script, config, process):
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
    command = [sys.executable, "-m", "modeling_gpt2scratch", "launch"]
    launched = run_process([*command, "--config_file", "no_such.yaml", "script.py"], cwd=REPOSITORY)
    (line,) = launched.stderr.splitlines()
    assert launched.returncode == 1
    assert line.startswith("gpt2scratch launch: error: ") and "no_such.yaml" in line


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "expected a YAML mapping, found nothing; take one of accelerate_configs/"),
        ("a:\t1\n\tb", "cannot be read: ScannerError: "),
        ("[1]", "expected a YAML mapping, found a list; take one of accelerate_configs/"),
        ("{a: 1}", "cannot be read: ValueError: A `distributed_type` must be specified"),
    ],
)
def test_a_configuration_that_is_none_is_one_line(launch, tmp_path, content, found):
    path = tmp_path / "own.yaml"
    path.write_text(content)
    launched = launch(path, "script.py")
    (line,) = launched.stderr.splitlines()
    assert launched.returncode == 1
    assert line.startswith(f"gpt2scratch launch: error: --config_file: {path}: {found}")


@pytest.mark.parametrize(
    "error",
    [
        ImportError("DeepSpeed is not installed"),
        RendezvousError("no answer"),
        RuntimeError("no backend\nfor fp8"),
        AttributeError("'int' object has no attribute 'split'"),
        torch.distributed.DistNetworkError("the client socket has timed out"),
    ],
)
def test_a_launch_that_cannot_begin_is_one_line(monkeypatch, error):
    def launch_command(arguments):
        raise error

    monkeypatch.setattr(accelerate_launch, "launch_command", launch_command)
    monkeypatch.setattr(command.signal, "signal", lambda number, handler: None)
    with pytest.raises(SystemExit) as ending:
        command.main(["script.py"])
    said = " ".join(str(error).split())
    assert ending.value.code == f"gpt2scratch launch: error: {type(error).__name__}: {said}"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_ctrl_c_before_there_are_processes_ends_a_launcher_that_nobody_hears():
    program = (
        "from modeling_gpt2scratch.commands import launch; launch.leave_to_the_processes(2, 0)"
    )
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", program]
        assert subprocess.run(command, cwd=REPOSITORY, stderr=full).returncode == 130


def test_a_flag_that_nobody_knows_is_two_lines(launch):
    launched = launch("cpu.yaml", "--foo", "script.py")
    usage, line = launched.stderr.splitlines()
    assert launched.returncode == 2 and usage.startswith("usage: gpt2scratch launch [--config_file")
    assert line == "gpt2scratch launch: error: unrecognized arguments: --foo"


def test_several_processes_are_refused_where_accelerate_would_start_one(launch, script):
    launched = launch("cpu.yaml", "--num_processes", "2", str(script), "0")
    (line,) = launched.stderr.splitlines()
    assert launched.returncode == 1 and line == (
        "gpt2scratch launch: error: expected --num_processes 1, as Accelerate starts a single "
        "process on a CPU, found 2; for more, use --config_file accelerate_configs/cpu_2proc.yaml "
        "without --cpu"
    )
    for config, number in (("cpu.yaml", "1"), ("cpu_2proc.yaml", "2")):
        assert launch(config, "--num_processes", number, str(script), "0").returncode == 0


@pytest.mark.parametrize(
    ("words", "changes", "has_gpu", "expected"),
    [
        ("", None, False, True),
        ("", None, True, False),
        ("--cpu", None, True, True),
        ("--cpu --mpirun_hostfile hosts", None, False, False),
        ("--multi_gpu", None, False, False),
        ("--use_fsdp", None, False, False),
        ("--use_deepspeed", None, False, False),
        ("", {"use_cpu": True}, True, True),
        ("--multi_gpu", {"use_cpu": True}, True, False),
        ("", {"use_cpu": False}, True, False),
        ("", {"use_cpu": False}, False, True),
        ("", {"use_cpu": True, "num_machines": 2}, False, False),
        *(
            ("", {"use_cpu": True, "distributed_type": kind}, False, False)
            for kind in ("MULTI_CPU", "MULTI_GPU", "DEEPSPEED", "FSDP", "XLA")
        ),
    ],
)
def test_who_gets_one_process_on_a_cpu(tmp_path, monkeypatch, words, changes, has_gpu, expected):
    monkeypatch.setattr(config_args, "default_config_file", str(tmp_path / "none"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_gpu)
    for name in command.MPI_SIZES:
        monkeypatch.delenv(name, raising=False)
    words = words.split()
    if changes is not None:
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump({"distributed_type": "NO", "num_processes": 1} | changes))
        words += ["--config_file", str(path)]
    arguments = accelerate_launch.launch_command_parser().parse_args([*words, "script.py"])
    config = command.read_config(arguments)
    assert command.is_one_cpu_process(arguments, config) == expected
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")  # mpirun started this launcher twice
    assert not command.is_one_cpu_process(arguments, config)
