"""The training script, which counts how often gradients are reduced: `... FILE flags ...`.

The main process writes two numbers into FILE at the end: how often, and how many parameters still
have a gradient, which is then a view of a bucket and no second copy.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import train_accelerate


class CountedReductions(DistributedDataParallel):
    """DDP with a counter; the last bucket of a backward pass stands for all of them."""

    n_reductions = 0
    trained: list = []

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.register_comm_hook(None, self._reduce)
        type(self).trained = [*self.parameters()]

    @classmethod
    def _reduce(cls, group, bucket):
        cls.n_reductions += bucket.is_last()
        return allreduce_hook(group, bucket)


def main() -> None:
    """Trains, and writes down the number."""
    path = Path(sys.argv.pop(1))
    torch.nn.parallel.DistributedDataParallel = CountedReductions
    train_accelerate.main()
    if os.environ["RANK"] == "0":
        n_left = sum(parameter.grad is not None for parameter in CountedReductions.trained)
        path.write_text(f"{CountedReductions.n_reductions} {n_left}")


if __name__ == "__main__":
    main()
