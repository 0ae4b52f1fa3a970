"""PEFT: LoRA on all linear layers, one step, merged."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from client_checks.causal_lm import greedy, load, nll
from client_checks.comparison import Answer, check


def answer(directory: Path, expected: dict) -> Answer:
    """What the fresh adapters leave as it was; then a step must change it, and merging must not."""
    model = get_peft_model(
        load(directory), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    ).eval()
    before = Answer(greedy(model, expected), nll(lambda ids: model(ids).logits, expected))
    ids = torch.tensor([expected["prompts"][0] + expected["tokens"][0]])
    adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(adapters, lr=0.1)
    base = model(ids).logits.detach()
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    with torch.no_grad():
        adapted = model(ids).logits
        merged = model.merge_and_unload()(ids).logits
    if (adapted - base).abs().max() < 1e-3:
        raise ValueError("expected a step to change the logits, found none changed")
    gap = (merged - adapted).abs().max().item()
    if gap > 1e-4:
        raise ValueError(f"expected merged adapters to give the same logits, found {gap:.1e} apart")
    note = f"a step on {len(adapters)} adapters, merged: logits within 1e-4"
    return Answer(before.tokens, before.nll, note)


if __name__ == "__main__":
    check(answer)
