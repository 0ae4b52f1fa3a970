"""The shell and Python blocks of README and docs, run as they stand there, on little data.

All blocks of a page run in one directory, one after the other. It looks like the repository with a
finished quickstart: `data/docstrings`, `runs/quickstart`, and some text in `own`.
Commands start in a Python that has loaded torch already; see `support/programs/warm_python.py`.
"""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.documentation import (
    BLOCKS,
    IN_GATE,
    NOT_RUN,
    PAGES,
    RUN_LANGUAGES,
    SHOWN_LANGUAGES,
    Block,
)
from support.paths import REPOSITORY
from support.processes import run_process

from modeling_gpt2scratch.data.preparation.configuration import PrepareConfig
from modeling_gpt2scratch.evaluation.configuration import CompareConfig
from modeling_gpt2scratch.training.configuration import TrainConfig

CONFIGS = {
    "prepare_data.py": PrepareConfig,
    "train_accelerate.py": TrainConfig,
    "evaluate/compare.py": CompareConfig,
}
# What a block asks for, and what it gets here instead. Each is used by some block.
SMALLER = {
    "--dataset docstrings ": "--dataset own/notes.txt --tokenizer bpe:300 --val_fraction 0.1 ",
    ",docstrings:0.7'": ",own/documents.parquet:0.7'",
    "bpe:4096": "bpe:300",
    "--total_batch_tokens 2048": "--total_batch_tokens 512",
    "--micro_batch_size 8": "--micro_batch_size 2",
    "--micro_batch_size 4": "--micro_batch_size 1",
    "--max_steps 1000": "--max_steps 4",
    "--max_steps 100 ": "--max_steps 2 ",
    "--max_steps 200 ": "--max_steps 4 ",
    "checkpoint-1000": "checkpoint-2",
    "max_steps=1000, ": "max_steps=4, ",
}
SMALLER_RECIPES = {
    "quickstart.yaml": {
        "\ntotal_batch_tokens: 2048\n": "\ntotal_batch_tokens: 512\n",
        "\nmicro_batch_size: 8\n": "\nmicro_batch_size: 2\n",
        "\nmax_steps: 1900\n": "\nmax_steps: 4\n",
        "\ndecay_steps: 1750\n": "\n",
        "\neval_every: 250\n": "\neval_every: 4\n",
        "\nsave_every: 500\n": "\nsave_every: 2\n",
    },
    "finetune.yaml": {"\nwarmup_steps: 30\n": "\nwarmup_steps: 1\n"},
}
TEXT = "own/notes.txt"
END_OF_TEXT = "<|endoftext|>"


def replaced(text: str, replacements: dict[str, str]) -> str:
    for old, new in replacements.items():
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def finished_quickstart(warm_commands, small_data, tmp_path_factory) -> Path:
    """A copy of the repository by links, with the quickstart's data and run."""
    directory = tmp_path_factory.mktemp("docs") / "repository"
    directory.mkdir()
    for path in REPOSITORY.iterdir():
        if path.name not in ("recipes", "data", "runs", "own", "out", "results", ".git"):
            (directory / path.name).symlink_to(path)
    shutil.copytree(REPOSITORY / "recipes", directory / "recipes")
    for name, lines in SMALLER_RECIPES.items():
        recipe = (REPOSITORY / "recipes" / name).read_text()
        assert all(recipe.count(line) == 1 for line in lines)
        (directory / "recipes" / name).write_text(replaced(recipe, lines))
    shutil.copytree(small_data, directory / "data" / "docstrings")
    (directory / "own").mkdir()
    text = (small_data.parent / "documents.txt").read_text(encoding="utf-8")
    (directory / TEXT).write_text(text, encoding="utf-8")
    rows = pa.table({"id": ["0", "1", "2"], "text": text.split(END_OF_TEXT)[:3]})
    pq.write_table(rows, directory / "own" / "documents.parquet")
    run("python train_accelerate.py recipes/quickstart.yaml", directory, warm_commands)
    return directory


@pytest.fixture(scope="module")
def directory_of(finished_quickstart, tmp_path_factory):
    """A directory of its own for each page."""
    made = {}

    def make(page: str) -> Path:
        if page not in made:
            made[page] = tmp_path_factory.mktemp("page") / "repository"
            shutil.copytree(finished_quickstart, made[page], symlinks=True)
            if page == "docs/tutorials/first-hour.md":  # which begins with nothing
                for name in ("data", "runs"):
                    shutil.rmtree(made[page] / name)
        return made[page]

    return make


def run(script: str, directory: Path, commands: Path) -> None:
    """Runs lines of a shell, which must succeed."""
    environment = os.environ | {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "agg",
    }
    shell = ["bash", "-euo", "pipefail", "-c", script]
    process = run_process(shell, cwd=directory, env=environment)
    assert process.returncode == 0, f"{script}\n{process.stdout}\n{process.stderr}"


def parameters() -> list:
    return [
        pytest.param(
            block, id=block.name, marks=pytest.mark.gate if block.comment == IN_GATE else ()
        )
        for block in BLOCKS
        if block.is_run
    ]


@pytest.mark.parametrize("block", parameters())
def test_a_block_runs(block, directory_of, warm_commands):
    directory = directory_of(block.page)
    text = replaced(block.text, SMALLER)
    if block.language == "python":
        (directory / "block.py").write_text(text)
        text = "python block.py"
    run(text, directory, warm_commands)


def test_every_block_has_a_known_language_and_a_comment_that_is_understood():
    for block in BLOCKS:
        assert block.language in (*RUN_LANGUAGES, *SHOWN_LANGUAGES), block.name
        comment = block.comment
        is_known = comment in (None, IN_GATE) or re.match(rf"{NOT_RUN}\w.{{8,}}", comment)
        assert is_known, f"{block.name}: {comment}"
    fences = sum(page.read_text().count("```") for page in PAGES)
    assert fences == 2 * len(BLOCKS)  # none escapes


def test_what_is_made_smaller_is_there():
    texts = [block.text for block in BLOCKS if block.is_run]
    assert [old for old in SMALLER if not any(old in text for text in texts)] == []


def words_of(block: Block) -> list[list[str]]:
    """The commands of a block, as a shell would split them."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=block.name)
        for block in BLOCKS
        if block.language == "bash" and not block.is_run and "<<" not in block.text
    ],
)
def test_a_block_that_is_not_run_names_files_and_flags_that_exist(block):
    for words in words_of(block):
        files = [word for word in words if word.endswith((".py", ".yaml", ".slurm"))]
        assert [file for file in files if not (REPOSITORY / file).is_file()] == []
        for script in set(words) & set(CONFIGS):
            flags = [word for word in words[words.index(script) :] if word.startswith("--")]
            names = {flag.split("=")[0].removeprefix("--") for flag in flags}
            assert names <= set(CONFIGS[script].__dataclass_fields__)


@pytest.mark.gate
def test_the_quickstart_goes_on_where_it_stopped(directory_of, warm_commands):
    directory = directory_of("quickstart.sh")
    for name in ("data", "runs"):
        shutil.rmtree(directory / name)
    script = (REPOSITORY / "quickstart.sh").read_text()
    (directory / "smaller.sh").write_text(replaced(script, SMALLER))

    def made(max_steps: int) -> tuple[dict[int, dict], dict[Path, int]]:
        """The lines of the run's log by step, and when the shards were written."""
        run(f"bash smaller.sh --max_steps {max_steps}", directory, warm_commands)
        lines = (directory / "runs/quickstart/metrics.jsonl").read_text().splitlines()
        shards = {path: path.stat().st_mtime_ns for path in (directory / "data").rglob("*.bin")}
        return {row["step"]: row for row in map(json.loads, lines)}, shards

    (first, shards), (second, again) = made(4), made(6)
    assert max(first) == 4 and max(second) == 6 and shards == again
    assert all(second[step] == row for step, row in first.items() if step < 4)
