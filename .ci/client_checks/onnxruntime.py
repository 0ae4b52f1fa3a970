"""ONNX Runtime, on what `torch.onnx.export` writes."""

from pathlib import Path

import onnxruntime
import torch

from client_checks.causal_lm import answer_of, load
from client_checks.comparison import Answer, check


def answer(directory: Path, expected: dict) -> Answer:
    """What the exported program writes, on rows of any length."""
    model = load(directory)
    model.config.use_cache = False
    ids = torch.tensor(expected["prompts"][:1])
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    sizes = (
        torch.export.Dim("batch"),
        torch.export.Dim("tokens", min=2, max=model.config.n_positions),
    )
    shapes = {name: dict(enumerate(sizes)) for name in example}
    file = directory.with_suffix(".onnx")
    example |= {name: tensor.repeat(2, 1) for name, tensor in example.items()}
    options = {"dynamic_shapes": shapes, "output_names": ["logits"], "dynamo": True}
    torch.onnx.export(model, (), file, kwargs=example, **options, verbose=False)
    session = onnxruntime.InferenceSession(file)

    def logits_of(ids: torch.Tensor) -> torch.Tensor:
        inputs = {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()}
        return torch.from_numpy(session.run(["logits"], inputs)[0])

    return answer_of(logits_of, expected)


if __name__ == "__main__":
    check(answer)
