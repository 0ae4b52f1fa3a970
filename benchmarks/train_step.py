"""Tokens per second of whole training steps: ours, transformers' and a plain script's.

    python benchmarks/train_step.py --model gpt2 --sequence_length 1024 --micro_batch_size 1

A step is forward, backward, clipping and AdamW. The contestants take turns in one process, in
rounds, with the same sizes, data, threads and allocator; a ratio is the median of those of all
rounds, so that what else runs on the machine meets both sides. The peak is the best matrix product
between these rounds. On a machine that is never quiet, `--clock cpu` under OMP_NUM_THREADS=1 counts
the seconds that the process had a core.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from plain_gpt import PlainGPT
from tabulate import tabulate
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from modeling_gpt2scratch import GPT2ScratchConfig, GPT2ScratchForCausalLM
from modeling_gpt2scratch.common.command_line import argument, parse_config
from modeling_gpt2scratch.distributed.device import available_device
from modeling_gpt2scratch.hardware.devices import flops_per_token, keep_freed_memory
from modeling_gpt2scratch.optim.optimizer import make_optimizer
from modeling_gpt2scratch.training.sizes import MODEL_SIZES

MATMUL_SIZES = {"cpu": 1024}  # of others 8192: a launch alone takes as long as a small product
MATMUL_SECONDS = 0.3  # long enough for a CPU to leave its idle clock


@dataclass(frozen=True)
class Entry:
    """Who takes part, and how."""

    kind: str  # ours, transformers or plain
    dtype: torch.dtype
    optimizer: Literal["adamw", "muon"] = "adamw"  # Muon knows our blocks only
    is_compiled: bool = False


CONTESTANTS = {
    "ours bf16": Entry("ours", torch.bfloat16),
    "ours bf16 compiled": Entry("ours", torch.bfloat16, is_compiled=True),
    "ours fp32": Entry("ours", torch.float32),
    "transformers bf16": Entry("transformers", torch.bfloat16),
    "transformers bf16 compiled": Entry("transformers", torch.bfloat16, is_compiled=True),
    "transformers fp32": Entry("transformers", torch.float32),
    "plain bf16": Entry("plain", torch.bfloat16),
    "plain bf16 compiled": Entry("plain", torch.bfloat16, is_compiled=True),
    "plain fp32": Entry("plain", torch.float32),
}
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
LEARNING_RATE = 3e-4
MAX_GRAD_NORM = 1.0
N_WORDS, N_NEXT = 512, 16  # of the data: see `batches`


@dataclass(frozen=True)
class BenchmarkConfig:
    """Every argument of this script."""

    model: str = argument("a name from MODEL_SIZES", default="gpt2")
    vocab_size: int = argument("entries", default=50257)
    sequence_length: int = argument("tokens of a row", default=1024)
    micro_batch_size: int = argument("rows of a step", default=1)
    rounds: int = argument("timed steps of each contestant", default=10)
    contestants: list[str] = argument(
        f"any of {', '.join(CONTESTANTS)}; all if none is given", default_factory=list
    )
    clock: Literal["wall", "cpu"] = argument("seconds that count", default="wall")
    device: str = argument("where", default=available_device().type)


class Contestant:
    """A model with its optimizer.

    Args:
        entry: who it is.
        config: sizes, device and clock.
        backend: of torch.compile.
    """

    def __init__(self, entry: Entry, config: BenchmarkConfig, *, backend: str = "inductor"):
        self.dtype = entry.dtype
        self.device, self.clock = config.device, CLOCKS[config.clock]
        torch.manual_seed(0)  # so that ours begins alike in both precisions
        sizes = MODEL_SIZES[config.model] | {"n_positions": config.sequence_length}
        sizes["vocab_size"] = config.vocab_size
        with torch.device(config.device):  # a GPU draws the weights in no time
            model, self.loss_of = MODELS[entry.kind](sizes)
        self.model = model.train()
        if entry.is_compiled:
            self.model.compile(backend=backend, dynamic=False)
        self.optimizer = make_optimizer(
            self.model, learning_rate=LEARNING_RATE, weight_decay=0.1, name=entry.optimizer
        )
        if entry.kind == "ours":  # which a training run always sets
            self.optimizer.found_inf = torch.zeros((), device=config.device)

    def step(self, input_ids: Tensor, targets: Tensor) -> tuple[float, float]:
        """One optimizer update; its loss in nats per token, and its seconds."""
        _synchronize(self.device)
        start = self.clock()
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.loss_of(self.model, input_ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss = loss.item()
        return loss, self.clock() - start


def ours(sizes: dict) -> tuple[nn.Module, Callable]:
    """Our model, with the loss that needs no logits."""
    model = GPT2ScratchForCausalLM(GPT2ScratchConfig(**sizes, bos_token_id=0, eos_token_id=0))
    return model, lambda model, ids, targets: model(ids, shift_labels=targets).loss


def theirs(sizes: dict) -> tuple[nn.Module, Callable]:
    """transformers' model without dropout, as ours, and as its Trainer calls it: without a cache.

    It shifts its labels itself.
    """
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **no_dropout, bos_token_id=0, eos_token_id=0))
    model.loss_type = "ForCausalLM"  # None makes it warn, and leave the compiled graph for that
    return model, lambda model, ids, targets: model(ids, labels=ids, use_cache=False).loss


def plain(sizes: dict) -> tuple[nn.Module, Callable]:
    """The model of a single-file script."""
    return PlainGPT(**sizes), lambda model, ids, targets: model(ids, targets)


MODELS = {"ours": ours, "transformers": theirs, "plain": plain}


def batches(config: BenchmarkConfig) -> list[tuple[Tensor, Tensor]]:
    """Tokens (B, T) of each round and those that follow them.

    Of `N_WORDS` words of the vocabulary, each is followed by one of `N_NEXT`, so that there is
    something to learn and losses fall as they do on text.
    """
    generator = torch.Generator().manual_seed(0)
    words = torch.randperm(config.vocab_size, generator=generator)[:N_WORDS]
    shape = (config.rounds + 1, config.micro_batch_size, config.sequence_length + 1)
    steps = torch.randint(1, N_NEXT + 1, shape, generator=generator)
    ids = words[steps.cumsum(-1) % len(words)].to(config.device)
    return [(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) for rows in ids]


def measure(
    config: BenchmarkConfig, names: list[str]
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[torch.dtype, float]]:
    """Losses and seconds by contestant and round, and the best matrix product by precision."""
    contestants = {name: Contestant(CONTESTANTS[name], config) for name in names}
    losses, seconds = ({name: [] for name in names} for _ in range(2))
    peaks = {contestant.dtype: 0.0 for contestant in contestants.values()}
    for round_, batch in enumerate(batches(config)):
        for name, contestant in contestants.items():
            loss, elapsed = contestant.step(*batch)
            losses[name].append(loss)
            if round_:  # the first warms up
                seconds[name].append(elapsed)
        for dtype in peaks:
            found = measure_matmul_flops(dtype, config.device, CLOCKS[config.clock])
            peaks[dtype] = max(peaks[dtype], found)
    return losses, seconds, peaks


def ratio(seconds: dict[str, list[float]], name: str, other: str) -> float:
    """How many times as fast the first is as the other: the median over the rounds."""
    pairs = zip(seconds[other], seconds[name], strict=True)
    return statistics.median(theirs / own for theirs, own in pairs)


def fastest_peer(seconds: dict[str, list[float]], dtype: torch.dtype) -> str | None:
    """The quickest of the others in this precision, None where there is none."""
    medians = {
        name: statistics.median(values)
        for name, values in seconds.items()
        if CONTESTANTS[name].kind != "ours" and CONTESTANTS[name].dtype == dtype
    }
    return min(medians, key=medians.get, default=None)


def main() -> None:
    """Prints a row for each contestant, and how far bf16 strays from float32."""
    config = parse_config(BenchmarkConfig, description=__doc__)
    # Memory for all alike, as in train_accelerate.py.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    keep_freed_memory()
    names = config.contestants or list(CONTESTANTS)
    losses, seconds, peaks = measure(config, names)

    tokens = config.micro_batch_size * config.sequence_length
    sizes = MODEL_SIZES[config.model] | {"vocab_size": config.vocab_size}
    of_token = flops_per_token(
        GPT2ScratchConfig(**sizes, bos_token_id=0, eos_token_id=0), config.sequence_length
    )
    peers = {precision: fastest_peer(seconds, dtype) for precision, dtype in PRECISIONS.items()}
    peers = {precision: peer for precision, peer in peers.items() if peer}
    rows = []
    for name in names:
        per_second = tokens / statistics.median(seconds[name])
        peak = peaks[CONTESTANTS[name].dtype]
        times = [ratio(seconds, name, peer) for peer in peers.values()]
        rows.append([name, per_second, 100 * per_second * of_token / peak, *times])
    header = ["", "tokens/s", "% of peak", *(f"x best {precision} peer" for precision in peers)]
    print(tabulate(rows, header, "pipe", floatfmt=(None, ".0f", ".0f", *[".2f"] * len(peers))))
    threads = f", {torch.get_num_threads()} threads" if config.device == "cpu" else ""
    of_dtypes = [f"{str(d).removeprefix('torch.')} {p / 1e12:.3f}" for d, p in peaks.items()]
    print(
        f"\n{config.model}, {config.micro_batch_size} x {config.sequence_length} tokens{threads}, "
        f"{config.clock} clock; peak in TFLOP/s: {', '.join(of_dtypes)}"
    )
    if {"ours bf16", "ours fp32"} <= set(names):
        pairs = list(zip(losses["ours bf16"], losses["ours fp32"], strict=True))
        worst = max(abs(bf16 / fp32 - 1) for bf16, fp32 in pairs)
        print(
            f"loss of ours fp32 {pairs[0][1]:.3f} to {pairs[-1][1]:.3f} in {len(pairs)} steps; "
            f"bf16 strays by at most {100 * worst:.3f} %"
        )


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def measure_matmul_flops(
    dtype: torch.dtype,
    device: torch.device | str,
    clock: Callable[[], float],
) -> float:
    """The FLOP/s that square matrix products reach on a device, the best of many.

    This is no peak of the hardware: on a CPU it depends on the threads torch uses and on what else
    runs there.
    """
    size = MATMUL_SIZES.get(torch.device(device).type, 8192)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in "lr")
    product = torch.mm(left, right)
    fastest, end = float("inf"), clock() + MATMUL_SECONDS
    while clock() < end:
        start = clock()
        torch.mm(left, right, out=product)
        if torch.device(device).type != "cpu":
            torch.accelerator.synchronize()
        fastest = min(fastest, clock() - start)
    return 2 * size**3 / fastest


if __name__ == "__main__":
    main()
