"""What optimizer steps found and cost: on the device while they run, and in the log afterwards.

Nothing here waits for the device until something is to be logged.

Shapes: A micro-steps of a step, W processes.
"""

import dataclasses
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from modeling_gpt2scratch.common.errors import file_problem, printable
from modeling_gpt2scratch.distributed.processes import say
from modeling_gpt2scratch.hardware.compilation import n_compiled_graphs
from modeling_gpt2scratch.hardware.devices import flops_per_token, mfu, peak_memory
from modeling_gpt2scratch.optim.optimizer import skips_by_itself
from modeling_gpt2scratch.tracking.metrics import Throughput

from .guard_rails import StepFinding
from .progress import StepMeans
from .run import TrainingRun

# In metrics.jsonl and the trackers, and too much for a line of the log.
UNSHOWN = {
    *("sample", "tokens", "elapsed_seconds", "save_stall_seconds", "compiled_graphs"),
    *("loss_scale", "overflowed_steps"),
    *("peak_device_memory_gib", "peak_resident_memory_gib"),
}
FORMATS = {"eval_loss": ".4f", "data_wait": ".1%", "mfu": ".1%", "tokens_per_second": ".0f"}


@dataclass(frozen=True)
class StepOutcome:
    """One optimizer step; reading a number from here makes the device finish first."""

    step: int  # optimizer updates made after it
    data_step: int  # the step whose data it read
    loss: Tensor  # () float32, nats per token, mean of all processes
    grad_norm: Tensor  # () float32, before clipping, of the whole gradient
    micro_losses: Tensor  # (A,) float32, of this process
    loss_scale: Tensor  # () float32, that the loss was multiplied by; 1 unless in fp16


def read_outcomes(outcomes: Sequence[StepOutcome]) -> list[tuple[float, float, float]]:
    """Loss, gradient norm and loss scale of each step, in one transfer from the device."""
    numbers = [torch.stack((o.loss, o.grad_norm, o.loss_scale)) for o in outcomes]
    return [tuple(row) for row in torch.stack(numbers).tolist()]


def worst_micro_batch(outcome: StepOutcome, accelerator: Accelerator) -> tuple[int, int]:
    """Rank and micro-step with the highest loss of a step; what is no number is higher than any.

    All processes must call this together.
    """
    losses = accelerator.gather(outcome.micro_losses[None])  # (W, A)
    worst = int(losses.nan_to_num(nan=torch.inf).argmax())
    return divmod(worst, losses.shape[1])


def clip_gradients(model: nn.Module, accelerator: Accelerator, max_norm: float) -> Tensor:
    """Clips, unless `max_norm` is 0, and returns the norm of the whole gradient before it, ().

    In fp16 the gradients are divided by the loss scale first. DeepSpeed has clipped and stepped by
    now; where it skipped the step, it still tells the norm of the step before.
    """
    is_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    if is_deepspeed and not accelerator.deepspeed_engine_wrapped.engine.was_step_applied():
        return torch.tensor(torch.inf, device=accelerator.device)
    norm = accelerator.clip_grad_norm_(model.parameters(), max_norm or math.inf)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    return torch.as_tensor(norm, dtype=torch.float32, device=accelerator.device)


def skip_unless_finite(optimizer: torch.optim.Optimizer, loss: Tensor, grad_norm: Tensor) -> bool:
    """Lets the optimizer's next step change nothing unless both are finite.

    The optimizer itself looks at the flag, on its device, so that nothing waits for the number.
    Loss and norm are the same on all processes, and so is the decision. DeepSpeed has stepped by
    now, unless it found the gradient not finite itself, and does not look at the flag.

    Returns:
        False where the step must not be made at all: where the optimizer would not look at the
        flag, the number is waited for; see `skips_by_itself`.
    """
    is_finite = torch.isfinite(loss) & torch.isfinite(grad_norm)
    if not skips_by_itself(optimizer, loss.device):
        return bool(is_finite)
    optimizer.grad_scale = None
    optimizer.found_inf = (~is_finite).to(torch.float32)
    return True


def update_weights(
    optimizer: AcceleratedOptimizer, accelerator: Accelerator, loss: Tensor, grad_norm: Tensor
) -> Tensor:
    """One step of the optimizer, which changes nothing unless loss and gradient are finite.

    In fp16 the loss scale then falls or grows. torch's scaler does not make the step itself: its
    flag, of the gradient alone, would replace ours, and it would wait for the device under Muon.

    Returns:
        The loss scale of this step, () on the device; 1 without one.
    """
    is_due = skip_unless_finite(optimizer.optimizer, loss, grad_norm)
    loss_scale = torch.ones((), device=accelerator.device)
    if accelerator.scaler is None:
        if is_due:
            optimizer.step()
        return loss_scale
    loss_scale = accelerator.scaler.scale(loss_scale)
    if is_due:
        optimizer.optimizer.step()
    accelerator.scaler.update()
    return loss_scale


def judge_steps(
    run: TrainingRun, outcomes: Sequence[StepOutcome]
) -> tuple[dict[str, float], list[StepFinding]]:
    """Mean loss and gradient norm since the last multiple of `log_every`, and unusual steps.

    Raises:
        DivergenceError: on every process alike, if too many steps in a row were skipped.
    """
    progress, findings = run.progress, []
    guard = progress.guard
    pairs = zip(outcomes, read_outcomes(outcomes), strict=True)
    for outcome, (loss, grad_norm, loss_scale) in pairs:
        finding = guard.judge(outcome.step, loss, grad_norm, loss_scale=loss_scale)
        if finding:
            findings.append(finding)
            _record(run, outcome, finding)
        guard.require_progress()
        progress.means.add(loss, grad_norm)
    values = progress.means.values()
    if guard.skipped_steps:
        values["skipped_steps"] = guard.skipped_steps
    if run.accelerator.scaler is not None:
        values |= {"loss_scale": loss_scale, "overflowed_steps": guard.overflowed_steps}
    if progress.step % run.config.log_every == 0:
        progress.means = StepMeans()
    return values, findings


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


def report(run: TrainingRun, bar: tqdm, values: dict) -> None:
    """Sends the values to the trackers and shows them as a line."""
    step = run.progress.step
    if not run.lock.is_lost:  # else the run ends at the next step, on all processes alike
        try:
            run.accelerator.log(values, step=step)
        except OSError as error:  # such as a disk that is full for a while
            say(f"warning: step {step} is not logged: {file_problem(error)}; the run goes on")
    shown = [
        f"{name} {format(value, FORMATS.get(name, '.4g'))}"  # four digits of the others
        for name, value in values.items()
        if name not in UNSHOWN
    ]
    say(f"step {step}: {', '.join(shown)}")
    if "loss" in values:
        bar.set_postfix(loss=f"{values['loss']:.4g}")
    if "sample" in values:
        say(f"step {step}, sample:\n{textwrap.indent(printable(values['sample']), '    ')}")


def _record(run: TrainingRun, outcome: StepOutcome, finding: StepFinding) -> None:
    """Writes down a step that was not as usual, with the place of its worst data."""
    if finding.kind == "overflow":
        run.events.write("overflow", step=finding.step, loss_scale=finding.loss_scale)
        say(
            f"step {finding.step}: overflow; the gradient times the loss scale "
            f"{finding.loss_scale:g} is too large for fp16. The step changes nothing, and the "
            f"scale is halved"
        )
        return
    rank, micro_step = worst_micro_batch(outcome, run.accelerator)
    rows = run.loader.locate(outcome.data_step, micro_step, rank)
    event = dataclasses.asdict(finding)
    del event["loss_scale"]
    run.events.write(event.pop("kind"), **event, process=rank, micro_step=micro_step, rows=rows)
    source, file, token = rows[0]
    say(
        f"step {finding.step}: {finding.kind}, loss {finding.loss:.4g}, gradient norm "
        f"{finding.grad_norm:.4g}; data of process {rank} from {source}/{file}, token {token}"
    )
