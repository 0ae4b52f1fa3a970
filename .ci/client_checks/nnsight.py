"""nnsight: states read while the model runs, and one put in place of another."""

import runpy
from pathlib import Path

import torch
from nnsight import LanguageModel

from client_checks.causal_lm import answer_of, load
from client_checks.comparison import Answer, check
from client_checks.forms import REPOSITORY

EXAMPLE = REPOSITORY / "docs" / "examples" / "patch_activation.py"


@torch.no_grad()
def answer(directory: Path, expected: dict) -> Answer:
    """What a traced model writes, and that the example of the documentation patches it."""
    example = runpy.run_path(str(EXAMPLE))
    is_ours = directory.name == "run"
    model = LanguageModel(str(directory), trust_remote_code=is_ours, dispatch=True)
    plain = load(directory)
    ids = torch.tensor([expected["prompts"][0]])
    wanted = plain(ids, output_hidden_states=True).hidden_states
    with model.trace(ids):
        state = model.transformer.h[0].output.save()
    gap = (state - wanted[1]).abs().max().item()
    if gap > 1e-5:
        raise ValueError(f"expected the state after a block of transformers, found {gap:.1e} apart")
    # A whole last block's state is all that the prediction depends on; the first block's is not.
    clean, other = expected["texts"][:2]
    goal, start = (plain(**model.tokenizer(text, return_tensors="pt")) for text in (clean, other))
    rows = example["patched_logits"](model, clean, other)
    gaps = [(row - goal.logits[0, -1]).abs().max().item() for row in rows]
    before = (start.logits - goal.logits[:, -1:])[0, -1].abs().max().item()
    if gaps[-1] > 1e-4 or gaps[-1] >= gaps[0] or before < 1e-2:
        raise ValueError(f"expected patches to lead to the other prediction, found {gaps} apart")
    example["main"](str(directory), clean, other, is_ours)

    def logits_of(ids: torch.Tensor) -> torch.Tensor:
        with model.trace(ids):
            logits = model.lm_head.output.save()
        return logits

    return answer_of(logits_of, expected, "states within 1e-5; an activation patched")


if __name__ == "__main__":
    check(answer)
