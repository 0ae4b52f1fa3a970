"""Processes that share the orthogonalization end where one alone does."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.paths import REPOSITORY
from support.processes import run_on_two

from modeling_gpt2scratch.optim.matrix_sharing import MatrixJob, assign_owners
from modeling_gpt2scratch.optim.newton_schulz import iteration_cost


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


@pytest.mark.gate
def test_two_processes_end_with_the_parameters_of_one_be_they_whole_or_sharded(warm_commands):
    process = run_on_two(
        *(warm_commands, "tests/support/programs/muon_processes.py"),
        cwd=REPOSITORY,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.returncode == 0, process.stderr[-3000:]
