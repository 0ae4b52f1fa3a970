"""Shares the orthogonalization of many matrices out among processes.

Each matrix has one owner, which orthogonalizes it for all. Only collectives that gloo and NCCL both
have are used. W processes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from .newton_schulz import iteration_cost, orthogonalize_all

# Elements of the matrices that are under way at a time, for each process: few enough for memory,
# and enough that each process owns several matrices.
ELEMENTS_PER_PROCESS = 2**24


@dataclass(frozen=True)
class MatrixJob:
    """A matrix to orthogonalize."""

    shape: torch.Size  # (rows, columns) of the whole matrix
    parts: int  # see `orthogonalize_all`
    rows: Callable[[], Tensor]  # makes the rows that this process has, in the dtype to compute in


def orthogonalize_alone(jobs: Sequence[MatrixJob]) -> Iterator[Tensor]:
    """The orthogonal matrices in the order of the jobs, without other processes."""
    for bucket in _buckets(jobs, 1):
        yield from _orthogonalize_jobs(bucket, [job.rows() for job in bucket])


def orthogonalize_replicated(
    jobs: Sequence[MatrixJob], group: dist.ProcessGroup, *, device: torch.device, dtype: torch.dtype
) -> Iterator[Tensor]:
    """The orthogonal matrices in the order of the jobs, where each process has all their rows.

    Owners tell the others.
    """
    rank, world_size = group.rank(), group.size()
    for bucket in _buckets(jobs, world_size):
        owned = _by_owner(bucket, world_size)
        results: list[Tensor] = [torch.empty(0)] * len(bucket)
        pending = []
        for owner, indices in enumerate(owned):
            sizes = [bucket[index].shape.numel() for index in indices]
            flat = torch.empty(sum(sizes), device=device, dtype=dtype)
            for index, piece in zip(indices, flat.split(sizes), strict=True):
                results[index] = piece.view(bucket[index].shape)
            if owner == rank:
                own = [bucket[index] for index in indices]
                orthogonal = _orthogonalize_jobs(own, [job.rows() for job in own])
                for index, matrix in zip(indices, orthogonal, strict=True):
                    results[index].copy_(matrix)
            pending.append((owner, flat))
        # As many broadcasts as owners: an all-gather would need parts of equal size.
        works = [
            dist.broadcast(flat, group=group, group_src=owner, async_op=True)
            for owner, flat in pending
            if flat.numel()
        ]
        for work in works:
            work.wait()
        yield from results


def orthogonalize_sharded(
    jobs: Sequence[MatrixJob], group: dist.ProcessGroup, *, device: torch.device, dtype: torch.dtype
) -> Iterator[Tensor]:
    """The same for processes that have some rows each, as DTensor's `Shard(0)` deals them out.

    Yields:
        The rows of this process.
    """
    rank, world_size = group.rank(), group.size()
    for bucket in _buckets(jobs, world_size):
        owned = _by_owner(bucket, world_size)
        # Sizes of the pieces of matrices: that go from here to each owner, and that come from
        # each process to this owner.
        sent_sizes = [
            [_local_numel(bucket[index], rank, world_size) for index in indices]
            for indices in owned
        ]
        received_sizes = [
            [_local_numel(bucket[index], source, world_size) for index in owned[rank]]
            for source in range(world_size)
        ]
        n_sent, n_received = list(map(sum, sent_sizes)), list(map(sum, received_sizes))

        sent = torch.cat([bucket[index].rows().flatten() for indices in owned for index in indices])
        received = torch.empty(sum(n_received), device=device, dtype=dtype)
        dist.all_to_all_single(received, sent, n_received, n_sent, group=group)
        by_source = [
            part.split(sizes)
            for part, sizes in zip(received.split(n_received), received_sizes, strict=True)
        ]
        own = [bucket[index] for index in owned[rank]]
        by_matrix = list(zip(*by_source, strict=True))  # for each of its matrices all pieces
        whole = [
            torch.cat(pieces).view(job.shape) for job, pieces in zip(own, by_matrix, strict=True)
        ]
        for matrix, pieces in zip(_orthogonalize_jobs(own, whole), by_matrix, strict=True):
            parts = matrix.flatten().split([piece.numel() for piece in pieces])
            for piece, part in zip(pieces, parts, strict=True):
                piece.copy_(part)
        dist.all_to_all_single(sent, received, n_sent, n_received, group=group)

        results: list[Tensor] = [sent] * len(bucket)
        for indices, part, sizes in zip(owned, sent.split(n_sent), sent_sizes, strict=True):
            for index, piece in zip(indices, part.split(sizes), strict=True):
                results[index] = piece.view(-1, bucket[index].shape[1])
        yield from results


def assign_owners(jobs: Sequence[MatrixJob], world_size: int) -> list[int]:
    """The owner of each matrix: the costliest first, each to whoever has least to do so far."""
    costs = [iteration_cost(job.shape, parts=job.parts) for job in jobs]
    load = [0] * world_size
    owners = [0] * len(jobs)
    for index in sorted(range(len(jobs)), key=lambda index: -costs[index]):
        owners[index] = load.index(min(load))
        load[owners[index]] += costs[index]
    return owners


def _orthogonalize_jobs(jobs: Sequence[MatrixJob], matrices: Sequence[Tensor]) -> list[Tensor]:
    """The orthogonal matrices of jobs whose matrices are whole here."""
    return orthogonalize_all(matrices, parts=[job.parts for job in jobs])


def _by_owner(jobs: Sequence[MatrixJob], world_size: int) -> list[list[int]]:
    """For each process the indices of the jobs that it owns, in order."""
    owners = assign_owners(jobs, world_size)
    return [
        [index for index, owner in enumerate(owners) if owner == rank] for rank in range(world_size)
    ]


def _buckets(jobs: Sequence[MatrixJob], world_size: int) -> Iterator[list[MatrixJob]]:
    """The jobs in order, as many at a time as memory allows, and at least one."""
    bucket: list[MatrixJob] = []
    n_elements = 0
    for job in jobs:
        if bucket and n_elements + job.shape.numel() > ELEMENTS_PER_PROCESS * world_size:
            yield bucket
            bucket, n_elements = [], 0
        bucket.append(job)
        n_elements += job.shape.numel()
    if bucket:
        yield bucket


def _local_numel(job: MatrixJob, rank: int, world_size: int) -> int:
    """Elements of the rows that `Shard(0)` leaves to a process: as `torch.chunk` divides them."""
    n_rows, n_columns = job.shape
    rows_per_process = -(-n_rows // world_size)
    first = min(rank * rows_per_process, n_rows)
    return (min(first + rows_per_process, n_rows) - first) * n_columns
