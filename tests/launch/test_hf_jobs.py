"""The script for Hugging Face Jobs: as `hf` and `uv` read it, and what it runs."""

import configparser
import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from packaging.specifiers import SpecifierSet
from support.documentation import BLOCKS
from support.paths import REPOSITORY
from support.processes import run_process
from support.training_runs import curve, flags

from modeling_gpt2scratch.common.command_line import parse_config
from modeling_gpt2scratch.training.configuration import TrainConfig

SCRIPT = REPOSITORY / "launch" / "hf_jobs.py"
BINARIES = Path(sys.executable).parent
# As PEP 723 says.
HEADER = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
COMMANDS = [
    pytest.param(block.text, id=block.name)
    for block in BLOCKS
    if block.text.startswith("hf jobs uv run")
]
# In place of the commands that need a network: they say what they are given, and make what the
# script goes on with.
STAND_INS = {
    "git": 'echo git "$@"; mkdir "${@: -1}"',
    "uv": 'echo uv "$@"; [[ $1 == pip ]] || { mkdir -p .venv/bin; cp "$LAUNCHER" .venv/bin; }',
}


@pytest.fixture
def job(tmp_path, monkeypatch):
    """An empty directory of a machine without GPUs, with these commands in front of all others."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, body in STAND_INS.items():
        command(binaries / name, body)
    command(tmp_path / "gpt2scratch", 'echo launched "$@"')
    monkeypatch.setenv("PATH", f"{binaries}:/usr/bin:/bin")
    monkeypatch.setenv("LAUNCHER", str(tmp_path / "gpt2scratch"))
    (tmp_path / "work").mkdir()
    return tmp_path


def command(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def run_script(job: Path, *arguments: str, runner: tuple = (sys.executable,)):
    return run_process([*runner, str(SCRIPT), *arguments], cwd=job / "work")


def test_the_header_is_one_of_pep_723_for_the_pythons_of_the_project():
    (found,) = HEADER.finditer(SCRIPT.read_text())
    lines = found["content"].splitlines(keepends=True)
    header = tomllib.loads("".join(line[2:] if line[1:2] == " " else line[1:] for line in lines))
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    wanted = SpecifierSet(setup["options"]["python_requires"])
    assert (found["type"], header["dependencies"]) == ("script", [])
    assert SpecifierSet(header["requires-python"]) == wanted


@pytest.mark.parametrize("text", COMMANDS)
def test_hf_takes_what_the_page_says_and_so_does_the_training(text, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = shlex.split(text.replace("\\\n", " "))
    assert words[:4] == ["hf", "jobs", "uv", "run"]
    hf = [str(BINARIES / "hf"), *words[1:4], "--dry-run", *words[4:]]
    process = run_process(hf, cwd=REPOSITORY)
    assert process.returncode == 0 and "not submitted" in process.stdout, process.stderr
    shown = dict(re.findall(r"^  (\w+) +(.*)$", process.stdout, re.MULTILINE))
    assert shown["script"] == "launch/hf_jobs.py" and shown["secrets"].startswith("HF_TOKEN=")
    arguments = [*shlex.split(shown["args"]), "--output_dir", str(tmp_path / "run")]
    config = parse_config(TrainConfig, description=None, argv=arguments)
    assert config.data.startswith("hf://datasets/")


@pytest.mark.parametrize("n_gpus", [None, 0, 1, 2, 8])
def test_it_installs_the_project_and_starts_a_process_for_each_gpu(job, n_gpus):
    if n_gpus is not None:  # else there is no driver, either
        listed = "\n".join(f"echo 'GPU {n}: NVIDIA A100 (UUID: GPU-{n})'" for n in range(n_gpus))
        command(job / "bin" / "nvidia-smi", listed)
    process = run_script(job, "recipes/gpt2_124m.yaml", "--data", "hf://datasets/you/my tokens")
    assert process.returncode == 0, process.stderr
    lines = [line for line in process.stdout.splitlines() if not line.startswith("+ ")]
    assert lines[0] == "git clone --depth 1 REPOSITORY_URL gpt2scratch"
    assert lines[1].startswith("uv venv ")
    assert lines[2] == "uv pip install --python .venv -c constraints.txt -e ."
    words = lines[3].split()
    assert words[:2] == ["launched", "launch"]
    arguments = launch_command_parser().parse_args(words[2:])
    configs = {None: "cpu", 0: "cpu", 1: "single_gpu"}
    assert arguments.config_file == f"accelerate_configs/{configs.get(n_gpus, 'ddp_8gpu')}.yaml"
    assert arguments.num_processes == (n_gpus or 1)
    assert (REPOSITORY / arguments.config_file).is_file()
    assert arguments.training_script == "train_accelerate.py"
    passed = ["recipes/gpt2_124m.yaml", "--data", "hf://datasets/you/my", "tokens"]
    assert arguments.training_script_args == passed


@pytest.mark.parametrize("failing", STAND_INS)
def test_a_command_that_fails_ends_the_job_with_one_line(job, failing):
    command(job / "bin" / failing, "exit 3")
    process = run_script(job)
    assert process.returncode == 1 and "launched" not in process.stdout
    expected = f"hf_jobs.py: error: expected {failing} to succeed, found exit code 3\n"
    assert process.stderr == expected


def test_uv_runs_it(job, monkeypatch):
    if (uv := shutil.which("uv", path=BINARIES)) is None:
        pytest.skip("uv is not installed")
    monkeypatch.setenv("UV_CACHE_DIR", str(job / "cache"))
    runner = (uv, "run", "--offline", "--no-config", "--python", sys.executable)
    process = run_script(job, "--max_steps", "3", runner=runner)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1].endswith("train_accelerate.py --max_steps 3")


@pytest.mark.gate
def test_it_trains(job, small_data):
    """With the project as it lies here in place of what git and uv would fetch."""
    command(job / "bin" / "git", f'cp -rs "{REPOSITORY}" gpt2scratch')
    command(job / "gpt2scratch", f'exec "{sys.executable}" -m modeling_gpt2scratch "$@"')
    changes = {"max_steps": 2, "save_every": 0, "eval_every": 0}
    process = run_script(job, *flags(small_data, job / "run", **changes))
    assert process.returncode == 0, process.stderr
    assert curve(job / "run").keys() == {1, 2}


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_installs_nothing(job, flag):
    process = run_script(job, "recipes/quickstart.yaml", flag)
    assert process.returncode == 0 and "What is not pushed is gone" in process.stdout
    assert "git clone" not in process.stdout and not any((job / "work").iterdir())
