"""Time and memory of the loss alone, plain and in chunks."""

import time

import torch
from torch import Tensor
from torch.nn import functional as F

from gpu_parts.plan import Plan, Record
from modeling_gpt2scratch.loss_gpt2scratch import linear_cross_entropy

SIZES = {"rows": 64, "tokens": 1024, "vocabulary": 50_304, "channels": 768}
SMOKE_SIZES = {"rows": 2, "tokens": 16, "vocabulary": 600, "channels": 16}
REPEATS = 3


def plain(hidden_states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """What single-file scripts do: all logits, and cross-entropy of them."""
    return F.cross_entropy(F.linear(hidden_states, weight).float(), targets)


def run(plan: Plan, record: Record) -> None:
    """Forward and backward in bf16; the fastest of a few counts."""
    sizes, device = SMOKE_SIZES if plan.is_smoke else SIZES, plan.device
    torch.manual_seed(0)
    n_tokens = sizes["rows"] * sizes["tokens"]
    inputs = {
        "hidden_states": torch.randn(n_tokens, sizes["channels"], device=device),
        "weight": 0.02 * torch.randn(sizes["vocabulary"], sizes["channels"], device=device),
    }
    for tensor in inputs.values():
        tensor.requires_grad_()
    targets = torch.randint(sizes["vocabulary"], (n_tokens,), device=device)
    found = {}
    record(sizes=sizes)
    for name, loss_of in (("chunked", linear_cross_entropy), ("plain", plain)):
        try:
            found[name] = measure(loss_of, inputs, targets, device)
        except torch.OutOfMemoryError:
            found[name] = {"error": "out of memory"}
        record(losses=found)


def measure(loss_of, inputs: dict, targets: Tensor, device: torch.device) -> dict[str, float]:
    """Seconds, loss, and on an accelerator the memory beyond inputs and gradients."""
    fastest, loss = float("inf"), None
    for tensor in inputs.values():
        tensor.grad = torch.zeros_like(tensor)
    on_accelerator = device.type != "cpu"
    if on_accelerator:
        torch.accelerator.empty_cache()
        torch.accelerator.reset_peak_memory_stats()
        before = torch.accelerator.memory_allocated()
    for _ in range(REPEATS):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(inputs["hidden_states"], inputs["weight"], targets)
        loss.backward()
        if on_accelerator:
            torch.accelerator.synchronize()
        fastest = min(fastest, time.perf_counter() - start)
    values = {"seconds": fastest, "loss": loss.item()}
    if on_accelerator:
        values["peak_gib"] = (torch.accelerator.max_memory_allocated() - before) / 2**30
    return values
