"""Which token does each head look at? Attention read with TransformerLens, from a run as it is.

    pip install transformer-lens
    python docs/examples/attention_heads.py runs/quickstart "Returns the" --trust_remote_code

For each head, the table names the token that the last one attends to most, and how much of its
attention goes there. `boot` gives all that TransformerLens can do to a model: hooks, patches and
`enable_compatibility_mode`.
"""

import argparse
from typing import Any

import torch
from torch import nn
from transformer_lens.factories.architecture_adapter_factory import (
    SUPPORTED_ARCHITECTURES,
    ArchitectureAdapterFactory,
)
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.supported_architectures.gpt2 import GPT2ArchitectureAdapter


class Adapter(GPT2ArchitectureAdapter):
    """transformers' GPT-2, with this package's names and `nn.Linear` in place of `Conv1D`."""

    def __init__(self, cfg: Any):
        super().__init__(cfg)
        block = self.component_mapping["blocks"].submodules
        attention, mlp = block["attn"].submodules, block["mlp"].submodules
        attention["qkv"].name, attention["o"].name = "qkv_proj", "o_proj"
        mlp["in"].name, mlp["out"].name = "up_proj", "down_proj"
        block["attn"].split_qkv_matrix = split_qkv
        # Those of `nn.Linear`: with GPT-2's, `enable_compatibility_mode` would mix up the weights.
        self.weight_processing_conversions = self._qkvo_weight_conversions()


def split_qkv(attention: nn.Module) -> list[nn.Linear]:
    """Query, key and value as layers of their own, which share the weights."""
    joint, layers = attention.qkv_proj, []
    for weight, bias in zip(joint.weight.chunk(3), joint.bias.chunk(3), strict=True):
        layers.append(nn.Linear(*weight.shape, device="meta"))
        layers[-1].weight, layers[-1].bias = nn.Parameter(weight), nn.Parameter(bias)
    return layers


def boot(directory: str, *, trust_remote_code: bool, **options: Any) -> TransformerBridge:
    """The model in a run's directory; `trust_remote_code` runs the code in there, as it needs."""
    name = "GPT2ScratchForCausalLM"
    ArchitectureAdapterFactory.register_adapter(name, Adapter)
    SUPPORTED_ARCHITECTURES[name] = Adapter  # TransformerLens 4.3.0 looks here first
    return TransformerBridge.boot_transformers(
        directory, trust_remote_code=trust_remote_code, **options
    )


@torch.no_grad()
def main(directory: str, prompt: str, trust_remote_code: bool) -> None:
    """Prints the table."""
    bridge = boot(directory, trust_remote_code=trust_remote_code)
    ids = bridge.tokenizer(prompt, return_tensors="pt").input_ids.to(bridge.cfg.device)
    words = [bridge.tokenizer.decode(token) for token in ids[0]]
    logits, cache = bridge.run_with_cache(ids)
    print(f"{prompt!r} goes on with {bridge.tokenizer.decode(logits[0, -1].argmax())!r}")
    for layer in range(bridge.cfg.n_layers):
        heads = cache[f"blocks.{layer}.attn.hook_pattern"][0, :, -1]  # (heads, tokens)
        for head, pattern in enumerate(heads):
            most = pattern.argmax()
            print(f"layer {layer}, head {head}: {pattern[most]:.2f} to {words[most]!r}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("directory", "prompt"):
        parser.add_argument(name)
    parser.add_argument("--trust_remote_code", action="store_true")
    main(**vars(parser.parse_args()))
