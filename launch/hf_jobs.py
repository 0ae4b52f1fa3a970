# /// script
# requires-python = ">=3.11"
# dependencies = []  # uv, which runs this file, installs the project below with its tested versions
# ///
r"""Trains on a rented machine of Hugging Face Jobs, with a recipe and any flags:

    hf jobs uv run --flavor l4x1 --timeout 3d --secrets HF_TOKEN launch/hf_jobs.py \
        recipes/gpt2_124m_24gb.yaml --data hf://datasets/you/fineweb-tokens \
        --push_to_hub you/gpt2-124m --push_every 1000

What is not pushed is gone when the job ends. All arguments after the script are those of
train_accelerate.py, with one process for each GPU. `hf` sends your local copy of the recipe. The
code comes from the repository. Nobody has run this on Jobs yet.
"""

import argparse
import os
import shutil
import subprocess
import sys

REPOSITORY = "REPOSITORY_URL"
FOLDER = "gpt2scratch"
CONFIGS = {0: "cpu.yaml", 1: "single_gpu.yaml"}  # by the number of GPUs


def main() -> None:
    """Installs the project in a new folder, and becomes its training."""
    parser = argparse.ArgumentParser(
        prog="hf_jobs.py",
        description=__doc__,
        usage="hf jobs uv run ... launch/hf_jobs.py RECIPE [arguments of train_accelerate.py]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.parse_known_args()  # of these, only --help is for this script
    run("git", "clone", "--depth", "1", REPOSITORY, FOLDER)
    os.chdir(FOLDER)
    run("uv", "venv", "--python", sys.executable, ".venv")
    run("uv", "pip", "install", "--python", ".venv", "-c", "constraints.txt", "-e", ".")
    n_gpus = count_gpus()
    config = os.path.join("accelerate_configs", CONFIGS.get(n_gpus, "ddp_8gpu.yaml"))
    # `accelerate launch`, which also tells a single process that the job is to end. It takes the
    # place of this process, so that signals reach it.
    command = ["launch", "--config_file", config, "--num_processes", str(max(1, n_gpus))]
    launcher = os.path.join(".venv", "bin", "gpt2scratch")
    sys.stdout.flush()
    os.execv(launcher, [launcher, *command, "train_accelerate.py", *sys.argv[1:]])


def run(*command: str) -> None:
    """Runs a command to its end; if it fails, the job ends and says so."""
    print("+", *command, flush=True)
    code = subprocess.run(command).returncode
    if code:
        sys.exit(f"hf_jobs.py: error: expected {command[0]} to succeed, found exit code {code}")


def count_gpus() -> int:
    """How many GPUs of NVIDIA the machine has, the only ones that Jobs lends."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


if __name__ == "__main__":
    main()
