"""How long training stands still for a checkpoint, written at once and in the background.

    python benchmarks/checkpoint_stall.py --model gpt2

Model and AdamW have a step behind them, as in a run. The tokenizer is a small one, and is not what
takes the time. The first save of each kind, which takes its memory from the system, is not counted.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tabulate import tabulate
from transformers.utils import logging as transformers_logging

from modeling_gpt2scratch import GPT2ScratchConfig, GPT2ScratchForCausalLM
from modeling_gpt2scratch.checkpoints.writer import CheckpointWriter
from modeling_gpt2scratch.common.command_line import argument, check_numbers, parse_config
from modeling_gpt2scratch.data.tokens.tokenizer import train_tokenizer
from modeling_gpt2scratch.distributed.device import available_device
from modeling_gpt2scratch.optim.optimizer import make_optimizer
from modeling_gpt2scratch.training.sizes import MODEL_SIZES


@dataclass(frozen=True)
class BenchmarkConfig:
    """Every argument of this script."""

    model: Literal["tiny", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] = argument(
        "sizes of the model", default="gpt2"
    )
    directory: str | None = argument("where to write; a temporary one if not given", default=None)
    repeats: int = argument("saves of each kind", default=3)

    def __post_init__(self):
        check_numbers(self, positive=("repeats",), non_negative=())


def make_parts(model_name: str) -> dict:
    """What a checkpoint is made of, with moments of full size, on the GPU if there is one."""
    model = GPT2ScratchForCausalLM(GPT2ScratchConfig(**MODEL_SIZES[model_name]))
    model.to(available_device())
    optimizer = make_optimizer(model, learning_rate=1e-4, weight_decay=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return {"model": model, "optimizer": optimizer, "tokenizer": train_tokenizer(["text"], 257)}


def seconds(parts: dict, directory: Path, *, in_background: bool, repeats: int) -> list[float]:
    """Medians of the stall and of the time until the checkpoint is written."""
    options = {"keep_checkpoints": 1, "keep_every": 0, "in_background": in_background}
    writer = CheckpointWriter(directory, **options)
    stalls, totals = [], []
    for step in range(repeats + 1):
        started = time.perf_counter()
        stalls.append(writer.save(**parts, state={"step": step}))
        writer.wait()
        totals.append(time.perf_counter() - started)
    writer.close()
    return [statistics.median(stalls[1:]), statistics.median(totals[1:])]


def main() -> None:
    """Prints stall and total of both ways, and their ratios."""
    config = parse_config(BenchmarkConfig, description=__doc__)
    transformers_logging.disable_progress_bar()
    parts = make_parts(config.model)
    with tempfile.TemporaryDirectory(dir=config.directory) as directory:
        kinds = {"at once": False, "in the background": True}
        found = {
            name: seconds(parts, Path(directory) / name, in_background=kind, repeats=config.repeats)
            for name, kind in kinds.items()
        }
    ratios = [left / right for left, right in zip(*found.values(), strict=True)]
    rows = [[name, *values] for name, values in found.items()] + [["at once / background", *ratios]]
    headers = ["", "stall (s)", "until written (s)"]
    print(tabulate(rows, headers=headers, tablefmt="github", floatfmt=".2f"))


if __name__ == "__main__":
    main()
