"""The lines of quickstart.sh, as they stand there, on less text and for fewer steps."""

import json
import os
import sys
from pathlib import Path

import pytest
from support.paths import REPOSITORY
from support.processes import run_process


@pytest.mark.gate
def test_the_quickstart_goes_from_text_to_a_scored_checkpoint(small_data, tmp_path):
    # A copy of the tree by links, in which two things differ: the source of the text, because
    # reading every docstring takes a minute, and the numbers of steps.
    for path in REPOSITORY.iterdir():
        if path.name not in ("recipes", "quickstart.sh", "data", "runs"):
            (tmp_path / path.name).symlink_to(path)
    recipe = (REPOSITORY / "recipes" / "quickstart.yaml").read_text()
    (tmp_path / "recipes").mkdir()
    for line, smaller in (("max_steps: 1200\n", "max_steps: 4\n"), ("decay_steps: 1100\n", "")):
        assert recipe.count(line) == 1
        recipe = recipe.replace(line, smaller)
    (tmp_path / "recipes" / "quickstart.yaml").write_text(recipe)
    script = (REPOSITORY / "quickstart.sh").read_text()
    assert script.count("--dataset docstrings ") == 1
    source = small_data.parent / "documents.txt"
    script = script.replace(
        "--dataset docstrings ", f"--dataset {source} --tokenizer bpe:512 --val_fraction 0.2 "
    )
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    process = run_process(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
    )
    assert process.returncode == 0, process.stderr
    assert "finished: model and tokenizer are in runs/quickstart" in process.stdout
    assert "| bits_per_byte |" in process.stdout
    assert process.stdout.split("| bits_per_byte |")[1].count("Returns the") == 1  # comes last
    results = json.loads((tmp_path / "runs" / "quickstart" / "results.json").read_text())
    assert results["models"]["runs/quickstart"]["results"]["val"]["loss,none"] < 7
    assert (tmp_path / "runs" / "quickstart" / "model.safetensors").exists()
