"""Tiny tokenizers, models and shards for the tests of the evaluation, and threads as processes."""

import importlib.util
import json
import pickle
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from support.paths import REPOSITORY
from support.token_directories import write_shard
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from modeling_gpt2scratch.data.shards.manifest import Manifest, ShardEntry, Split
from modeling_gpt2scratch.data.tokens.tokenizer import fingerprint
from modeling_gpt2scratch.evaluation.results.measurements import Measurement, ModelMeasurements
from modeling_gpt2scratch.evaluation.scoring import processes as process_group
from modeling_gpt2scratch.evaluation.scoring.processes import ProcessGroup
from modeling_gpt2scratch.evaluation.tasks.task import Estimate, TaskResult

WAIT_SECONDS = 120  # that a thread waits for the others, which is an error
END_OF_TEXT = "<|endoftext|>"
LAMBADA_METRICS = {"lambada": {"acc": True, "perplexity": False}}
CORPUS = [
    "the cat sat on the mat, and the dog sat on the cat.",
    "a naïve café: “the mat” was on the dog!\n\nthe end",
    "on the mat the cat and the dog sat and sat; the end of the dog was the cat",
]


def tiny_tokenizer(n_merges: int = 60) -> PreTrainedTokenizerFast:
    """A byte-level BPE like GPT-2's: 1 special token, 256 bytes and up to `n_merges` merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=257 + n_merges,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT
    )


def bos_tokenizer() -> PreTrainedTokenizerFast:
    """The same with a token of its own before each text, as that of Llama 3."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    _add_around(tokenizer, "<s> $A")
    return tokenizer


def eos_tokenizer() -> PreTrainedTokenizerFast:
    """The same with a token of its own before and another after each text."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    _add_around(tokenizer, f"<s> $A {END_OF_TEXT}")
    return tokenizer


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """A BPE like that of Llama 2: a space before each text, which decoding takes off again."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence(
        [
            *(decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()),
            decoders.Strip(" ", 1, 0),
        ]
    )
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    made = json.loads(tokenizer.to_str())
    made["added_tokens"] = made["added_tokens"][:3]  # bytes are no special tokens
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(made)),
        **{"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    )
    _add_around(fast, "<s> $A")
    return fast


def _add_around(tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    names = [name for name in template.split() if name != "$A"]
    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in names]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=ids
    )


def tiny_llama(tokenizer: PreTrainedTokenizerFast, n_positions: int = 32) -> LlamaForCausalLM:
    """Stock Llama with random weights, large enough for the logits to differ visibly."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=n_positions,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config).eval()


def tiny_gpt2(tokenizer: PreTrainedTokenizerFast, n_positions: int = 32) -> GPT2LMHeadModel:
    """Stock GPT-2 with random weights, large enough for the logits to differ visibly."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=n_positions,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return GPT2LMHeadModel(config).eval()


def naive_nats(model: torch.nn.Module, token_ids: Sequence[int]) -> torch.Tensor:
    """Nats of each id but the first given those before it, from one row and its whole logits."""
    ids = torch.as_tensor(np.asarray(token_ids, dtype=np.int64))[None]
    with torch.no_grad():
        log_probs = model(input_ids=ids[:, :-1]).logits[0].log_softmax(dim=-1)
    return -log_probs.gather(1, ids[0, 1:, None])[:, 0]


def write_shards(
    directory: Path, shards: list[list[int]], tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A shard directory whose split `val` holds these token ids, with the tokenizer beside it.

    Its `train` is empty.
    """
    directory.mkdir(parents=True, exist_ok=True)
    entries = []
    for index, ids in enumerate(shards):
        file = f"val_{index:06d}.bin"
        sha256 = write_shard(directory / file, ids, vocab_size=len(tokenizer))
        entries.append(ShardEntry(file, len(ids), sha256))
    n_documents = sum(ids.count(tokenizer.eos_token_id) for ids in shards)
    val = Split(sum(map(len, shards)), n_documents, 0, tuple(entries))
    Manifest(
        vocab_size=len(tokenizer),
        end_of_text_id=tokenizer.eos_token_id,
        tokenizer={"name": "tiny", "fingerprint": fingerprint(tokenizer)},
        splits={"train": Split(0, 0, 0, ()), "val": val},
        arguments={},
    ).save(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _script(name: str) -> ModuleType:
    """A script of `evaluate/`, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "evaluate" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compare = _script("compare")


def in_threads(monkeypatch, n_processes: int, work: Callable[[ProcessGroup], Any]) -> list[Any]:
    """What `work` returns in each thread, which stands for a process with its own accelerator.

    It fails if one waits for others that never come.
    """
    meeting = threading.Barrier(n_processes)
    own = threading.local()
    shares: list[bytes] = [b""] * n_processes
    results: list[Any] = [None] * n_processes
    errors = []

    def gather(items):
        shares[own.rank] = pickle.dumps(items)
        meeting.wait(WAIT_SECONDS)
        found = [item for share in shares for item in pickle.loads(share)]
        meeting.wait(WAIT_SECONDS)
        return found

    def broadcast(values):
        values[:] = gather([list(values)])[0]

    def run(rank):
        own.rank = rank
        processes = ProcessGroup.__new__(ProcessGroup)
        processes.is_main = rank == 0
        processes.accelerator = SimpleNamespace(
            num_processes=n_processes, process_index=rank, is_main_process=processes.is_main
        )
        try:
            results[rank] = work(processes)
        except BaseException as error:
            errors.append(error)
            meeting.abort()

    monkeypatch.setattr(process_group, "gather_object", gather)
    monkeypatch.setattr(process_group, "broadcast_object_list", broadcast)
    threads = [threading.Thread(target=run, args=[rank]) for rank in range(n_processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def measured(name, right, nats, **details):
    """A model as if measured on lambada, from the values of each passage."""
    acc, loss = np.mean(right), np.mean(nats)
    estimates = {"acc": Estimate(acc, 0.1), "perplexity": Estimate(float(np.exp(loss)), None)}
    samples = {"acc": np.asarray(right, float), "perplexity": np.asarray(nats, float)}
    result = TaskResult(len(right), estimates, details, samples)
    return ModelMeasurements(name, tasks={"lambada": Measurement(result, seconds=1.5)})
