"""Speed of `prepare_data.py`, against the tokenizer alone and against a common recipe.

    python benchmarks/prepare.py --dataset fineweb_sample.jsonl.zst --copies 10

All three tokenize the same documents with GPT-2's vocabulary, in as many worker processes:

    bare      `tiktoken.encode_ordinary_batch` in each process, on its share of the documents, which
              are in its memory already: what the processors can do
    recipe    `multiprocessing.Pool.imap` over the rows of a data set of the `datasets` library,
              `tiktoken.encode_ordinary` and one numpy array for each, gathered in a buffer and
              saved with `np.save`: what is widely copied. Its rows are in memory already
    ours      `prepare_data.py` as a whole: start of the workers, reading and parsing the files,
              hashing, shuffle, checksums, files on the disk

For Linux. They take turns, and the fastest of each counts. Speed is per second of processor time
of all processes together, so the processes that read for the workers count, and other work on the
machine does not; `scaling` is the speed by the clock with N workers, by N times that with one.
"""

import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tiktoken
from datasets import Dataset
from tabulate import tabulate

from modeling_gpt2scratch.common.command_line import argument, parse_config
from modeling_gpt2scratch.data.sources.local_files import find_files, read_documents

# A program of its own, so that the memory is that of the preparation alone. With `-c` its workers
# import as little as those of the script.
PREPARE = """
import json, resource, sys, time
from modeling_gpt2scratch.data.preparation.prepare import prepare
from modeling_gpt2scratch.data.preparation.configuration import PrepareConfig

def seconds():
    usages = [resource.getrusage(one) for one in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages), time.perf_counter()

config = PrepareConfig(**json.loads(sys.argv[1]))
start = seconds()
manifest = prepare(config)
elapsed = [now - then for now, then in zip(seconds(), start)]
# Not ru_maxrss, which a program inherits from the one that started it.
memory = 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
print(json.dumps([sum(split.n_tokens for split in manifest.splits.values()), elapsed, memory]))
"""
RECIPE_SHARD_TOKENS = 100_000_000
BARE_DOCUMENTS_PER_CALL = 64
peak_memory: list[int] = []  # bytes of each of our runs


@dataclass(frozen=True)
class BenchmarkConfig:
    """Every argument of this script."""

    dataset: str = argument("local text files: a path or a glob")
    copies: int = argument("read the files so often, as a larger corpus", default=1)
    num_workers: int = argument("worker processes", default=multiprocessing.cpu_count())
    repeats: int = argument("rounds; the fastest of each counts", default=2)


def main() -> None:
    """Prints a row for each way and number of workers, and the ratios."""
    config = parse_config(BenchmarkConfig, description=__doc__)
    with tempfile.TemporaryDirectory() as directory:
        for copy in range(config.copies):
            for file in find_files(config.dataset):
                Path(directory, f"{copy:04d}-{file.path.name}").symlink_to(file.path.resolve())
        compare(directory, config)


def compare(dataset: str, config: BenchmarkConfig) -> None:
    """Lets the three take turns on the files of a directory, and prints what came out."""
    seconds: dict[tuple[str, int], tuple[float, float]] = {}  # of processors, by the clock
    start = time.perf_counter()
    n_bytes = sum(len(text.encode()) for text in documents_of(dataset))
    read_rate = n_bytes / (time.perf_counter() - start)
    n_tokens = 0
    for _ in range(config.repeats):
        for num_workers in sorted({1, config.num_workers}):
            for name, measure in (("bare", bare), ("recipe", recipe), ("ours", ours)):
                n_found, elapsed = measure(dataset, num_workers)
                if n_tokens not in (0, n_found):
                    sys.exit(f"expected {n_tokens} tokens from {name}, found {n_found}")
                n_tokens = n_found
                key = name, num_workers
                seconds[key] = tuple(map(min, elapsed, seconds.get(key, elapsed)))
    print(report(seconds, n_tokens))
    print(
        f"\n{n_tokens:,} tokens, {n_bytes:,} bytes of text; reading alone gives "
        f"{read_rate / 1e6:,.0f} MB/s of text in one process; peak memory of our main process "
        f"{max(peak_memory) / 2**20:,.0f} MiB"
    )


def report(seconds: dict[tuple[str, int], tuple[float, float]], n_tokens: int) -> str:
    """A table of the speeds, and each way's ratio to the two peers with as many workers."""
    rows = []
    for (name, num_workers), (of_processors, by_clock) in seconds.items():
        rows.append(
            [
                name,
                num_workers,
                n_tokens / of_processors / 1e6,
                seconds["bare", num_workers][0] / of_processors,
                seconds["recipe", num_workers][0] / of_processors,
                seconds[name, 1][1] / by_clock / num_workers,
            ]
        )
    headers = ["", "workers", "million tokens per core-second", "/ bare", "/ recipe", "scaling"]
    return tabulate(rows, headers, "pipe", floatfmt=".2f")


class Stopwatch:
    """Seconds since it was made: of this process and its finished children, and by the clock."""

    def __init__(self):
        self._start = self._now()

    def read(self) -> tuple[float, float]:
        """Processor time and wall time."""
        return tuple(now - start for now, start in zip(self._now(), self._start, strict=True))

    def _now(self) -> tuple[float, float]:
        usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in usages), time.perf_counter()


def documents_of(dataset: str):
    """The documents, one after another."""
    for file in find_files(dataset):
        for _, text in read_documents(file.path):
            yield text


def bare(dataset: str, num_workers: int) -> tuple[int, tuple[float, float]]:
    """Tokens and seconds of the tokenizer alone, its documents in memory."""
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Barrier(num_workers)
    results = spawn.SimpleQueue()
    processes = [
        spawn.Process(target=encode_share, args=(dataset, rank, num_workers, ready, results))
        for rank in range(num_workers)
    ]
    for process in processes:
        process.start()
    shares = [results.get() for _ in processes]
    for process in processes:
        process.join()
    n_tokens, of_processors, by_clock = zip(*shares, strict=True)
    return sum(n_tokens), (sum(of_processors), max(by_clock))


def encode_share(dataset, rank, num_workers, ready, results) -> None:
    """Encodes every `num_workers`-th document, once all processes have theirs in memory."""
    encoding = tiktoken.get_encoding("gpt2")
    texts = [text for i, text in enumerate(documents_of(dataset)) if i % num_workers == rank]
    ready.wait()
    stopwatch = Stopwatch()
    n_tokens = len(texts)  # end-of-text tokens, as the others count them
    for start in range(0, len(texts), BARE_DOCUMENTS_PER_CALL):
        batch = texts[start : start + BARE_DOCUMENTS_PER_CALL]
        n_tokens += sum(map(len, encoding.encode_ordinary_batch(batch, num_threads=1)))
    results.put((n_tokens, *stopwatch.read()))


def recipe(dataset: str, num_workers: int) -> tuple[int, tuple[float, float]]:
    """Tokens and seconds of the recipe that preparation scripts copy from each other."""
    rows = Dataset.from_dict({"text": list(documents_of(dataset))})
    tiktoken.get_encoding("gpt2")  # loaded before the fork, as those scripts do
    stopwatch = Stopwatch()
    n_tokens, n_buffered, n_shards = 0, 0, 0
    buffer = np.empty(RECIPE_SHARD_TOKENS, dtype=np.uint16)
    with tempfile.TemporaryDirectory() as directory:
        pool = multiprocessing.get_context("fork").Pool(num_workers)
        for tokens in pool.imap(tokens_of, rows, chunksize=16):
            if n_buffered + len(tokens) > len(buffer):
                np.save(Path(directory, f"{n_shards}.npy"), buffer[:n_buffered])
                n_buffered, n_shards = 0, n_shards + 1
            buffer[n_buffered : n_buffered + len(tokens)] = tokens
            n_buffered += len(tokens)
            n_tokens += len(tokens)
        np.save(Path(directory, f"{n_shards}.npy"), buffer[:n_buffered])
        pool.close()
        pool.join()  # so that the workers' processor time is counted
    return n_tokens, stopwatch.read()


def tokens_of(row: dict) -> np.ndarray:
    """One document in the recipe."""
    encoding = tiktoken.get_encoding("gpt2")
    tokens = [encoding.eot_token]
    tokens.extend(encoding.encode_ordinary(row["text"]))
    ids = np.array(tokens)
    assert ((ids >= 0) & (ids < 2**16)).all()
    return ids.astype(np.uint16)


def ours(dataset: str, num_workers: int) -> tuple[int, tuple[float, float]]:
    """Tokens and seconds of `prepare_data.py`, from its parsed arguments to the finished files."""
    with tempfile.TemporaryDirectory() as directory:
        arguments = {
            "dataset": dataset,
            "output_dir": str(Path(directory, "data")),
            "tokenizer": "gpt2",
            "num_workers": num_workers,
        }
        finished = subprocess.run(
            [sys.executable, "-c", PREPARE, json.dumps(arguments)],
            stdout=subprocess.PIPE,
            check=True,
        )
    n_tokens, elapsed, memory = json.loads(finished.stdout)
    peak_memory.append(memory)
    return n_tokens, tuple(elapsed)


if __name__ == "__main__":
    main()
