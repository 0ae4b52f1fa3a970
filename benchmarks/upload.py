"""What it costs the training beside it that a checkpoint is sent to the Hub.

    python benchmarks/upload.py --model gpt2

It needs Linux. Each round trains alone for some seconds, and then while a checkpoint is sent as
`--push_every` sends it. The Hub is on the loopback interface, and has one core to itself. It takes
files as fast as they come and without encryption: over a network an upload takes longer, and in
each second of it less is asked of the processor. What it costs in all is the last column.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tabulate import tabulate

from modeling_gpt2scratch.common.command_line import argument, check_numbers, parse_config
from modeling_gpt2scratch.common.threads import let_waiting_threads_rest

TESTS = Path(__file__).resolve().parent.parent / "tests"  # has the Hub
REPOSITORY = "someone/benchmark"


@dataclass(frozen=True)
class BenchmarkConfig:
    """Every argument of this script."""

    model: Literal["tiny", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] = argument(
        "sizes of the model", default="gpt2"
    )
    sequence_length: int = argument("tokens of a row", default=512)
    micro_batch_size: int = argument("rows of a step", default=1)
    rounds: int = argument("uploads, each with training alone before it", default=5)
    seconds: float = argument("of training alone", default=20.0)
    worker: str | None = argument("for the process that trains: its directory", default=None)

    def __post_init__(self):
        sizes = ("sequence_length", "micro_batch_size", "rounds", "seconds")
        check_numbers(self, positive=sizes, non_negative=())


def main() -> None:
    """Starts the Hub, and a process that trains and sends."""
    config = parse_config(BenchmarkConfig, description=__doc__)
    if config.worker is not None:
        let_waiting_threads_rest()
        train_and_send(config, Path(config.worker))
        return
    sys.path.insert(0, str(TESTS))
    from support.servers import fake_hub

    *cores, core_of_hub = sorted(os.sched_getaffinity(0))
    with (
        fake_hub.serve(REPOSITORY, {".gitattributes": b"*"}, kind="models") as hub,
        tempfile.TemporaryDirectory() as directory,
    ):
        environment = os.environ | hub.environment(Path(directory)) | {"HF_TOKEN": "hf_benchmark"}
        command = [sys.executable, *sys.argv, "--worker", directory]
        process = subprocess.Popen(command, env=environment)
        os.sched_setaffinity(process.pid, cores or [core_of_hub])
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), [core_of_hub])
        sys.exit(process.wait())


def train_and_send(config: BenchmarkConfig, output_dir: Path) -> None:
    """Trains alone and beside uploads in turn, and prints both speeds."""
    import torch
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    from modeling_gpt2scratch import GPT2ScratchConfig, GPT2ScratchForCausalLM
    from modeling_gpt2scratch.checkpoints.pusher import RevisionPusher
    from modeling_gpt2scratch.checkpoints.writer import CheckpointWriter
    from modeling_gpt2scratch.data.tokens.tokenizer import train_tokenizer
    from modeling_gpt2scratch.optim.optimizer import make_optimizer
    from modeling_gpt2scratch.training.sizes import MODEL_SIZES

    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    model = GPT2ScratchForCausalLM(GPT2ScratchConfig(**MODEL_SIZES[config.model])).train()
    optimizer = make_optimizer(model, learning_rate=1e-4, weight_decay=0.1)
    rows = torch.randint(model.config.vocab_size, (config.micro_batch_size, config.sequence_length))

    def speed_while(is_going_on: Callable[[], bool]) -> float:
        """Tokens per second of at least one step."""
        started, n_steps = time.perf_counter(), 0
        while n_steps == 0 or is_going_on():
            model(rows, shift_labels=rows).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            n_steps += 1
        return n_steps * rows.numel() / (time.perf_counter() - started)

    speed_while(lambda: False)  # warm
    parts = {"model": model, "optimizer": optimizer, "tokenizer": train_tokenizer(["text"], 257)}
    writer = CheckpointWriter(output_dir, keep_checkpoints=1, keep_every=0, in_background=False)
    metrics = output_dir / "metrics.jsonl"
    metrics.touch()
    ends: list[tuple[str, dict]] = []  # of uploads
    options = {"private": False, "metrics": metrics, "step": config.rounds}
    options["record"] = lambda event, **values: ends.append((event, values))
    rounds = []
    with RevisionPusher(output_dir, REPOSITORY, **options) as pusher:
        for step in range(config.rounds):
            writer.save(**parts, state={"step": step})
            until = time.perf_counter() + config.seconds
            alone = speed_while(lambda until=until: time.perf_counter() < until)
            pusher.hold(output_dir / f"checkpoint-{step}")
            beside = speed_while(lambda step=step: len(ends) == step)
            event, values = ends[-1]
            if event != "pushed":
                sys.exit(f"expected checkpoint {step} on the Hub, found {values['message']}")
            rounds.append((alone, beside, values["seconds"]))
    writer.close()
    print_table(rounds)


def print_table(rounds: list[tuple[float, float, float]]) -> None:
    """Medians of the rounds, and of their ratios."""
    alone, beside, seconds = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(beside / alone for alone, beside, _ in rounds)
    lost = statistics.median(seconds * (1 - beside / alone) for alone, beside, seconds in rounds)
    rows = [["alone", alone, 1.0, None, None], ["beside an upload", beside, ratio, seconds, lost]]
    header = ["", "tokens/s", "/ alone", "seconds of the upload", "seconds of training lost"]
    print(tabulate(rows, header, "github", floatfmt=("", ".0f", ".2f", ".1f", ".1f")))


if __name__ == "__main__":
    main()
