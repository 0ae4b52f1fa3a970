"""What it costs that waiting threads rest on an idle machine, and what it saves on a busy one.

    python benchmarks/busy_machine.py

Each figure is of a process of its own that trains the quickstart's model for some seconds: alone,
beside processes that were busy before it started, and beside some that became busy once it trained.
The ways to wait take turns in each round; a ratio is the median of those of all rounds. The machine
must have nothing else to do.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tabulate import tabulate

from modeling_gpt2scratch.common.command_line import argument, check_numbers, parse_config
from modeling_gpt2scratch.common.threads import (
    CHOICES,
    SPIN_COUNT,
    let_waiting_threads_rest,
    load_of_others,
    n_cores,
)

OURS, AS_TORCH = "ours", "torch's default"
# Name -> what is in the environment; ours chooses for itself.
WAYS = {
    AS_TORCH: {},
    OURS: {},
    f"GOMP_SPINCOUNT={SPIN_COUNT}": {"GOMP_SPINCOUNT": SPIN_COUNT},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}
IDLE, BUSY, LATER = "idle", "busy", "busy later"
BUSY_PROGRAM = "while True: pass"
MAX_COST, MIN_SHARE = 0.03, 0.35
VOCAB_SIZE, LENGTH, ROWS = 4096, 256, 8  # of the quickstart
WARMUP_STEPS = 3
READY = "ready"


@dataclass(frozen=True)
class BenchmarkConfig:
    """Every argument of this script."""

    seconds: float = argument("that each process trains", default=10.0)
    rounds: int = argument("of all ways in all situations", default=5)
    busy_processes: int = argument("that compute beside the training", default=2)
    worker: str | None = argument("for the processes that train: their way to wait", default=None)

    def __post_init__(self):
        check_numbers(self, positive=("seconds", "rounds", "busy_processes"), non_negative=())


def main() -> None:
    """Prints tokens per second and their ratios."""
    config = parse_config(BenchmarkConfig, description=__doc__)
    if config.worker is not None:
        if config.worker == OURS:
            let_waiting_threads_rest()
        train(config.seconds)
        return
    if load_of_others():
        print(f"note: others want {load_of_others():g} of {n_cores()} cores; the figures suffer")
    speeds: dict[tuple[str, str], list[float]] = {}
    generator = random.Random(0)
    for _ in range(config.rounds):
        for situation in (IDLE, BUSY, LATER):
            for way in generator.sample(list(WAYS), len(WAYS)):
                speed = measure(config, way, situation)
                speeds.setdefault((way, situation), []).append(speed)
    print_table(speeds)
    cost = 1 - ratio(speeds, (OURS, IDLE), (AS_TORCH, IDLE))
    share, share_later = (ratio(speeds, (OURS, s), (AS_TORCH, IDLE)) for s in (BUSY, LATER))
    print(
        f"\n{config.busy_processes} busy processes, {n_cores()} cores; cost on an idle machine "
        f"{cost:.1%} (goal: below {MAX_COST:.0%}); share of the idle speed that stays {share:.2f} "
        f"beside busy processes (goal: at least {MIN_SHARE}), {share_later:.2f} if they come later"
    )


def measure(config: BenchmarkConfig, way: str, situation: str) -> float:
    """Tokens per second of a process that waits in this way in this situation."""
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES}
    environment |= {"OMP_NUM_THREADS": str(n_cores())} | WAYS[way]
    command = [sys.executable, __file__, "--worker", way, "--seconds", str(config.seconds)]
    with ExitStack() as stack:
        if situation == BUSY:
            stack.enter_context(busy(config.busy_processes))
        process = stack.enter_context(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        )
        assert process.stdout is not None
        if process.stdout.readline().strip() != READY:
            raise RuntimeError(f"expected {READY} from {' '.join(command)}, found another end")
        if situation == LATER:
            stack.enter_context(busy(config.busy_processes))
        return json.loads(process.stdout.readline())


@contextmanager
def busy(n_processes: int) -> Iterator[None]:
    """Within the block, so many processes want a core each."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY_PROGRAM]) for _ in range(n_processes)]
    try:
        time.sleep(0.5)  # until they are at it
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def train(seconds: float) -> None:
    """Says that it is ready, trains, and prints the tokens per second."""
    import torch

    from modeling_gpt2scratch import GPT2ScratchConfig, GPT2ScratchForCausalLM
    from modeling_gpt2scratch.hardware.devices import keep_freed_memory
    from modeling_gpt2scratch.optim.optimizer import make_optimizer
    from modeling_gpt2scratch.training.sizes import MODEL_SIZES

    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the training script does
    keep_freed_memory()
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2ScratchForCausalLM(
        GPT2ScratchConfig(**MODEL_SIZES["tiny"], vocab_size=VOCAB_SIZE, **ends)
    ).train()
    optimizer = make_optimizer(model, learning_rate=1e-3, weight_decay=0.1)
    input_ids = torch.randint(VOCAB_SIZE, (ROWS, LENGTH))

    def step() -> None:
        model(input_ids, shift_labels=input_ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(WARMUP_STEPS):
        step()
    print(READY, flush=True)
    n_steps, started = 0, time.perf_counter()
    while time.perf_counter() < started + seconds:
        step()
        n_steps += 1
    print(n_steps * ROWS * LENGTH / (time.perf_counter() - started), flush=True)


def ratio(
    speeds: dict[tuple[str, str], list[float]], which: tuple[str, str], other: tuple[str, str]
) -> float:
    """The median of the rounds' ratios."""
    pairs = zip(speeds[which], speeds[other], strict=True)
    return statistics.median(speed / other_speed for speed, other_speed in pairs)


def print_table(speeds: dict[tuple[str, str], list[float]]) -> None:
    """Tokens per second in each situation, and beside them the share of torch's on an idle one."""
    rows = []
    for way in WAYS:
        cells: list[str | float] = [way]
        for situation in (IDLE, BUSY, LATER):
            cells.append(statistics.median(speeds[way, situation]))
            cells.append(ratio(speeds, (way, situation), (AS_TORCH, IDLE)))
        rows.append(cells)
    header = ["", *(text for situation in (IDLE, BUSY, LATER) for text in (situation, "share"))]
    print(tabulate(rows, header, "pipe", floatfmt=(None, *[".0f", ".2f"] * 3)))


if __name__ == "__main__":
    main()
