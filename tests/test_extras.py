"""setup.cfg: the extras install with the tested versions, and what it names exists."""

import configparser
import json
import re
import subprocess
import sys

import pytest
from support.documentation import PAGES
from support.paths import REPOSITORY

SETUP = configparser.ConfigParser()
SETUP.read(REPOSITORY / "setup.cfg", encoding="utf-8")
EXTRAS = set(SETUP["options.extras_require"])
NAMED = re.compile(r"\.\[([a-z,]+)\]")  # as in pip install -e ".[test,docs]"


def test_every_path_in_setup_cfg_exists():
    text = (REPOSITORY / "setup.cfg").read_text(encoding="utf-8")
    paths = [*re.findall(r"[\w/]+\.(?:py|md)\b", text), SETUP["metadata"]["license_files"]]
    assert len(paths) > 10
    for package, names in SETUP["options.package_data"].items():
        paths += [f"{package.replace('.', '/')}/{name}" for name in names.split()]
    assert [path for path in paths if not (REPOSITORY / path).is_file()] == []


def test_extras_that_pages_and_messages_name_exist():
    files = [*PAGES, REPOSITORY / ".ci" / "run", *(REPOSITORY / "accelerate_configs").iterdir()]
    files += (REPOSITORY / "modeling_gpt2scratch").rglob("*.py")
    named = {
        (name, str(file))
        for file in files
        for names in NAMED.findall(file.read_text(encoding="utf-8"))
        for name in names.split(",")
    }
    assert len(named) > 5
    assert {(name, file) for name, file in named if name not in EXTRAS} == set()


def normalized(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.gate
def test_all_extras_resolve_together_to_the_pinned_versions(tmp_path):
    # Packages that are all pinned and resolve together also do so extra by extra.
    report = tmp_path / "report.json"
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--report", str(report)]
    process = subprocess.run(
        [*pip, "-c", "constraints.txt", "-e", f".[{','.join(sorted(EXTRAS))}]"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pinned = {normalized(line.partition("==")[0]) for line in lines}
    new = {item["metadata"]["name"] for item in json.loads(report.read_text())["install"]}
    unpinned = {name for name in new if normalized(name) not in pinned}
    assert unpinned <= {"gpt2scratch", "setuptools"}
