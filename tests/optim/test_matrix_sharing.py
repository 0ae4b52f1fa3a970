"""Processes that share the orthogonalization end where one alone does."""

import os
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.paths import REPOSITORY
from support.processes import run_on_two
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_gpt2scratch.optim import newton_schulz
from modeling_gpt2scratch.optim.matrix_sharing import MatrixJob, assign_owners
from modeling_gpt2scratch.optim.newton_schulz import (
    iteration_cost,
    orthogonalize,
    orthogonalize_all,
)


def jobs_of(shapes):
    """Jobs that are never done."""
    return [MatrixJob(shape=torch.Size(shape), parts=1, rows=torch.Tensor) for shape in shapes]


def test_twelve_blocks_of_gpt2_are_shared_out_within_a_tenth():
    shapes = [(768, 768), (2304, 768), (3072, 768), (768, 3072)] * 12
    owners = assign_owners(jobs_of(shapes), 8)
    load = [0] * 8
    for shape, owner in zip(shapes, owners, strict=True):
        load[owner] += iteration_cost(torch.Size(shape))
    assert max(load) < 1.1 * sum(load) / 8


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=20),
    st.integers(1, 6),
)
def test_no_process_has_more_than_its_share_and_one_matrix(shapes, world_size):
    costs = [iteration_cost(torch.Size(shape)) for shape in shapes]
    load = [0] * world_size
    for owner, cost in zip(assign_owners(jobs_of(shapes), world_size), costs, strict=True):
        load[owner] += cost
    assert max(load) <= sum(costs) / world_size + max(costs)


@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=9
    ),
    st.integers(1, 200),
)
def test_matrices_that_share_products_end_as_each_alone_does(sizes, batch_bytes):
    generator = torch.Generator().manual_seed(0)
    parts = [n for n, _, _ in sizes]
    matrices = [torch.randn(n * rows, columns, generator=generator) for n, rows, columns in sizes]
    with mock.patch.object(newton_schulz, "BATCH_BYTES_ON_CPU", batch_bytes):
        together = orthogonalize_all(matrices, parts=parts)
    alone = [
        torch.cat([orthogonalize(part) for part in matrix.chunk(n)])
        for matrix, n in zip(matrices, parts, strict=True)
    ]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


class CountOperations(TorchDispatchMode):
    """Counts what torch launches."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_an_accelerator_gets_few_launches_for_gpt2_small():
    matrices = [torch.empty(n * 768, 768, device="meta") for n in (3, 1, 4) * 12]
    with CountOperations() as operations:
        orthogonalize_all(matrices, parts=(3, 1, 1) * 12)
    # Two shapes of 5 iterations of 3 products; each matrix alone would be 60 times 15.
    assert operations.count < 250


@pytest.mark.gate
def test_two_processes_end_with_the_parameters_of_one_be_they_whole_or_sharded(warm_commands):
    process = run_on_two(
        *(warm_commands, "tests/support/programs/muon_processes.py"),
        cwd=REPOSITORY,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.returncode == 0, process.stderr[-3000:]
