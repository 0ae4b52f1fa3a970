"""The Slurm script: which runs are queued again, and two machines with the curve of one process."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.paths import REPOSITORY
from support.processes import run_process
from support.training_runs import SIZES, curve, flags, run_here

SLURM_SCRIPT = REPOSITORY / "launch" / "multi_node_ddp.slurm"


def free_job_number() -> int:
    """A Slurm job's number from which the script derives a port that nobody uses."""
    for number in range(10_000):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("", 20_000 + number))
            return number
    raise RuntimeError("expected a free port from 20000 to 29999, found none")


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Commands that stand in for Slurm's: two machines that are both this one."""
    commands = {
        "scontrol": 'if [[ $1 == show ]]; then echo localhost; else echo "$@" >> "$REQUEUED"; fi',
        "srun": (
            'for node in 0 1; do SLURM_NODEID=$node "${@:2}" & pids+=($!); done\n'
            'code=0; for pid in "${pids[@]}"; do wait "$pid" || code=$?; done; exit "$code"'
        ),
    }
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, body in commands.items():
        (binaries / name).write_text(f"#!/bin/bash\n{body}\n")
        (binaries / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("REQUEUED", str(tmp_path / "requeued"))
    for variable, value in {
        "SLURM_JOB_ID": str(free_job_number()),
        "SLURM_JOB_NODELIST": "node[0-1]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
    }.items():
        monkeypatch.setenv(variable, value)
    return tmp_path


def run_slurm_script(recipe: Path, *arguments: str) -> subprocess.CompletedProcess:
    return run_process(
        ["bash", str(SLURM_SCRIPT), str(recipe), *arguments],
        cwd=REPOSITORY,
    )


@pytest.mark.parametrize(
    ("left_by_the_run", "code", "is_queued"),
    [
        (["checkpoint-4/"], 0, True),
        ([], 1, False),
        (["checkpoint-4/", "model.safetensors"], 0, False),
    ],
    ids=["stopped", "failed", "finished"],
)
def test_a_job_is_queued_again_only_if_it_got_further(cluster, left_by_the_run, code, is_queued):
    output_dir = cluster / "run"
    (output_dir / "checkpoint-2").mkdir(parents=True)
    made = "".join(
        f"mkdir -p {output_dir}/{name}\n" if name.endswith("/") else f"touch {output_dir}/{name}\n"
        for name in left_by_the_run
    )
    (cluster / "bin" / "srun").write_text(f"#!/bin/bash\n{made}exit 1\n")
    recipe = cluster / "recipe.yaml"
    recipe.write_text(f"data: d\noutput_dir: {output_dir}  # shared\n")
    process = run_slurm_script(recipe)
    assert process.returncode == code, process.stderr
    assert (cluster / "requeued").exists() == is_queued


def test_weights_of_an_earlier_end_do_not_make_a_failed_job_finished(cluster):
    output_dir = cluster / "run"
    output_dir.mkdir()
    (output_dir / "model.safetensors").touch()
    os.utime(output_dir / "model.safetensors", (1, 1))
    (cluster / "bin" / "srun").write_text("#!/bin/bash\nexit 2\n")
    (cluster / "recipe.yaml").write_text(f"output_dir: {output_dir}\n")
    process = run_slurm_script(cluster / "recipe.yaml")
    assert process.returncode == 2 and not (cluster / "requeued").exists()


@pytest.mark.parametrize("flag", ["--resume", "--resume=auto", "--overwrite"])
def test_how_a_job_starts_is_up_to_the_script(cluster, flag):
    (cluster / "bin" / "srun").write_text(f"#!/bin/bash\ntouch {cluster}/started\n")
    (cluster / "recipe.yaml").write_text(f"output_dir: {cluster}/run\n")
    process = run_slurm_script(cluster / "recipe.yaml", flag, "auto")
    assert process.returncode == 2 and not (cluster / "started").exists()
    name = flag.partition("=")[0]
    assert process.stderr.startswith(f"expected no {name}: this script goes on with what is in ")
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "place",
    [
        *("--output_dir {}", "--output_dir={}", "--output-dir {}", "{}/second.yaml", "other"),
        *("{}/quoted.yaml", "{}/blank.yaml", "{}/short.yml", "--output_dir {}/../link"),
    ],
)
def test_a_job_looks_where_the_run_writes(cluster, place):
    output_dir = cluster / ("my run" if "blank" in place else "run")
    recipes = cluster / "recipes"
    output_dir.mkdir()
    recipes.mkdir()
    (cluster / "link").symlink_to(output_dir)
    (recipes / "quoted.yaml").write_text(f'output_dir: "{output_dir}"  # shared\n')
    (recipes / "blank.yaml").write_text(f"output_dir: {output_dir}  # shared\n")
    (recipes / "short.yml").write_text(f"output_dir: {output_dir} \n")
    (cluster / "first.yaml").write_text(f"data: d\noutput_dir: {cluster}/elsewhere\n")
    (recipes / "second.yaml").write_text(f"output_dir: {output_dir}\n")
    made = f"mkdir '{output_dir}/checkpoint-4'"
    (cluster / "bin" / "srun").write_text(f"#!/bin/bash\n{made}\nexit 1\n")
    arguments = place.format(recipes if place.startswith("{}") else output_dir).split()
    if place == "other":  # a recipe without the key changes nothing
        (cluster / "other.yaml").write_text("seed: 3\n")
        arguments = [str(recipes / "second.yaml"), str(cluster / "other.yaml")]
    process = run_slurm_script(cluster / "first.yaml", *arguments)
    assert process.returncode == 0, process.stderr
    assert (cluster / "requeued").exists()


def test_a_job_keeps_what_its_user_exported(cluster, monkeypatch):
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "900")
    monkeypatch.delenv("NCCL_DEBUG", raising=False)
    line = 'echo "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT $NCCL_DEBUG"'
    (cluster / "bin" / "srun").write_text(f"#!/bin/bash\n{line}\nexit 1\n")
    (cluster / "recipe.yaml").write_text(f"output_dir: {cluster}/run\n")
    assert run_slurm_script(cluster / "recipe.yaml").stdout == "900 WARN\n"


def test_the_slurm_script_is_what_shellcheck_would_have_it():
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    process = run_process(["shellcheck", str(SLURM_SCRIPT)], env=environment)
    assert (process.returncode, process.stdout) == (0, "")


@pytest.mark.gate
def test_two_machines_have_the_curve_of_one_process(cluster, small_data, monkeypatch):
    changes = {"max_steps": 2, "dropout": 0, "save_every": 0, "eval_every": 0}
    recipe = cluster / "recipe.yaml"
    values = SIZES | changes | {"data": str(small_data), "mixed_precision": "no"}
    del values["eval_tokens"]  # of no effect without validation
    recipe.write_text(yaml.safe_dump(values))
    output_dir = cluster / "both"
    process = run_slurm_script(recipe, "--output_dir", str(output_dir))
    assert process.returncode == 0, process.stderr
    assert "processes        2 " in process.stdout and "finished:" in process.stdout
    assert not (cluster / "requeued").exists()
    assert run_here(monkeypatch, *flags(small_data, cluster / "one", **changes)) == 0
    expected = curve(cluster / "one")
    assert curve(output_dir).keys() == expected.keys() == {1, 2}
    for step, values in curve(output_dir).items():
        assert values == pytest.approx(expected[step], abs=1e-5)
