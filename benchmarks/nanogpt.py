"""Trains nanoGPT's small character-level model in nanoGPT itself, once for each seed.

    git clone https://github.com/karpathy/nanoGPT
    python nanoGPT/data/shakespeare_char/prepare.py
    python benchmarks/nanogpt.py --checkout nanoGPT --seeds 0 1 2 3 4

Prints what nanoGPT estimates from random batches at the end, and the loss over every whole row of
the validation split, in nats per character. Both are of the last step's weights.
"""

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from modeling_gpt2scratch.common.command_line import argument, parse_config

# Of nanoGPT's README, "I only have a macbook", but for the number of batches of an estimate.
SMALL = ["config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20"]
SMALL += ["--log_interval=100", "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4"]
SMALL += ["--n_embd=128", "--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0"]
SMALL += ["--eval_interval=500"]
# nanoGPT's script with another seed, and then the loss over the validation split.
TRAIN = """
import json, runpy, sys
import numpy as np
import torch

seed, out, *sys.argv[1:] = sys.argv[1:]
seeded = torch.manual_seed
torch.manual_seed = lambda number: seeded(number + int(seed))
sys.argv[0], sys.stdout = "train.py", sys.stderr
sys.path.insert(0, ".")
run = runpy.run_path("train.py", run_name="__main__")
model, length = run["model"].eval(), run["block_size"]
ids = torch.from_numpy(np.fromfile("data/shakespeare_char/val.bin", np.uint16).astype(np.int64))
n_rows = (len(ids) - 1) // length
rows = ids[: n_rows * length].view(n_rows, length)
targets = ids[1 : n_rows * length + 1].view(n_rows, length)
with torch.no_grad():
    pairs = zip(rows.split(128), targets.split(128))
    losses = [model(inputs, labels)[1].item() * len(inputs) for inputs, labels in pairs]
result = {"estimate": float(run["losses"]["val"]), "whole split": sum(losses) / n_rows}
open(out, "w").write(json.dumps(result))
"""


@dataclass(frozen=True)
class NanoGptConfig:
    """Every argument of this script."""

    checkout: str = argument("nanoGPT's repository, with its data prepared")
    output_dir: str = argument("directory of the results", default="runs/nanogpt")
    seeds: list[int] = argument(
        "added to nanoGPT's own, 1337", default_factory=lambda: [0, 1, 2, 3, 4]
    )


def main() -> None:
    """Makes the runs that are missing, and prints a row for each and one for all."""
    config = parse_config(NanoGptConfig, description=__doc__)
    directory = Path(config.output_dir).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in config.seeds:
        path = directory / f"seed-{seed}.json"
        if not path.is_file():
            command = [sys.executable, "-c", TRAIN, str(seed), str(path), *SMALL]
            command.append(f"--out_dir={directory / 'checkpoint'}")
            subprocess.run(command, check=True, cwd=config.checkout)
        rows.append(list(json.loads(path.read_text()).values()))
    table = [
        [seed, *(f"{loss:.4f}" for loss in row)]
        for seed, row in zip(config.seeds, rows, strict=True)
    ]
    if len(rows) > 1:
        columns = list(zip(*rows, strict=True))
        spread = [f"{statistics.fmean(c):.4f} ± {statistics.stdev(c):.4f}" for c in columns]
        table.append(["all", *spread])
    headers = ["seed", "nanoGPT's estimate", "whole validation split"]
    print(tabulate(table, headers, "pipe", disable_numparse=True))


if __name__ == "__main__":
    main()
