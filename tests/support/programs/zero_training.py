"""The training script under DeepSpeed on CPU processes: `zero_training.py FAULTS flags ...`.

Accelerate offers DeepSpeed to accelerators only. What is changed here makes it take that path over
gloo, and the path itself is what runs on GPUs. FAULTS is that of `faulty_training.py`.
"""

import os
import sys
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[3]))

import deepspeed  # noqa: F401 - its modules are changed below
from accelerate import Accelerator, PartialState
from support.programs import faulty_training

from modeling_gpt2scratch.distributed import accelerator

PLACE = {
    "num_processes": int(os.environ["WORLD_SIZE"]),
    "process_index": int(os.environ["RANK"]),
    "local_process_index": int(os.environ["LOCAL_RANK"]),
}


def make_accelerator(*, cpu: bool, **options) -> Accelerator:
    """An Accelerator that does not fall back to replicas on the CPU, and knows its process."""
    made = Accelerator(cpu=False, **options)
    PartialState._shared_state.update(PLACE)
    type(made.state)._shared_state.update(PLACE)
    return made


if __name__ == "__main__":
    # The module's name in the package is that of a function. Its extension for shared memory would
    # be compiled for minutes, and gloo does without it.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
    accelerator.Accelerator = make_accelerator
    faulty_training.main()
