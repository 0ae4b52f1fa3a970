"""torchao: weights of linear layers in int8."""

from pathlib import Path

from torch import nn
from torchao.quantization import Int8WeightOnlyConfig
from transformers import TorchAoConfig

from client_checks.causal_lm import greedy, load, nll
from client_checks.comparison import Answer, check


def answer(directory: Path, expected: dict) -> Answer:
    """What the quantised model writes, and how many of its layers are quantised."""
    model = load(directory, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    layers = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    in_int8 = [name for name, part in layers.items() if "Int8" in type(part.weight).__name__]
    note = f"{len(in_int8)} of {len(layers)} linear layers in int8"
    if not in_int8:
        raise ValueError(f"expected layers in int8, found none of {len(layers)} linear ones")
    found = nll(lambda ids: model(ids).logits, expected)
    return Answer(greedy(model, expected), found, note)


if __name__ == "__main__":
    check(answer)
