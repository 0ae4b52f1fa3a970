"""TransformerLens: a bridge to the model as it is, without a conversion of weights."""

from pathlib import Path

import torch
from transformer_lens.model_bridge import TransformerBridge

from client_checks.causal_lm import answer_of, load
from client_checks.comparison import Answer, check


@torch.no_grad()
def answer(directory: Path, expected: dict) -> Answer:
    """What the bridge writes; its residual stream must be the hidden states of transformers."""
    bridge = TransformerBridge.boot_transformers(
        str(directory), device="cpu", trust_remote_code=directory.name == "run"
    )
    ids = torch.tensor([expected["prompts"][0]])
    _, cache = bridge.run_with_cache(ids)
    wanted = load(directory)(ids, output_hidden_states=True).hidden_states
    # The last of the hidden states is behind the final norm; the stream is compared before it.
    found = [cache[f"blocks.{layer}.hook_resid_pre"] for layer in range(bridge.cfg.n_layers)]
    gap = max((a - b).abs().max().item() for a, b in zip(found, wanted[:-1], strict=True))
    if gap > 1e-4:
        raise ValueError(f"expected the residual stream of transformers, found {gap:.1e} apart")
    return answer_of(bridge, expected, f"residual stream of {len(found)} blocks within 1e-4")


if __name__ == "__main__":
    check(answer)
