"""The wheel, installed in a fresh environment and used from a directory outside the checkout."""

import importlib.metadata
import os
import shutil
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from support.paths import REPOSITORY
from support.processes import run_process

import modeling_gpt2scratch

pytestmark = pytest.mark.gate

PACKAGE = "modeling_gpt2scratch"
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")
SCRIPTS = ("prepare_data.py", "train_accelerate.py", "evaluate/compare.py")
NEWEST_FEATURE = 77  # of setuptools, as pyproject.toml says
# Imports every module that is installed, and says where the package lies.
IMPORT_ALL = """
import importlib, pkgutil, modeling_gpt2scratch as package
found = [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in found:
    importlib.import_module(name)
print(package.__file__, *found, sep="\\n")
"""
# The console command for each argument in turn, in one process; it ends at the first that fails.
RUN_ALL = """
import sys
from modeling_gpt2scratch.__main__ import main
for command in sys.argv[1:]:
    sys.argv = ["gpt2scratch", *command.split()]
    try:
        main()
    except SystemExit as ending:
        if ending.code:
            raise
"""


def run(*command: str | Path, cwd: Path, is_ok: bool = True) -> str:
    """What a command prints, outside the checkout and without a network; it must end well."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    environment.pop("PYTHONPATH", None)
    process = run_process([str(part) for part in command], cwd=cwd, env=environment)
    assert not is_ok or process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the sources, so that nothing is left in the checkout."""
    directory = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copy(REPOSITORY / name, directory)
    shutil.copytree(
        REPOSITORY / PACKAGE, directory / PACKAGE, ignore=shutil.ignore_patterns("__pycache__")
    )
    has_setuptools = int(importlib.metadata.version("setuptools").split(".")[0]) >= NEWEST_FEATURE
    options = ["--no-build-isolation"] if has_setuptools else []  # else pip downloads it
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *options]
    run(*pip, "--wheel-dir", "dist", ".", cwd=directory)
    (wheel,) = (directory / "dist").iterdir()
    return wheel


@pytest.fixture(scope="module")
def bin(wheel, tmp_path_factory) -> Path:
    """The programs of a fresh environment that has the wheel, and the libraries of this one."""
    environment = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment)
    python = environment / "bin" / "python"
    (site_packages,) = environment.glob("lib/python*/site-packages")
    # A path of a .pth file comes last, and the editable install's own .pth in it is not read.
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages / "libraries.pth").write_text("\n".join(libraries))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index"]
    run(*pip, "--no-deps", wheel, cwd=environment)
    return python.parent


@pytest.fixture(scope="module")
def work(bin, tmp_path_factory) -> Path:
    """A directory with the scripts, prepared data and a short run."""
    work = tmp_path_factory.mktemp("work")
    for script in SCRIPTS:
        shutil.copy(REPOSITORY / script, work)
    animals = ("cat", "dog")
    texts = [f"the {animal} sat on the mat {n} times" for n in range(99) for animal in animals]
    (work / "text.txt").write_text("<|endoftext|>".join(texts))
    prepare = ["prepare_data.py", "--dataset", "text.txt", "--output_dir", "data"]
    prepare += ["--tokenizer", "bpe:300", "--val_fraction", "0.2", "--num_workers", "1"]
    run(bin / "python", *prepare, cwd=work)
    train = ["train_accelerate.py", "--data", "data", "--output_dir", "run", "--model", "tiny"]
    train += ["--n_positions", "16", "--total_batch_tokens", "64", "--micro_batch_size", "4"]
    train += ["--max_steps", "2", "--log_every", "1", "--eval_every", "2", "--optimizer", "muon"]
    run(bin / "python", *train, cwd=work)
    return work


def test_the_wheel_holds_the_package_its_data_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {PACKAGE, "gpt2scratch"}
    assert f"{PACKAGE}/evaluation/results/published_numbers.json" in names
    expected = {str(file.relative_to(REPOSITORY)) for file in (REPOSITORY / PACKAGE).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == expected


def test_every_module_of_the_checkout_is_installed_and_can_be_imported(bin, tmp_path):
    place, *found = run(bin / "python", "-c", IMPORT_ALL, cwd=tmp_path).splitlines()
    assert Path(place).is_relative_to(bin.parent)
    files = (REPOSITORY / PACKAGE).rglob("*.py")
    parts = [file.relative_to(REPOSITORY).with_suffix("").parts for file in files]
    names = {".".join(part).removesuffix(".__init__") for part in parts}
    assert {PACKAGE, *found} == names


def test_the_installed_package_prepares_trains_and_compares(bin, work):
    manifest = (work / "data" / "manifest.json").read_text()
    assert '"train"' in manifest and '"val"' in manifest
    assert (work / "run" / "model.safetensors").exists()
    compare = ["compare.py", "--models", "run", "--tasks", "val", "--val_data", "data"]
    assert "bits_per_byte" in run(bin / "python", *compare, cwd=work)
    assert (work / "run" / "results.json").exists()


def test_the_console_command_has_its_verbs(bin, work):
    def gpt2scratch(*commands: str) -> str:
        return run(bin / "python", "-c", RUN_ALL, *commands, cwd=work)

    version = run(bin / "gpt2scratch", "--version", cwd=work)
    assert version == f"gpt2scratch {modeling_gpt2scratch.__version__}\n"
    verified = run(bin / "gpt2scratch", "shards", "verify", "data", cwd=work)
    assert verified.startswith("ok: data: ")
    printed = gpt2scratch(
        "shards inspect data",
        "shards convert data llmc --to llm.c",
        "convert to-gpt2 run stock",
        "report --run run",
        "plot --runs run --output loss.png",
        "publish --run run --repository me/tiny --dry_run files",
        "shards publish --data data --repository me/data --dry_run data_files",
    )
    for line in ("300 entries", "gpt2 model of", "written: run/report.md\n"):
        assert line in printed
    assert list((work / "llmc").iterdir())
    assert (work / "loss.png").exists()
    assert (work / "files" / "README.md").exists() and (work / "data_files" / "README.md").exists()
    doctor = [bin / "gpt2scratch", "doctor", "--timeout_seconds", "10"]
    assert "output directory" in run(*doctor, cwd=work, is_ok=False)
