"""One of several processes that add their numbers, as torchrun starts them for the doctor.

Its arguments: gloo or nccl, and the seconds that one waits for the others.
"""

import datetime
import os
import sys

import torch
from torch import distributed


def main() -> None:
    """Joins the others, adds, and raises unless the sum is right."""
    backend, seconds = sys.argv[1], float(sys.argv[2])
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if backend == "nccl" else "cpu"
    if backend == "nccl":
        torch.cuda.set_device(device)
    distributed.init_process_group(backend, timeout=datetime.timedelta(seconds=seconds))
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    number = torch.full((1024,), float(rank), device=device)
    distributed.all_reduce(number)
    expected = world_size * (world_size - 1) / 2
    if not (number == expected).all():
        raise RuntimeError(f"expected a sum of {expected}, found {number[0].item()}")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
