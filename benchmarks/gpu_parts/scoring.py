"""Examples per second of the evaluation beside the usual way, and tokens per second of writing.

The usual way is that of lm-evaluation-harness: every choice is a row of its own with its whole
context, and rows of like length make a batch.
"""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from evaluation import (
    BenchmarkConfig,
    Pairs,
    Score,
    cbt_requests,
    hellaswag_requests,
    make_model,
    measure,
)
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from gpu_parts.plan import Plan, Record
from modeling_gpt2scratch import GPT2ScratchConfig, GPT2ScratchForCausalLM
from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer
from modeling_gpt2scratch.training.sizes import MODEL_SIZES

BATCH_ROWS = 64
PROMPT_TOKENS, NEW_TOKENS, PROMPTS = 32, 256, 8


def run(plan: Plan, record: Record) -> None:
    """HellaSwag's rows and rows like the Children's Book Test, then generation."""
    folder = Path(plan.data)
    config = BenchmarkConfig(tokenizer=str(folder / "tokenizer"), device=plan.device.type)
    numbers = {"cbt_examples": 100, "hellaswag_examples": 400, "lambada_examples": 0}
    if plan.is_smoke:
        numbers |= {"model": "tiny", "cbt_examples": 1, "hellaswag_examples": 2, "repeats": 1}
    places = {"books": "cbt_valid.txt", "hellaswag_data": "hellaswag_val.jsonl"}
    for name, file in places.items():
        path = folder / "official" / file
        numbers[name] = str(path) if path.exists() else None
    config = dataclasses.replace(config, **numbers)
    model, tokenizer = make_model(config)
    scorer = CausalScorer(model, tokenizer, batch_tokens="auto")
    rows = {}
    for name, make in (("hellaswag", hellaswag_requests), ("cbt-like", cbt_requests)):
        requests = make(config)
        if not requests or plan.seconds_left < 5:
            continue
        score = whole_rows(model, tokenizer)
        measure(requests[:1], scorer, score, 1)
        ours, theirs, difference = measure(requests, scorer, score, config.repeats)
        n = len(requests)
        values = {"examples": n, "ours_per_second": n / ours, "whole_rows_per_second": n / theirs}
        rows[name] = values | {"ratio": theirs / ours, "largest_difference": difference}
        record(scoring=rows)
    for speeds in generation(plan, config.model, len(tokenizer)):
        record(generation=speeds)


def whole_rows(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase) -> Score:
    """Scores continuations the usual way."""

    @torch.no_grad()
    def score(pairs: Pairs) -> np.ndarray:
        longest = model.config.n_positions + 1
        encoded = [(tokenizer(a).input_ids, tokenizer(b).input_ids) for a, b in pairs]
        rows = [(context + ending)[-longest:] for context, ending in encoded]
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        found = np.zeros(len(rows))
        for start in range(0, len(rows), BATCH_ROWS):
            batch = order[start : start + BATCH_ROWS]
            width = len(rows[batch[0]])
            ids = torch.tensor([rows[index] + [0] * (width - len(rows[index])) for index in batch])
            ids = ids.to(model.device)
            log_probs = model(ids[:, :-1]).logits.float().log_softmax(-1)
            log_probs = log_probs.gather(-1, ids[:, 1:, None]).squeeze(-1).cpu()
            for row, index in enumerate(batch):
                end = len(rows[index]) - 1
                found[index] = log_probs[row, end - len(encoded[index][1]) : end].sum()
        return found

    return score


def generation(plan: Plan, name: str, vocab_size: int) -> Iterator[dict[str, float]]:
    """Tokens per second with a growing cache, a static one, and a static one and compilation.

    What is known so far comes after each of them.
    """
    torch.manual_seed(0)
    sizes = MODEL_SIZES[name]
    config = GPT2ScratchConfig(**sizes, vocab_size=vocab_size, bos_token_id=0, eos_token_id=0)
    dtype = torch.float32 if plan.is_smoke else torch.bfloat16
    model = GPT2ScratchForCausalLM(config).to(plan.device, dtype).eval()
    n_prompt, n_new, n_rows = (4, 4, 1) if plan.is_smoke else (PROMPT_TOKENS, NEW_TOKENS, PROMPTS)
    prompt = torch.randint(1, vocab_size, (n_rows, n_prompt), device=plan.device)
    ways = {
        "growing cache": {},
        "static cache": {"disable_compile": True},
        "static cache, compiled": {"disable_compile": False},
    }
    speeds = {}
    for way, options in ways.items():
        if plan.seconds_left < 5:
            break
        if way.startswith("static"):
            options = options | {"cache_implementation": "static"}
        for _ in range(3):  # the first compiles, the second records CUDA graphs
            start = time.perf_counter()
            model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                min_new_tokens=n_new,
                max_new_tokens=n_new,
                pad_token_id=0,
                **options,
            ).cpu()
            seconds = time.perf_counter() - start
        speeds[way] = n_rows * n_new / seconds
        yield speeds
