"""One of several processes that add their numbers, as torchrun starts them for the doctor.

Its arguments: gloo, or the library of this machine's accelerators, and the seconds that one waits
for the others.
"""

import datetime
import os
import sys

import torch
from torch import distributed

from modeling_gpt2scratch.distributed.device import available_device


def main() -> None:
    """Joins the others, adds, and raises unless the sum is right."""
    backend, seconds = sys.argv[1], float(sys.argv[2])
    device = torch.device("cpu")
    if backend != "gloo":
        device = torch.device(available_device().type, int(os.environ["LOCAL_RANK"]))
        torch.accelerator.set_device_index(device.index)
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
