"""No command asks anything on the terminal, and none runs code that comes with a directory."""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from support.damaged_files import add_hostile_code
from support.paths import REPOSITORY
from support.programs.warm_python import warm_python
from support.terminal import terminal
from support.tiny_models import tiny_model, tiny_stock_model, tiny_tokenizer
from support.token_directories import CORPUS, before, write_foreign, write_ours
from support.training_runs import SIZES

from modeling_gpt2scratch.checkpoints.checkpoint import save_model

pytestmark = pytest.mark.gate

PREPARE, TRAIN = ["python", "prepare_data.py"], ["python", "train_accelerate.py"]
COMPARE = ["python", "evaluate/compare.py"]
GPT2SCRATCH = ["gpt2scratch"]


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """Directory for the front of PATH: a Python whose imports are done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")  # is read at the import
        with warm_python(tmp_path_factory.mktemp("warm")) as directory:
            yield directory


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Directories of tokenizers, models and data whose files name code; and what it would make."""
    home = tmp_path_factory.mktemp("hostile")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(home / "tokenizer")
    (home / "tokenizer" / "config.json").write_text("{}")
    save_model(tiny_model(), tokenizer, home / "run")
    tiny_stock_model().save_pretrained(home / "stock")
    tokenizer.save_pretrained(home / "stock")
    write_ours(home / "data", tokenizer, val=CORPUS[:2])
    shutil.copytree(home / "data", home / "trapped_data")
    (home / "trapped_data" / "config.json").write_text("{}")
    traps = [
        add_hostile_code(home / name) for name in ("tokenizer", "run", "stock", "trapped_data")
    ]
    write_foreign(home / "foreign", "npy", before(tokenizer, CORPUS), "train")
    (home / "text.txt").write_text("<|endoftext|>".join(CORPUS * 9))
    row = json.dumps({"text": "the cat sat on the mat"})
    (home / "lambada.jsonl").write_text(f"{row}\n" * 3)
    return home, traps


def commands(home: Path, out: Path) -> dict[str, list]:
    """Command lines that read them."""
    tokenizer, run, stock = home / "tokenizer", home / "run", home / "stock"
    prepare = [*PREPARE, "--dataset", home / "text.txt", "--output_dir", out, "--num_workers", 1]
    sizes = SIZES | {"n_positions": 8, "total_batch_tokens": 32, "max_steps": 1, "eval_every": 0}
    sizes |= {"preflight": "false"}
    del sizes["eval_tokens"]
    flags = [part for name, value in sizes.items() for part in (f"--{name}", value)]
    own = ("model", "n_layer", "n_embd", "n_head", "n_positions")
    tuned = sizes | {"sequence_length": 8, "micro_batch_size": 4}
    tuned = [p for name, value in tuned.items() if name not in own for p in (f"--{name}", value)]
    compare = [*COMPARE, "--tasks", "lambada", "--lambada_data", home / "lambada.jsonl"]
    compare += ["--output_dir", out, "--device", "cpu", "--models"]
    shards = [*GPT2SCRATCH, "shards"]
    return {
        "prepare": [*prepare, "--tokenizer", tokenizer],
        "train on data": [*TRAIN, "--data", home / "trapped_data", "--output_dir", out, *flags],
        "train from weights": [
            *(*TRAIN, "--data", home / "data", "--output_dir", out),
            *("--init_from", stock, *tuned),
        ],
        "compare a run": [*compare, run],
        "compare a stock model": [*compare, stock],
        "convert": [*GPT2SCRATCH, "convert", "to-gpt2", run, out],
        "publish": [
            *(*GPT2SCRATCH, "publish", "--run", run, "--repository", "me/mine"),
            *("--dry_run", out),
        ],
        "sample": [*GPT2SCRATCH, "sample", run, "--prompt", "the", "--max_new_tokens", 3],
        "convert shards": [
            *(*shards, "convert", home / "foreign", out, "--to", "ours"),
            *("--tokenizer", tokenizer),
        ],
        "inspect shards": [
            *(*shards, "inspect", home / "foreign" / "edufineweb_train_000000.npy"),
            *("--tokenizer", tokenizer),
        ],
    }


NAMES = list(commands(Path(), Path()))


@pytest.mark.parametrize(
    ("name", "way"),
    # A pipe answers every question; the keyboard is tried where a tokenizer and a model are read.
    [(name, "through a pipe") for name in NAMES]
    + [(name, "at the keyboard") for name in NAMES[:3]],
)
def test_nobody_is_asked_and_no_code_is_run(hostile, warm, tmp_path, name, way):
    home, traps = hostile
    command = [str(word) for word in commands(home, tmp_path / "out")[name]]
    python = Path(sys.executable).parent
    if way == "through a pipe":
        python = warm  # at a keyboard it would not own the terminal
        command = ["bash", "-o", "pipefail", "-c", f"yes | {shlex.join(command)}"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "RAYON_NUM_THREADS": "1"}
    environment |= {"PATH": f"{python}:{os.environ['PATH']}"}
    with terminal(command, cwd=REPOSITORY, env=environment) as screen:
        code = screen.wait()  # without a key typed
    # Whom nobody reads, `yes` ends with SIGPIPE.
    assert code in (0, 141), screen.output
    assert "[y/n]" not in screen.output.lower() and "custom code" not in screen.output.lower()
    assert not any(trap.exists() for trap in traps)
