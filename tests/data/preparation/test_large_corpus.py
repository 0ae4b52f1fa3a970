"""A corpus of 65 million tokens, prepared and read within the memory of a small one."""

import json
import random
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.paths import TIKTOKEN_CACHE

from modeling_gpt2scratch.data.shards.manifest import Manifest

MIB = 2**20
WORDS = ("the", "of", "and", "to", "in", "that", "was", "his", "he", "it", "with", "is", "for")
# Each in a process of its own, whose peak is that of the work alone.
PREPARE = """
import json, sys
from modeling_gpt2scratch.data.preparation.prepare import prepare
from modeling_gpt2scratch.data.preparation.configuration import PrepareConfig

prepare(PrepareConfig(**json.loads(sys.argv[1])))
# Not ru_maxrss, which a program inherits from the one that started it.
print(1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]))
"""
# Anonymous memory, because pages of a memory-mapped file are the kernel's to take back.
WALK = """
import json, sys
from pathlib import Path
from modeling_gpt2scratch.data.loading.loader import ShardLoader, TokenWindows

def anonymous_bytes():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])

windows = TokenWindows(Path(sys.argv[1]), "train", sequence_length=1024)
loader = ShardLoader(windows, rows_per_step=64, micro_batch_size=64)
n_documents, largest = 0, 0
n_steps = len(windows) // 64
for step in range(n_steps):
    inputs = loader.batch(step, 0)["input_ids"]
    n_documents += int((inputs == 50256).sum())
    if step == 10:
        before = anonymous_bytes()
    if step > 10 and step % 100 == 0:
        largest = max(largest, anonymous_bytes() - before)
print(json.dumps([64 * 1024 * n_steps, n_documents, largest]))
"""


def run(program, argument):
    """What the program prints, as JSON."""
    command = [sys.executable, "-c", program, argument]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def write_corpus(path, texts, n_repeats):
    """A parquet file of the texts, again and again, with a number before each."""
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for repeat in range(n_repeats):
            writer.write_table(pa.table({"text": [f"{repeat} {t}" for t in texts]}, schema))


pytestmark = [
    pytest.mark.slow,
    pytest.mark.gate,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


@pytest.fixture(autouse=True)
def gpt2(monkeypatch):
    """GPT-2's tokenizer, which alone is fast enough here."""
    if not TIKTOKEN_CACHE.is_dir():
        pytest.skip(f"needs GPT-2's tokenizer in {TIKTOKEN_CACHE}")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN_CACHE))


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    generator = random.Random(0)
    texts = [" ".join(generator.choices(WORDS, k=1000)) for _ in range(1000)]
    peaks, n_tokens = {}, {}
    # A repeat has 1,003 tokens or so for each of the thousand texts.
    for name, n_repeats in (("small", 10), ("large", 65)):
        write_corpus(tmp_path / f"{name}.parquet", texts, n_repeats)
        out = tmp_path / name
        arguments = {
            "dataset": str(tmp_path / f"{name}.parquet"),
            "output_dir": str(out),
            "tokenizer": "gpt2",
            "shard_tokens": 25_000_000,
            "shuffle_buffer_tokens": 5_000_000,
            "num_workers": 2,
        }
        peaks[name] = run(PREPARE, json.dumps(arguments))
        n_tokens[name] = Manifest.load(out).splits["train"].n_tokens
    assert n_tokens["large"] > 64e6 > 11e6 > n_tokens["small"]
    assert peaks["large"] < peaks["small"] + 100 * MIB

    n_read, n_documents, growth = run(WALK, str(tmp_path / "large"))
    assert n_read > 0.999 * n_tokens["large"]
    # Every document begins with an end of text, and every window was read once.
    assert 0.999 < n_documents / Manifest.load(tmp_path / "large").splits["train"].n_documents <= 1
    assert growth < 50 * MIB


def test_a_document_of_20_megabytes_is_one_document(tmp_path):
    text = "the of and to in " * 1_200_000
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}) + '\n{"text": "ant"}\n')
    arguments = {
        "dataset": str(tmp_path / "a.jsonl"),
        "output_dir": str(tmp_path / "out"),
        "tokenizer": "gpt2",
        "val_fraction": 0,
        "shuffle": False,
    }
    run(PREPARE, json.dumps(arguments))
    split = Manifest.load(tmp_path / "out").splits["train"]
    # Five words are five tokens; the last space is one more, and each document has its mark.
    assert (split.n_documents, split.n_tokens) == (2, 5 * 1_200_000 + 1 + 1 + 2)
    assert split.n_bytes == len(text) + 3
