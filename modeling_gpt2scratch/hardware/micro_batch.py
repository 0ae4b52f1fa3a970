"""The largest micro-batch that fits in memory."""

import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch.distributed._tools.mem_tracker import MemTracker

from modeling_gpt2scratch.distributed.processes import LaunchError
from modeling_gpt2scratch.modeling_gpt2scratch import GPT2ScratchForCausalLM

from .devices import available_memory, counts_memory, total_memory

# Left free on a GPU, as a share of its memory: for buffers of the communication between GPUs, and
# because memory is cut up more and more during a long run.
GPU_RESERVE = 0.1
# Taken on a CPU, as a share of what is available: nothing warns of the end of memory there.
CPU_SHARE = 0.7
# On a CPU, more tokens at a time gain nothing: the tiny model in bf16 made 1,300 tokens/s with 256,
# 1,900 with 1024, 2,200 with 4096 and 2,100 with 8192 (benchmarks/train_step.py --model tiny
# --sequence_length 256 --micro_batch_size 1, 4, 16, 32; one core of an AMD EPYC with AVX512-BF16).
CPU_TOKENS = 4096
# Beside the weights, the gradient and AdamW's two moments; Muon has one.
STATE_PER_WEIGHT = 3


def find_micro_batch_size(
    model: GPT2ScratchForCausalLM,
    accelerator: Accelerator,
    *,
    rows_per_rank: int,
    sequence_length: int,
) -> int:
    """The most rows per micro-step that fit on every process, a divisor of `rows_per_rank`.

    On a GPU by trying, from the largest on; on a CPU, where trying would end the process, from the
    memory that one and two rows take, and `CPU_TOKENS` at most. Random state, gradients
    and mode are afterwards as before.

    Args:
        model: not wrapped and not compiled, so that no process waits for another and no size is
            compiled for. It is moved to the device.
        accelerator: of the run; its autocast is used.
        rows_per_rank: of a step.
        sequence_length: tokens of a row.

    Raises:
        LaunchError: on every process alike, if one row does not fit, or if parts of the model will
            be shared out (FSDP2, DeepSpeed): a trial with the whole model says nothing of theirs.
    """
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise LaunchError(
            f"expected a number for --micro_batch_size under {accelerator.distributed_type.value}, "
            f"found auto; start with 1 and double it while it fits"
        )
    sizes = [n for n in range(rows_per_rank, 0, -1) if rows_per_rank % n == 0]
    model.to(accelerator.device)
    trial = Trial(model, accelerator, sequence_length)
    was_training = model.training
    model.train()
    device, on_gpu = accelerator.device, accelerator.device.type != "cpu"
    with torch.random.fork_rng([device] if on_gpu else [], device_type=device.type):
        found = largest_by_trying(trial, sizes) if on_gpu else largest_by_estimate(trial, sizes)
    model.train(was_training)
    clear_device_cache()
    if counts_memory(device):  # the run's own peak counts, and not that of the trials
        torch.accelerator.reset_peak_memory_stats(device)
    found = min(gather_object([found]))
    if not found:
        raise LaunchError(
            f"expected memory for one row of {sequence_length} tokens, found too little; lower "
            f"--sequence_length or try --activation_checkpointing true"
        )
    return found


class Trial:
    """Forward and backward of some rows.

    Args:
        model: on its device, in training mode.
        accelerator: whose autocast is used.
        sequence_length: tokens of a row.
    """

    def __init__(
        self, model: GPT2ScratchForCausalLM, accelerator: Accelerator, sequence_length: int
    ):
        self.model, self.accelerator = model, accelerator
        self.sequence_length = sequence_length
        self.weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())

    def __call__(self, n_rows: int) -> None:
        """Makes a micro-step, and adds to the gradients that are there."""
        shape, device = (n_rows, self.sequence_length), self.accelerator.device
        input_ids = torch.randint(self.model.config.vocab_size, shape, device=device)
        with self.accelerator.autocast():
            loss = self.model(input_ids, shift_labels=input_ids).loss
        loss.backward()


def largest_by_trying(trial: Trial, sizes: list[int]) -> int:
    """The first of the sizes, which fall, that does not run out of memory; 0 if all do."""
    return next((size for size in sizes if _fits(trial, size)), 0)


def largest_by_estimate(trial: Trial, sizes: list[int]) -> int:
    """The first of the sizes, which fall, whose tensors fit in this process's share of memory.

    The tensors of one and of two rows are counted and their difference taken for each further row.
    The result is 1 at least: an estimate is no reason to refuse.
    """
    most = max(1, CPU_TOKENS // trial.sequence_length)
    sizes = [size for size in sizes if size <= most]
    if sizes == [1]:
        return 1
    budget = CPU_SHARE * available_memory() / int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    of_one, of_two = tensor_bytes(trial, 1), tensor_bytes(trial, 2)
    rest = budget - STATE_PER_WEIGHT * trial.weight_bytes - of_one
    n_rows = 1 + max(0, int(rest / max(1, of_two - of_one)))
    return next(size for size in sizes if size <= n_rows)


def tensor_bytes(trial: Trial, n_rows: int) -> int:
    """The most bytes that the tensors of a trial take at one time, weights aside."""
    tracker = MemTracker()
    tracker.track_external(trial.model)
    with tracker:
        trial(n_rows)
    peak = tracker.get_tracker_snapshot("peak")[trial.accelerator.device]["Total"]
    trial.model.zero_grad()
    return peak - trial.weight_bytes


def _fits(trial: Trial, n_rows: int) -> bool:
    """Whether two micro-steps fit beside what the optimizer will need."""
    device = trial.accelerator.device
    clear_device_cache(garbage_collection=True)  # of what the exception of a trial before held
    try:
        n_bytes = (STATE_PER_WEIGHT - 1) * trial.weight_bytes
        n_bytes += int(GPU_RESERVE * total_memory(device))
        reserve = torch.empty(n_bytes, dtype=torch.uint8, device=device)
        for _ in range(2):  # the second has the gradients of the first beside it
            trial(n_rows)
        torch.accelerator.synchronize(device)
        del reserve
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        return False
    finally:
        trial.model.zero_grad()
    return True
