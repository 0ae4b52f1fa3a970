"""What a run finds out about its steps when it looks back at them, to be logged."""

import dataclasses
from collections.abc import Sequence

import torch

from modeling_gpt2scratch.distributed.processes import say
from modeling_gpt2scratch.hardware.compilation import n_compiled_graphs
from modeling_gpt2scratch.hardware.devices import flops_per_token, mfu, peak_memory
from modeling_gpt2scratch.tracking.metrics import Throughput

from .guard_rails import Finding
from .run import TrainingRun
from .step_outcomes import StepOutcome, read_outcomes, worst_micro_batch


def look_back(
    run: TrainingRun, outcomes: Sequence[StepOutcome]
) -> tuple[dict[str, float], list[Finding]]:
    """Loss and gradient norm of the last step, and what was not as usual in any.

    Raises:
        DivergenceError: on every process alike, if too many steps in a row were skipped.
    """
    guard, findings = run.progress.guard, []
    for outcome, (loss, grad_norm) in zip(outcomes, read_outcomes(outcomes), strict=True):
        finding = guard.judge(outcome.step, loss, grad_norm)
        if finding:
            findings.append(finding)
            _record(run, outcome, finding)
        guard.require_progress()
    values = {"loss": loss, "grad_norm": grad_norm}
    return values | (
        {"skipped_steps": guard.skipped_steps} if guard.skipped_steps else {}
    ), findings


def measure(run: TrainingRun, throughput: Throughput) -> dict[str, float]:
    """What the steps since the last log line cost."""
    config, accelerator = run.config, run.accelerator
    # All processes wait for the slowest, and the fullest one decides what fits.
    own = {"data_wait": throughput.data_wait} | peak_memory(accelerator.device)
    numbers = torch.tensor([list(own.values())], device=accelerator.device)
    values = {
        "tokens": run.progress.step * config.total_batch_tokens,
        "elapsed_seconds": throughput.elapsed_seconds,
        "tokens_per_second": throughput.tokens_per_second,
    } | dict(zip(own, accelerator.gather(numbers).amax(0).tolist(), strict=True))
    utilisation = mfu(
        throughput.tokens_per_second,
        flops_per_token=flops_per_token(run.model.config, config.sequence_length),
        n_devices=accelerator.num_processes,
        peak_flops=run.peak_flops,
    )
    if utilisation is not None:
        values["mfu"] = utilisation
    if config.compile != "no":
        values["compiled_graphs"] = n_compiled_graphs()
    return values


def _record(run: TrainingRun, outcome: StepOutcome, finding: Finding) -> None:
    """Writes down a step that was not as usual, with the place of its worst data."""
    rank, micro_step = worst_micro_batch(outcome, run.accelerator)
    rows = run.loader.locate(outcome.data_step, micro_step, rank)
    event = dataclasses.asdict(finding)
    run.events.write(event.pop("kind"), **event, process=rank, micro_step=micro_step, rows=rows)
    source, file, token = rows[0]
    say(
        f"step {finding.step}: {finding.kind}, loss {finding.loss:.4g}, gradient norm "
        f"{finding.grad_norm:.4g}; data of process {rank} from {source}/{file}, token {token}"
    )
