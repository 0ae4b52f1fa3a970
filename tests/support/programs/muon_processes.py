"""What `test_matrix_sharing.py` starts in two processes: `torchrun muon_processes.py`.

Every process steps the same parameters with the same gradients twice: alone, before it knows of the
other, and shared. The two must agree: to the bit where the parameters are whole.
"""

import hashlib
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from modeling_gpt2scratch.optim import matrix_sharing
from modeling_gpt2scratch.optim.muon import MuonAdamW

# Rows that two processes cannot halve, one row that only one of them gets, and stacks of three.
SHAPES = [(7, 5), (1, 5), (5, 20), (6, 4), (3, 3)]
STACKS = [(15, 5), (21, 7)]
SKIPPED_STEP = 2


class Layer(nn.Module):
    """A matrix and a vector."""

    def __init__(self, shape: tuple[int, int], generator: torch.Generator):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape, generator=generator))
        self.bias = nn.Parameter(torch.randn(shape[0], generator=generator))


def make_layers() -> nn.Sequential:
    """The same layers in each process; the last is no matrix for Muon."""
    generator = torch.Generator().manual_seed(0)
    return nn.Sequential(*(Layer(shape, generator) for shape in [*SHAPES, *STACKS, (11, 5)]))


def make_muon(layers: nn.Sequential) -> MuonAdamW:
    """Muon for the matrices, AdamW for the last of them and the vectors."""
    *matrices, embedding = [layer.weight for layer in layers]
    groups = [
        {"params": matrices[: len(SHAPES)], "rule": "muon"},
        {"params": matrices[len(SHAPES) :], "rule": "muon", "parts": 3},
        {"params": [embedding, *(layer.bias for layer in layers)], "rule": "adamw"},
    ]
    return MuonAdamW(groups, lr=0.02)


def make_adamw(layers: nn.Sequential) -> torch.optim.AdamW:
    """torch's own, whose `found_inf` must do the same."""
    return torch.optim.AdamW(layers.parameters(), lr=0.02, fused=True)


def train(layers: nn.Sequential, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Five steps, one of them skipped; returns the whole parameters."""
    generator = torch.Generator().manual_seed(1)
    optimizer.grad_scale = None
    for step in range(5):
        optimizer.found_inf = torch.tensor(float(step == SKIPPED_STEP))
        for parameter in layers.parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            if step == SKIPPED_STEP:
                gradient.fill_(float("nan"))
            if isinstance(parameter, DTensor):
                gradient = distribute_tensor(
                    gradient, parameter.device_mesh, parameter.placements, src_data_rank=None
                )
            parameter.grad = gradient
        optimizer.step()
    return [whole(parameter).detach().clone() for parameter in layers.parameters()]


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the rows of all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check_state_dict(layers: nn.Sequential, optimizer: MuonAdamW) -> None:
    """torch.distributed.checkpoint's way into a fresh optimizer keeps all state, still sharded."""
    fresh = make_muon(layers)
    set_optimizer_state_dict(layers, fresh, get_optimizer_state_dict(layers, optimizer))
    for parameter in layers.parameters():
        assert optimizer.state[parameter].keys() == fresh.state[parameter].keys()
        for key, tensor in optimizer.state[parameter].items():
            assert type(fresh.state[parameter][key]) is type(tensor), key
            assert torch.equal(whole(fresh.state[parameter][key]), whole(tensor)), key


def compare(make: Callable, expected: list[Tensor], *, is_sharded: bool) -> None:
    """Trains in both processes with parameters that are whole or sharded."""
    layers = make_layers()
    if is_sharded:
        for layer in layers:
            fully_shard(layer)
        fully_shard(layers)
    optimizer = make(layers)
    found = train(layers, optimizer)
    # Kernels round an element of a shard otherwise than in the whole, by its place in a vector
    # register; an update of Muon is then another bfloat16. One step moves an element by 4e-3.
    tolerance = 1e-4 if is_sharded else 0.0
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0.0)
    digests = [None] * dist.get_world_size()
    digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in found)).hexdigest()
    dist.all_gather_object(digests, digest)
    assert len(set(digests)) == 1, digests
    if make is make_muon:
        check_state_dict(layers, optimizer)


def main() -> None:
    """Trains alone and shared, and compares."""
    matrix_sharing.ELEMENTS_PER_PROCESS = 60  # several rounds of exchange
    alone = {}
    for make in (make_muon, make_adamw):
        layers = make_layers()
        alone[make] = train(layers, make(layers))
    dist.init_process_group("gloo")
    for make, expected in alone.items():
        for is_sharded in (False, True):
            compare(make, expected, is_sharded=is_sharded)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
