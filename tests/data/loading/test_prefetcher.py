"""Batches that a thread makes for a GPU."""

import pytest
import torch

from modeling_gpt2scratch.data.loading.prefetcher import Prefetcher


class Counting:
    """A loader whose batches are the numbers of their steps."""

    micro_steps = 1

    def batch(self, step, micro_step):
        return {"input_ids": torch.tensor([step])}


@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_the_thread_uses_the_gpu_of_its_process(monkeypatch, device):
    set_device, chosen = torch.cuda.set_device, []

    def choose(device):
        if torch.device(device).index is None:
            set_device(device)  # torch's own, which refuses what has no index
        chosen.append(device.index)

    monkeypatch.setattr(torch.cuda, "set_device", choose)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    with Prefetcher(Counting(), start_step=5, device=torch.device(device)) as batches:
        assert [next(batches)["input_ids"].item() for _ in range(3)] == [5, 6, 7]
    assert chosen == ([3] if device == "cuda:3" else [])
