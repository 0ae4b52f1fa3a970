"""TransformerLens: a bridge to the model as it is, without a conversion of weights."""

import runpy
from pathlib import Path

import torch
from transformer_lens.model_bridge import TransformerBridge

from client_checks.causal_lm import answer_of, load
from client_checks.comparison import Answer, check
from client_checks.forms import REPOSITORY

EXAMPLE = REPOSITORY / "docs" / "examples" / "attention_heads.py"


@torch.no_grad()
def answer(directory: Path, expected: dict) -> Answer:
    """What the bridge writes; its residual stream and patterns must be those of transformers.

    The example of the documentation tells it what the parts of our own form are.
    """
    example = runpy.run_path(str(EXAMPLE))
    is_ours = directory.name == "run"
    boot = example["boot"] if is_ours else TransformerBridge.boot_transformers
    bridge = boot(str(directory), device="cpu", trust_remote_code=is_ours)
    ids = torch.tensor([expected["prompts"][0]])
    _, cache = bridge.run_with_cache(ids)
    options = {"output_hidden_states": True, "output_attentions": True}
    wanted = load(directory, attn_implementation="eager")(ids, **options)
    found = answer_of(bridge, expected)
    n_layer = bridge.cfg.n_layers
    # The last of the hidden states is behind the final norm; the stream is compared before it.
    pairs = []
    for layer in range(n_layer):
        pairs.append((cache[f"blocks.{layer}.hook_resid_pre"], wanted.hidden_states[layer]))
        pairs.append((cache[f"blocks.{layer}.attn.hook_pattern"], wanted.attentions[layer]))
    bridge.enable_compatibility_mode()  # folds norms into weights and centres these
    pairs.append((bridge(ids).log_softmax(-1), wanted.logits.log_softmax(-1)))
    gaps = [(a - b).abs().max().item() for a, b in pairs]
    if max(gaps) > 1e-4:
        raise ValueError(
            f"expected stream and patterns of transformers, found {max(gaps[:-1]):.1e} apart; its "
            f"logits also after enable_compatibility_mode, found {gaps[-1]:.1e} apart"
        )
    note = f"residual stream and patterns of {n_layer} blocks within 1e-4"
    if is_ours:
        example["main"](str(directory), expected["texts"][0], is_ours)
        note += "; only with an adapter"
    return Answer(found.tokens, found.nll, note)


if __name__ == "__main__":
    check(answer)
