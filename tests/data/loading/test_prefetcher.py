"""Batches that a thread makes ahead, also for a GPU."""

import pytest
import torch
from support.counting_shards import N_SHARDS, cache_of, loader_of, opened
from support.servers.faulty_server import delay, serve, status

from modeling_gpt2scratch.data.loading import prefetcher
from modeling_gpt2scratch.data.loading.prefetcher import Prefetcher
from modeling_gpt2scratch.data.loading.store import LocalStore
from modeling_gpt2scratch.data.shards.format import ShardError


class Counting:
    """A loader whose batches are the numbers of their steps."""

    micro_steps = 1

    def batch(self, step, micro_step):
        return {"input_ids": torch.tensor([step])}


@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_the_thread_uses_the_gpu_of_its_process(monkeypatch, device):
    chosen = []
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    monkeypatch.setattr(prefetcher, "has_pinned_memory", lambda device: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    with Prefetcher(Counting(), start_step=5, device=torch.device(device)) as batches:
        assert [next(batches)["input_ids"].item() for _ in range(3)] == [5, 6, 7]
    assert chosen == ([3] if device == "cuda:3" else [])


def test_a_disk_that_fails_is_an_error_of_the_data():
    class Failing(Counting):
        def batch(self, step, micro_step):
            raise OSError("Input/output error")

    with Prefetcher(Failing()) as batches:
        for _ in range(2):  # and so for whoever asks again
            with pytest.raises(ShardError, match="^Input/output error$"):
                next(batches)


def test_a_prefetcher_yields_the_batches_from_its_step_on(data):
    loader = loader_of(LocalStore(data))
    with Prefetcher(loader, start_step=7) as batches:
        for step in range(7, 40):
            found = next(batches)
            assert torch.equal(found["input_ids"], loader.batch(step, 0)["input_ids"])
    assert not batches._thread.is_alive()


def test_a_prefetcher_counts_the_seconds_of_waiting_and_passes_errors_on(data, tmp_path):
    source, order = (loader := loader_of(LocalStore(data))).sources[0], loader._orders[0]
    first, last = (source.shards_of_group(order.group_of_visit(visit)) for visit in (0, 2))
    bad = next(number for number in last if number not in first)
    with serve(data) as server:
        for number in range(N_SHARDS):
            server.faults[f"train_00000{number}.bin"] = [delay(0.3)]
        server.faults[f"train_00000{bad}.bin"] = [status(403)] * 9
        with (
            opened(server.address, cache_of(tmp_path / "cache")) as store,
            Prefetcher(loader_of(store)) as batches,
        ):
            next(batches)
            assert 0 < batches.waited_seconds < 20
            with pytest.raises(ShardError, match=rf"train_00000{bad}\.bin: .* status 403"):
                for _ in range(40):
                    next(batches)
            with pytest.raises(ShardError):  # and so for whoever asks again
                next(batches)
