"""Speed and memory of the training loader on one core, against loading whole shards.

    python benchmarks/loader.py --shard_tokens 100_000_000

The common approach reads a shard with `np.load`, converts it to int32 and then to a torch.long
tensor, and slices that from front to back. Ours reads shuffled rows from memory-mapped shards. Both
read the same random tokens, all of them once, from the operating system's cache of files; each has
a fresh process for the time and another for the memory. Private memory is what a process has for
itself: pages of the cache, which processes share and the system takes back, are not in it.
"""

import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from modeling_gpt2scratch.common.command_line import argument, check_numbers, parse_config
from modeling_gpt2scratch.data.loading.loader import ShardLoader, TokenWindows
from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.data.shards.writer import SplitWriter

VOCAB_SIZE = 50257
PAGE = 4096  # bytes; the least that can be measured


@dataclass(frozen=True)
class BenchmarkConfig:
    """Every argument of this script."""

    shard_tokens: int = argument("tokens of a shard", default=100_000_000)
    shards: int = argument("shards to read", default=2)
    sequence_length: int = argument("tokens of a row", default=1024)
    micro_batch_size: int = argument("rows of a batch", default=64)

    def __post_init__(self):
        names = ("shard_tokens", "shards", "sequence_length", "micro_batch_size")
        check_numbers(self, positive=names, non_negative=())
        if self.shard_tokens <= self.sequence_length * self.micro_batch_size:
            raise ValueError(
                f"expected --shard_tokens above the {self.sequence_length * self.micro_batch_size} "
                f"tokens of a batch, found {self.shard_tokens}"
            )


def whole_shards(directory: Path, config: BenchmarkConfig) -> Iterator[torch.Tensor]:
    """The inputs of each batch, as the common approach makes them."""
    n_tokens = config.micro_batch_size * config.sequence_length
    for path in sorted(directory.glob("npy/*.npy")):
        tokens = torch.tensor(np.load(path).astype(np.int32), dtype=torch.long)
        for first in range(0, len(tokens) - n_tokens, n_tokens):
            piece = tokens[first : first + n_tokens + 1]
            inputs, targets = piece[:-1].view(config.micro_batch_size, -1), piece[1:]
            assert len(targets) == inputs.numel()
            yield inputs


def our_loader(directory: Path, config: BenchmarkConfig) -> Iterator[torch.Tensor]:
    """The inputs of each batch, as `ShardLoader` makes them."""
    windows = TokenWindows(directory, "train", sequence_length=config.sequence_length)
    n_rows = config.micro_batch_size
    loader = ShardLoader(windows, rows_per_step=n_rows, micro_batch_size=n_rows)
    for step in range(len(windows) // n_rows):
        yield loader.batch(step, 0)["input_ids"]


APPROACHES = {"whole shards": whole_shards, "ours": our_loader}


def tokens_per_second(name: str, directory: Path, config: BenchmarkConfig) -> float:
    """Tokens of all batches per second, opening and loading included."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    n_tokens = sum(inputs.numel() for inputs in APPROACHES[name](directory, config))
    return n_tokens / (time.perf_counter() - started)


def memory(name: str, directory: Path, config: BenchmarkConfig) -> tuple[int, int]:
    """Most resident and most private bytes beyond those at the start; call it afresh."""
    torch.set_num_threads(1)
    before, most = resident_bytes(), [0, 0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            most[:] = map(max, most, resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in APPROACHES[name](directory, config):
        pass
    done.set()
    watcher.join()
    most[:] = map(max, most, resident_bytes())
    return tuple(max(PAGE, n_bytes - start) for n_bytes, start in zip(most, before, strict=True))


def resident_bytes() -> tuple[int, int]:
    """What this process has in memory, and how much of it is private; for Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    return 1024 * int(values["VmRSS"]), 1024 * int(values["RssAnon"])


def write_data(directory: Path, config: BenchmarkConfig) -> None:
    """The same random tokens in our format and as .npy files."""
    generator = np.random.default_rng(0)
    (directory / "npy").mkdir()  # a data directory holds no other files of tokens
    writer = SplitWriter(
        directory, "train", shard_tokens=config.shard_tokens, vocab_size=VOCAB_SIZE
    )
    for number in range(config.shards):
        tokens = generator.integers(0, VOCAB_SIZE, config.shard_tokens, dtype=np.uint16)
        np.save(directory / "npy" / f"train_{number:06d}.npy", tokens)
        writer.add(tokens, n_bytes=0)
    Manifest(
        vocab_size=VOCAB_SIZE,
        end_of_text_id=VOCAB_SIZE - 1,
        tokenizer={"name": "none", "fingerprint": ""},
        splits={"train": writer.close()},
        arguments={},
    ).save(directory)


def main() -> None:
    """Prints a row for each approach, and the ratios."""
    config = parse_config(BenchmarkConfig, description=__doc__)
    fresh = ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1)
    with tempfile.TemporaryDirectory() as temporary, fresh:
        directory = Path(temporary)
        write_data(directory, config)
        measured = {}
        for function in (tokens_per_second, memory):
            measure = partial(function, directory=directory, config=config)
            measured[function] = list(fresh.map(measure, APPROACHES))
    rows = [
        [name, speed / 1e6, resident / 2**20, private / 2**20]
        for name, speed, (resident, private) in zip(APPROACHES, *measured.values(), strict=True)
    ]
    (_, *common), (_, *ours) = rows
    rows.append(["whole shards / ours", *(x / y for x, y in zip(common, ours, strict=True))])
    headers = ["approach", "million tokens/s", "resident MiB", "private MiB"]
    print(tabulate(rows, headers, "pipe", floatfmt=".2f"))


if __name__ == "__main__":
    main()
