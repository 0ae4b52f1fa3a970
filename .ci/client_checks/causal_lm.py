"""Models that answer as those of transformers do: loaded, written with, scored."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from client_checks.comparison import Answer


def load(directory: Path, trust: bool | None = None, **options: Any):
    """The model of a form, in float32; of both forms, only `run` needs its code to be trusted."""
    return AutoModelForCausalLM.from_pretrained(
        directory,
        trust_remote_code=directory.name == "run" if trust is None else trust,
        dtype=torch.float32,
        **options,
    ).eval()


@torch.no_grad()
def greedy(model, expected: dict) -> list[list[int]]:
    """The new ids after each prompt, from `generate`."""
    tokens = []
    for prompt in expected["prompts"]:
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": expected["n_new"], "eos_token_id": None, "do_sample": False}
        found = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
        tokens.append(found[0, len(prompt) :].tolist())
    return tokens


@torch.no_grad()
def nll(logits_of, expected: dict) -> list[float]:
    """Mean negative log-likelihood of the expected ids, from logits (1, T, vocabulary) of ids."""
    losses = []
    for prompt, new in zip(expected["prompts"], expected["tokens"], strict=True):
        logits = logits_of(torch.tensor([prompt + new]))[0, len(prompt) - 1 : -1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(new)).item())
    return losses


def greedy_without_cache(logits_of, expected: dict) -> list[list[int]]:
    """The new ids after each prompt, from the logits of all ids at each step."""
    tokens = []
    for prompt in expected["prompts"]:
        ids = list(prompt)
        for _ in range(expected["n_new"]):
            ids.append(int(logits_of(torch.tensor([ids]))[0, -1].argmax()))
        tokens.append(ids[len(prompt) :])
    return tokens


def answer_of(logits_of, expected: dict, note: str = "") -> Answer:
    """What a function from ids to logits writes."""
    return Answer(greedy_without_cache(logits_of, expected), nll(logits_of, expected), note)
