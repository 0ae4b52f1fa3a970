"""Tokens per second of whole training steps, ours and others', in turns."""

import dataclasses
import statistics
import time
from collections.abc import Sequence

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from train_step import BenchmarkConfig, Contestant, Entry, batches

from gpu_parts.plan import Plan, Record
from modeling_gpt2scratch import GPT2ScratchConfig
from modeling_gpt2scratch.hardware.devices import device_peak_flops, flops_per_token, mfu
from modeling_gpt2scratch.training.sizes import MODEL_SIZES

BF16 = torch.bfloat16
# The most valuable first: what is not reached in time is missing.
ENTRIES = {
    "ours, Muon, compiled": Entry("ours", BF16, optimizer="muon", is_compiled=True),
    "ours, AdamW, compiled": Entry("ours", BF16, is_compiled=True),
    "plain GPT, AdamW, compiled": Entry("plain", BF16, is_compiled=True),
    "transformers, AdamW, compiled": Entry("transformers", BF16, is_compiled=True),
    "ours, AdamW": Entry("ours", BF16),
    "transformers, AdamW": Entry("transformers", BF16),
    "ours, Muon": Entry("ours", BF16, optimizer="muon"),
}
ROWS = (64, 48, 32, 16, 8, 4, 2, 1)
VOCABULARY, PADDED_VOCABULARY = 50_257, 50_304  # single-file scripts pad it themselves
ROUNDS_SHARE = 0.2  # of the time, kept for the rounds
# For each block, to make a contestant before one of its kind has shown how long that takes. On a
# CPU, to compile ours took 41 s for 12 blocks, half of it in the compiler of C++.
EAGER_SECONDS, COMPILED_SECONDS = 0.1, 2.0
ROUNDS = 20


def run(plan: Plan, record: Record) -> None:
    """GPT-2 small."""
    measure(plan, record, "gpt2")


def measure(
    plan: Plan,
    record: Record,
    model: str,
    *,
    names: Sequence[str] = tuple(ENTRIES),
) -> None:
    """Records each contestant's speed as soon as it is made, and after each round."""
    config = BenchmarkConfig(model=model, device=plan.device.type, vocab_size=VOCABULARY)
    sizes = ROWS
    if plan.is_smoke:
        config = dataclasses.replace(config, model="tiny", vocab_size=600, sequence_length=16)
        sizes = (2,)
    # Each model, and each size that was tried, is a compilation of the same function to torch.
    torch._dynamo.config.recompile_limit = 64
    contestants, rows, problems, data = {}, {}, {}, {}
    speeds: dict[str, list[float]] = {}
    starts: dict[tuple[str, bool], float] = {}  # seconds, by kind and whether it is compiled
    n_layer = MODEL_SIZES[config.model]["n_layer"]
    for name in names:
        entry = ENTRIES[name]
        kind = entry.kind, entry.is_compiled
        needed = n_layer * (COMPILED_SECONDS if entry.is_compiled else EAGER_SECONDS)
        needed = starts.get(kind, 0.0 if plan.is_smoke else needed)
        if plan.seconds_left < needed + ROUNDS_SHARE * plan.seconds:
            problems[name] = f"no time: {plan.seconds_left:.0f} s left, about {needed:.0f} needed"
            record(problems=problems)
            continue
        started = time.monotonic()
        try:
            contestants[name], rows[name] = largest(
                entry, config, sizes, backend="eager" if plan.is_smoke else "inductor"
            )
        except Exception as error:  # whatever it is, the others are still worth having
            problems[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            record(problems=problems)
            continue
        starts[kind] = max(starts.get(kind, 0.0), time.monotonic() - started)
        data[name] = batches(sized(config, entry, rows[name]))
        speeds[name] = [speed_of(contestants[name], data[name][0])]
        record(problems=problems, rows=rows, contestants=summary(speeds, rows, config, plan))
    for round_ in range(2 if plan.is_smoke else ROUNDS):
        if not contestants or plan.seconds_left < 0.03 * plan.seconds:
            break
        for name, contestant in contestants.items():
            speeds[name].append(speed_of(contestant, data[name][round_ % len(data[name])]))
        record(contestants=summary(speeds, rows, config, plan), rounds=round_ + 1)


def speed_of(contestant: Contestant, batch: tuple[torch.Tensor, ...]) -> float:
    """Tokens per second of one step."""
    _, seconds = contestant.step(*batch)
    return batch[0].numel() / seconds


def sized(config: BenchmarkConfig, entry: Entry, rows: int) -> BenchmarkConfig:
    """The sizes of one contestant."""
    is_padded = entry.kind == "plain" and config.vocab_size == VOCABULARY
    vocab_size = PADDED_VOCABULARY if is_padded else config.vocab_size
    return dataclasses.replace(config, micro_batch_size=rows, vocab_size=vocab_size, rounds=3)


def largest(
    entry: Entry, config: BenchmarkConfig, sizes: tuple[int, ...], *, backend: str
) -> tuple[Contestant, int]:
    """A contestant after two steps, with the most rows of a micro-batch that fit in memory."""
    for rows in sizes:
        own = sized(config, entry, rows)
        try:
            contestant = Contestant(entry, own, backend=backend)
            for _ in range(2):
                contestant.step(*batches(own)[0])
            return contestant, rows
        except RuntimeError as error:
            if rows == sizes[-1] or not should_reduce_batch_size(error):
                raise
        contestant = None
        clear_device_cache(garbage_collection=True)
    raise RuntimeError("expected a size to try, found none")


def summary(
    speeds: dict[str, list[float]], rows: dict[str, int], config: BenchmarkConfig, plan: Plan
) -> dict[str, dict[str, float | None]]:
    """Median speed, MFU, and the median ratio to the fastest peer, by contestant."""
    sizes = MODEL_SIZES[config.model] | {"vocab_size": config.vocab_size}
    of_token = flops_per_token(
        GPT2ScratchConfig(**sizes, bos_token_id=0, eos_token_id=0), config.sequence_length
    )
    peak = device_peak_flops(plan.device, mixed_precision="bf16")
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    peers = [name for name in medians if not name.startswith("ours")]
    best = max(peers, key=medians.get, default=None)
    return {
        name: {
            "rows": rows[name],
            "tokens_per_second": median,
            "mfu": mfu(median, flops_per_token=of_token, n_devices=1, peak_flops=peak),
            "times_best_peer": best
            and statistics.median(a / b for a, b in zip(speeds[name], speeds[best], strict=True)),
        }
        for name, median in medians.items()
    }
