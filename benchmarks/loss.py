"""Time and peak memory of a training step with the chunked loss, against the plain one.

    python benchmarks/loss.py --model gpt2 --micro_batch_size 4

The plain loss is the one transformers gives: all logits, a float32 copy of them, and cross-entropy.
The two take turns in one process for the time; each has a process of its own for the memory.
"""

import gc
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import torch
from tabulate import tabulate

from modeling_gpt2scratch import GPT2ScratchConfig, GPT2ScratchForCausalLM
from modeling_gpt2scratch.common.command_line import argument, parse_config
from modeling_gpt2scratch.distributed.device import available_device
from modeling_gpt2scratch.training.sizes import MODEL_SIZES

LOSSES = ("plain", "chunked")


@dataclass(frozen=True)
class BenchmarkConfig:
    """Every argument of this script."""

    model: str = argument("a name from MODEL_SIZES", default="gpt2")
    vocab_size: int = argument("entries", default=50257)
    sequence_length: int = argument("tokens of a row", default=1024)
    micro_batch_size: int = argument("rows of a step", default=4)
    repeats: int = argument("timed steps of each loss; the fastest counts", default=3)
    bf16: bool = argument("run under bf16 autocast", default=False)
    device: str = argument("where", default=available_device().type)


class Step:
    """Forward and backward of one micro-batch."""

    def __init__(self, config: BenchmarkConfig):
        torch.manual_seed(0)
        self.config = config
        sizes = MODEL_SIZES[config.model] | {"n_positions": config.sequence_length}
        model_config = GPT2ScratchConfig(
            vocab_size=config.vocab_size, bos_token_id=0, eos_token_id=0, **sizes
        )
        self.model = GPT2ScratchForCausalLM(model_config).to(config.device).train()
        shape = (config.micro_batch_size, config.sequence_length)
        self.input_ids = torch.randint(config.vocab_size, shape, device=config.device)

    def __call__(self, loss: str) -> float:
        """Seconds of one step; the gradients stay, as in accumulation."""
        start = time.perf_counter()
        with torch.autocast(self.config.device, torch.bfloat16, enabled=self.config.bf16):
            if loss == "plain":
                mean = self.model(self.input_ids, labels=self.input_ids).loss
            else:
                mean = self.model(self.input_ids, shift_labels=self.input_ids).loss
        mean.backward()
        if self.config.device != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - start


def peak_bytes(loss: str, config: BenchmarkConfig) -> int:
    """Largest memory of a step beyond model and gradients; call it in a fresh process."""
    step = Step(config)
    for parameter in step.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    gc.collect()
    if config.device != "cpu":
        before = torch.accelerator.memory_allocated()
        step(loss)
        return torch.accelerator.max_memory_allocated() - before
    before = max_resident_bytes()
    step(loss)
    return max_resident_bytes() - before


def max_resident_bytes() -> int:
    """The most memory that this process has had so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Prints a row for each loss, and the ratios."""
    config = parse_config(BenchmarkConfig, description=__doc__)
    fresh = ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1)
    with fresh:
        memory = dict(
            zip(LOSSES, fresh.map(partial(peak_bytes, config=config), LOSSES), strict=True)
        )
    step = Step(config)
    seconds = {loss: [] for loss in LOSSES}
    for repeat in range(config.repeats + 1):
        for loss in LOSSES:
            elapsed = step(loss)
            if repeat:  # the first of each warms up
                seconds[loss].append(elapsed)
    fastest = {loss: min(times) for loss, times in seconds.items()}
    rows = [[loss, fastest[loss], memory[loss] / 2**30] for loss in LOSSES]
    rows.append(
        ["plain / chunked"] + [values["plain"] / values["chunked"] for values in (fastest, memory)]
    )
    print(tabulate(rows, ["loss", "seconds per step", "peak GiB"], "pipe", floatfmt=".2f"))


if __name__ == "__main__":
    main()
