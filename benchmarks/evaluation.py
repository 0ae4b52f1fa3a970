"""Examples per second of the evaluation, against lm-evaluation-harness on the same requests.

    python benchmarks/evaluation.py --model smollm2 --hellaswag_data hellaswag_val.jsonl \
        --lambada_data lambada_test.jsonl --books cbt_valid.txt --blimp_data blimp.zip

One model, one process, the same contexts and continuations for both, who take turns; the fastest of
`repeats` counts. Without a file its rows are random words of the lengths that the real ones have.
On a CPU the seconds are those of the processor, so that other programs matter less. `limit` is the
ratio that could be reached at most if only matrix products took time. `difference` is the largest
between two log-likelihoods.
"""

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tabulate import tabulate
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from modeling_gpt2scratch.common.command_line import argument, parse_config
from modeling_gpt2scratch.data.tokens.tokenizer import load_tokenizer
from modeling_gpt2scratch.distributed.device import available_device
from modeling_gpt2scratch.evaluation.scoring.encoding import encode_pairs
from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer
from modeling_gpt2scratch.evaluation.tasks.blimp import BlimpTask
from modeling_gpt2scratch.evaluation.tasks.hellaswag import HellaswagTask
from modeling_gpt2scratch.evaluation.tasks.lambada import read_texts, split_last_word
from modeling_gpt2scratch.training.sizes import MODEL_SIZES

Requests = list[tuple[str, list[str]]]  # a context and what may follow it
Pairs = list[tuple[str, str]]  # a context and what follows it
Score = Callable[[Pairs], np.ndarray]  # the log-likelihood of what follows
N_SENTENCES = 20
N_CANDIDATES = 10
WORDS = [
    *("the", "of", "and", "to", "a", "in", "that", "he", "was", "his"),
    *("with", "as", "for", "had", "but", "him", "she", "not", "on"),
]


@dataclass(frozen=True)
class BenchmarkConfig:
    """Every argument of this script."""

    model: str = argument(
        "a directory or a Hub name, or a size for random weights: tiny, gpt2, …", default="gpt2"
    )
    tokenizer: str | None = argument(
        "as in prepare_data.py; the model's own, or gpt2 for random weights", default=None
    )
    books: str | None = argument("text, a tokenized sentence on each line, for cbt", default=None)
    hellaswag_data: str | None = argument("official .jsonl file", default=None)
    lambada_data: str | None = argument("official .jsonl file", default=None)
    blimp_data: str | None = argument("blimp.zip or its directory", default=None)
    cbt_examples: int = argument("questions, 0 to leave it out", default=6)
    hellaswag_examples: int = argument("questions, 0 to leave it out", default=32)
    lambada_examples: int = argument("passages, 0 to leave it out", default=64)
    blimp_examples: int = argument("pairs, 0 to leave them out", default=134)
    repeats: int = argument("timed rounds of each", default=2)
    harness_batch_size: int = argument("rows of a batch of the harness", default=8)
    batch_tokens: str = argument("tokens of a batch of ours, or auto", default="auto")
    dtype: Literal["float32", "bfloat16", "float16"] = argument("of the weights", default="float32")
    device: str = argument("where", default=available_device().type)


def cbt_requests(config: BenchmarkConfig) -> Requests:
    """Twenty sentences and ten candidates with the rest of the next, as in the paper's protocol.

    Made from the books at random: no questions of the Children's Book Test.
    """
    random = np.random.default_rng(0)
    if config.books is None:
        sizes = random.integers(15, 24, size=(config.cbt_examples, N_SENTENCES + 1))
        stories = [[random_text(random, size) for size in row] for row in sizes]
    else:
        lines = [line.strip() for line in Path(config.books).read_text().splitlines()]
        lines = [line for line in lines if len(line.split()) > 3 and "_BOOK_TITLE_" not in line]
        starts = random.permutation(len(lines) - N_SENTENCES)[: config.cbt_examples]
        stories = [lines[start : start + N_SENTENCES + 1] for start in starts]
    requests = []
    for *sentences, query in stories:
        words = query.split()
        blank = random.integers(1, len(words))
        rest = "".join(f" {word}" for word in words[blank + 1 :])
        candidates = random.permutation(sorted(set(" ".join(sentences).split())))[:N_CANDIDATES]
        context = " ".join([*sentences, *words[:blank]])
        requests.append((context, [f" {candidate}{rest}" for candidate in candidates]))
    return requests


def hellaswag_requests(config: BenchmarkConfig) -> Requests:
    """Scenes with four endings."""
    if config.hellaswag_data is not None and config.hellaswag_examples:
        questions = spread(HellaswagTask.read, config.hellaswag_data, config.hellaswag_examples)
        return [(q.context, [" " + answer for answer in q.answers]) for q in questions]
    random = np.random.default_rng(0)
    return [
        (
            random_text(random, random.integers(15, 85)),
            [" " + random_text(random, random.integers(15, 45)) for _ in range(4)],
        )
        for _ in range(config.hellaswag_examples)
    ]


def lambada_requests(config: BenchmarkConfig) -> Requests:
    """Passages with their last word."""
    if config.lambada_data is not None and config.lambada_examples:
        texts = spread(read_texts, config.lambada_data, config.lambada_examples)
    else:
        random = np.random.default_rng(0)
        sizes = random.integers(56, 130, size=config.lambada_examples)
        texts = [random_text(random, size) for size in sizes]
    return [(context, [word]) for context, word in map(split_last_word, texts)]


def blimp_requests(config: BenchmarkConfig) -> Requests:
    """Nothing, and the two sentences of a minimal pair."""
    if config.blimp_data is not None and config.blimp_examples:
        pairs = BlimpTask.read(config.blimp_data, limit=config.blimp_examples)
        return [("", [" " + sentence for sentence in pair.answers]) for pair in pairs]
    random = np.random.default_rng(0)
    requests = []
    for _ in range(config.blimp_examples):
        words = random.choice(WORDS, size=random.integers(5, 12))
        other = words.copy()
        other[random.integers(len(words))] = random.choice(WORDS)
        requests.append(("", [" " + " ".join(words), " " + " ".join(other)]))
    return requests


REQUESTS: dict[str, Callable[[BenchmarkConfig], Requests]] = {
    "cbt": cbt_requests,
    "hellaswag": hellaswag_requests,
    "lambada": lambada_requests,
    "blimp": blimp_requests,
}


def spread(read: Callable[..., list], source: str, n: int) -> list:
    """Examples at equal distances: HellaSwag's first half is of shorter texts than its second."""
    examples = read(source, limit=None)
    return [examples[len(examples) * index // n] for index in range(min(n, len(examples)))]


def random_text(random: np.random.Generator, n_words: int) -> str:
    """Words of one token each."""
    return " ".join(random.choice(WORDS, size=n_words))


def make_model(config: BenchmarkConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained model, or transformers' GPT-2 with random weights; and its tokenizer."""
    place = {"device_map": config.device, "dtype": getattr(torch, config.dtype)}
    if config.model not in MODEL_SIZES:
        model = AutoModelForCausalLM.from_pretrained(
            config.model, trust_remote_code=False, use_kernels=False, **place
        )
        return model.eval(), load_tokenizer(config.tokenizer or config.model)
    tokenizer = load_tokenizer(config.tokenizer or "gpt2")
    torch.manual_seed(0)
    model_config = GPT2Config(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **MODEL_SIZES[config.model],
    )
    return GPT2LMHeadModel(model_config).to(place["device_map"], place["dtype"]).eval(), tokenizer


def harness(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: BenchmarkConfig
) -> Score:
    """lm-evaluation-harness around a model."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    batch_size = config.harness_batch_size
    harness = HFLM(model, tokenizer=tokenizer, batch_size=batch_size, device=config.device)

    def score(pairs: Pairs) -> np.ndarray:
        instances = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        found = harness.loglikelihood(instances, disable_tqdm=True)
        return np.array([log_prob for log_prob, _ in found])

    return score


def limit(requests: Requests, scorer: CausalScorer) -> float:
    """The harness's multiplications over those without which no log-likelihood can be had.

    The harness takes every token of every row through the blocks and the head. Needed are the
    blocks once for each beginning that rows have in common, and the head once for each that a
    scored token follows. Attention's own products and padding are left out on both sides.
    """
    blocks = scorer.model.base_model.num_parameters(exclude_embeddings=True)
    head = scorer.model.get_output_embeddings().weight.numel()
    pairs = [(context, choice) for context, own in requests for choice in own]
    n_read, beginnings, scored = 0, set(), set()
    for context_ids, continuation_ids in encode_pairs(scorer.tokenizer, pairs):
        inputs = [*context_ids, *continuation_ids][:-1]
        n_read += len(inputs)
        # A number stands for a beginning: that of the one before it, and the token.
        own = list(itertools.accumulate(inputs, lambda before, token: hash((before, token))))
        beginnings.update(own)
        scored.update(own[len(context_ids) - 1 :])
    return n_read * (blocks + head) / (len(beginnings) * blocks + len(scored) * head)


def measure(
    requests: Requests, scorer: CausalScorer, score: Score, repeats: int
) -> tuple[float, float, float]:
    """Seconds of ours and of others, and the largest difference of two log-likelihoods.

    Args:
        requests: what both score.
        scorer: ours.
        score: theirs.
        repeats: of each; the fastest counts.
    """
    clock = time.process_time if scorer.model.device.type == "cpu" else time.perf_counter
    pairs = [(context, choice) for context, own in requests for choice in own]

    def ours() -> np.ndarray:
        return scorer.score_choices(*zip(*requests, strict=True)).log_probs

    def theirs() -> np.ndarray:
        return score(pairs)

    seconds, values = {ours: [], theirs: []}, {}
    for _, side in itertools.product(range(repeats), (ours, theirs)):
        start = clock()
        values[side] = side()
        seconds[side].append(clock() - start)
    difference = float(np.abs(values[ours] - values[theirs]).max())
    return min(seconds[ours]), min(seconds[theirs]), difference


def main() -> None:
    """Prints a row for each task, and all of it as one line of JSON."""
    config = parse_config(BenchmarkConfig, description=__doc__)
    model, tokenizer = make_model(config)
    batch_tokens = "auto" if config.batch_tokens == "auto" else int(config.batch_tokens)
    scorer = CausalScorer(model, tokenizer, batch_tokens=batch_tokens)
    score = harness(model, tokenizer, config)
    rows, ratios = [], {}
    for name, make_requests in REQUESTS.items():
        requests = make_requests(config)
        if not requests:
            continue
        # The first forward passes of a process are slower.
        measure(requests[:1], scorer, score, 1)
        ours, theirs, difference = measure(requests, scorer, score, config.repeats)
        n = len(requests)
        ratios[name] = theirs / ours
        most = limit(requests, scorer)
        rows.append([name, n, n / ours, n / theirs, theirs / ours, most, f"{difference:.1e}"])
    headers = ["requests", "examples", "ours /s", "lm-eval /s", "ratio", "limit", "difference"]
    print(tabulate(rows, headers, "pipe", floatfmt=".3g"))
    print(json.dumps({"device": config.device, "ratios": ratios}))


if __name__ == "__main__":
    main()
