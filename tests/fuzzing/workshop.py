"""Small files of every kind that the house reads, all in one directory, made once."""

import json
import re
import socket
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fuzzing.attempts import attempt
from support.evaluation import tiny_tokenizer
from support.table_files import COMPRESS, csv_table, jsonl
from support.token_directories import CORPUS, before, write_foreign, write_ours
from transformers import GPT2Config, GPT2LMHeadModel

from modeling_gpt2scratch.common.checksums import checksum, write_checksums

LAYERS = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 16}
TRAINING = {
    **{"data": "data", "output_dir": "run", "model": "tiny", **LAYERS, "total_batch_tokens": 32},
    **{"micro_batch_size": 2, "learning_rate": 0.01, "log_every": 1, "max_steps": 2},
    **{"eval_every": 1, "eval_tokens": 64, "save_every": 1, "dropout": 0.1, "compile": "no"},
}
PREPARATION = {
    **{"dataset": "texts.jsonl", "output_dir": "out", "tokenizer": "data", "val_fraction": 0},
    **{"shard_tokens": 500, "num_workers": 1, "ignore_free_space": "true"},
}
DOCUMENTS = [f"{n} {text}" for n in range(8) for text in CORPUS]
RUN, CHECKPOINT = "run", "run/checkpoint-1"

# Keys of what no two runs have alike, and what stands there instead.
MEASURED = re.compile(r"seconds|per_second|^data_wait$|^peak_|^date$|^commit$|^git_hash$")
CONSTANTS = {float: 1.5, str: "2026-01-01T00:00:00+00:00"}


def make(server: socket.socket, directory: Path) -> None:
    """Fills a directory with data, a finished run, the same run before its end, and other files."""
    tokenizer = tiny_tokenizer()
    write_ours(directory / "data", tokenizer, shard_tokens=400, val=CORPUS)
    _write_texts(directory)
    ids = before(tokenizer, DOCUMENTS)
    for format in ("npy", "llm.c", "nanogpt"):
        write_foreign(directory / format, format, ids, "train")
    _write_foreign_models(directory, len(tokenizer))
    for name, entries in (("train.yaml", TRAINING), ("prepare.yaml", PREPARATION)):
        lines = [f"{key}: {value}" for key, value in entries.items()]
        (directory / name).write_text("\n".join([*lines, ""]))
    for words in (
        ["python", "train_accelerate.py", "train.yaml"],
        [
            *("python", "evaluate/compare.py", "--models", "run", "--tasks", "val"),
            *("--val_data", "data", "--no_cache"),
        ],
    ):
        ended = attempt(server, directory, words)
        assert ended.code == 0, ended.err
    for name in ("out.txt", "err.txt"):
        (directory / name).unlink()
    _forget_the_machine(directory / "run")


def _forget_the_machine(run: Path) -> None:
    """Puts constants for times, memory and commit: the same mutations hit the same places then."""
    for name in ("results.json", "environment.json"):
        _rewrite(run / name)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.dumps(_constant(json.loads(line))) for line in lines]
    (run / "metrics.jsonl").write_text("\n".join([*rows, ""]))
    for state in run.glob("checkpoint-*/training_state.json"):
        _rewrite(state)
        names = json.loads((state.parent / "checksums.json").read_text())
        write_checksums(state.parent, {name: checksum(state.parent / name) for name in names})


def _rewrite(path: Path) -> None:
    path.write_text(json.dumps(_constant(json.loads(path.read_text())), indent=2) + "\n")


def _constant(tree: Any, is_measured: bool = False) -> Any:
    """A tree of JSON with constants in place of what another run would not have."""
    if isinstance(tree, dict):
        return {
            key: _constant(value, is_measured or bool(MEASURED.search(key)))
            for key, value in tree.items()
        }
    return CONSTANTS.get(type(tree), tree) if is_measured else tree


def _write_texts(directory: Path) -> None:
    """Documents in all formats of input."""
    lines = jsonl(DOCUMENTS)
    (directory / "texts.txt").write_text("<|endoftext|>".join(DOCUMENTS), encoding="utf-8")
    (directory / "texts.csv").write_bytes(csv_table(DOCUMENTS))
    table = pa.table({"id": range(len(DOCUMENTS)), "text": DOCUMENTS})
    pq.write_table(table, directory / "texts.parquet", write_page_checksum=True)
    for ending, compress in COMPRESS.items():
        (directory / f"texts.jsonl{ending}").write_bytes(compress(lines))


def _write_foreign_models(directory: Path, vocab_size: int) -> None:
    """The same small model as nanoGPT, llm.c and transformers save it."""
    torch.manual_seed(3)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **LAYERS, **ends)).eval()
    model.save_pretrained(directory / "stock")
    weights = model.state_dict()
    for name, tensor in weights.items():
        if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            weights[name] = tensor.T.contiguous()
    sizes = {"block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": vocab_size}
    arguments = sizes | {"dropout": 0.1, "bias": True}
    content = {
        "model": dict(weights),
        "model_args": arguments,
        "iter_num": 3,
        "config": {"lr": 0.1},
    }
    torch.save(content, directory / "nanogpt.pt")
    block = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    names = [f"h.0.{part}.{kind}" for part in block for kind in ("weight", "bias")]
    names = ["wte.weight", "wpe.weight", *names, "ln_f.weight", "ln_f.bias"]
    header = struct.pack("<256i", 20240326, 3, 16, vocab_size, 1, 2, 16, vocab_size, *[0] * 248)
    tensors = [weights[f"transformer.{name}"].numpy().astype(np.float32) for name in names]
    (directory / "llmc.bin").write_bytes(header + b"".join(t.tobytes() for t in tensors))
