"""Pre-trains a GPT-2: `accelerate launch train_accelerate.py recipes/quickstart.yaml`.

The same script runs on one CPU core, one GPU or many nodes, with replicas or with shards of the
model; only the Accelerate configuration differs. Without dropout, losses do not depend on the
number of processes. A run can be stopped at any moment and continued with `--resume auto`.

Shapes: A micro-steps of an optimizer step.
"""

from modeling_gpt2scratch.common.command_line import parse_config
from modeling_gpt2scratch.training.configuration import TrainConfig

if __name__ == "__main__":  # before torch, so that `--help` and mistakes need not wait for it
    CONFIG = parse_config(TrainConfig, description=__doc__)

import contextlib
import os
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from modeling_gpt2scratch.checkpoints import checkpoint as checkpointing
from modeling_gpt2scratch.checkpoints.checkpoint import CheckpointError
from modeling_gpt2scratch.data.loading.prefetcher import Prefetcher
from modeling_gpt2scratch.data.shards.format import ShardError
from modeling_gpt2scratch.data.tokens.names import TokenizerError
from modeling_gpt2scratch.distributed.accelerator import asks_for_fp8, closing, make_accelerator
from modeling_gpt2scratch.distributed.agreement import StalledError, StopSignal
from modeling_gpt2scratch.distributed.processes import LaunchError, on_main_process, say
from modeling_gpt2scratch.hardware.devices import keep_freed_memory, require_fp8
from modeling_gpt2scratch.hardware.profiling import profiler
from modeling_gpt2scratch.optim.optimizer import set_learning_rate
from modeling_gpt2scratch.optim.schedules import learning_rate_at
from modeling_gpt2scratch.reports.run_page import report_at_end
from modeling_gpt2scratch.tracking.metrics import Throughput
from modeling_gpt2scratch.tracking.trackers import TrackerError
from modeling_gpt2scratch.training import preflight
from modeling_gpt2scratch.training.banner import banner, surprises
from modeling_gpt2scratch.training.data import TrainingData
from modeling_gpt2scratch.training.directory import find_resume_point, recorded_status
from modeling_gpt2scratch.training.guard_rails import DivergenceError
from modeling_gpt2scratch.training.initial_weights import InitialWeightsError
from modeling_gpt2scratch.training.run import TrainingRun, can_go_back, go_back, open_run
from modeling_gpt2scratch.training.steps import (
    StepOutcome,
    clip_gradients,
    look_back,
    measure,
    skip_unless_finite,
)
from modeling_gpt2scratch.training.validation import open_benchmarks, validate

# What the user can mend, and therefore sees as one line.
EXPECTED_ERRORS = (
    *(LaunchError, ShardError, TokenizerError, InitialWeightsError, CheckpointError),
    *(TrackerError, DivergenceError, StalledError, OSError),
)
# In metrics.jsonl and the trackers, and too much for a line of the log.
UNSHOWN = {
    *("sample", "tokens", "elapsed_seconds", "save_stall_seconds", "compiled_graphs"),
    *("peak_cuda_memory_gib", "peak_resident_memory_gib"),
}


def main(config: TrainConfig) -> None:
    """Trains, and turns what is wrong with the input into one line and an exit code."""
    transformers_logging.disable_progress_bar()  # one for each checkpoint file is too many
    # torch then takes its memory in huge pages; small ones cost CPU runs a third of their time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if not torch.accelerator.is_available():
        keep_freed_memory()
    try:
        train(config)
    except (*EXPECTED_ERRORS, KeyboardInterrupt) as error:
        # Before the processes have found each other, one of each machine speaks.
        if getattr(error, "is_first", os.environ.get("LOCAL_RANK", "0") == "0"):
            # In one piece, or the lines of several processes may lie within one another.
            sys.stderr.write(f"train_accelerate.py: error: {str(error) or 'interrupted'}\n")
        sys.exit(exit_code(error))


def exit_code(error: BaseException) -> int:
    """What a shell expects: 2 for arguments that do not fit, 130 for Ctrl-C, else 1."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, LaunchError) else 1


def train(config: TrainConfig) -> None:
    """Finds the point to start from and the other processes, and trains."""
    if asks_for_fp8(config.mixed_precision):
        require_fp8()
    data = TrainingData(config)
    accelerator = make_accelerator(
        mixed_precision=config.mixed_precision,
        project_dir=config.output_dir,
        timeout_minutes=config.timeout_minutes,
    )
    with contextlib.closing(data), closing(accelerator):
        checkpoint, state = find_resume_point(config), {}
        if checkpoint:
            identity = data.identity() | config.identity()
            state = checkpointing.load_state(checkpoint, expected=identity)
        train_from(checkpoint, state, config, data, accelerator)


def train_from(
    checkpoint: Path | None,
    state: dict,
    config: TrainConfig,
    data: TrainingData,
    accelerator: Accelerator,
) -> None:
    """Makes the steps that are left after a checkpoint, and saves the model."""
    score = open_benchmarks(config, accelerator, limit=config.eval_tasks_limit)
    run = open_run(config, data, accelerator, score, checkpoint=checkpoint, state=state)
    output_dir = Path(config.output_dir)
    with (
        contextlib.closing(run.lock),
        contextlib.closing(run.writer),
        recorded_status(output_dir, run.progress) as outcome,
        run.agreement.naming_the_stalled(),
    ):
        look_ahead(run)
        end = make_steps(run)
        run.writer.wait()
        if end == "finished":
            run.writer.save_model(run.model, run.tokenizer)
            say(f"finished: model and tokenizer are in {output_dir}")
            say(on_main_process(report_at_end, output_dir))
        else:
            say(f"stopped after step {run.progress.step}; continue with --resume auto")
            if dist.is_torchelastic_launched():
                say("(the launcher calls every signal a failure; the checkpoint is complete)")
        outcome["status"] = end


def look_ahead(run: TrainingRun) -> None:
    """Says what is about to run, and tries once everything that it will do."""
    config, accelerator, progress = run.config, run.accelerator, run.progress
    notes = surprises(config, accelerator, run.model, has_validation=bool(run.validation))
    if config.preflight:
        loss = preflight.try_one_batch(
            run.wrapped_model, run.loader, accelerator, step=progress.data_step
        )
        if progress.step == 0 and config.init_from is None:
            notes += preflight.surprises_of_loss(loss, run.model.config.vocab_size)
        if run.validation and config.eval_every:
            validate(run, n_windows=accelerator.num_processes)
        score_few = open_benchmarks(config, accelerator, limit=accelerator.num_processes)
        score_few(run.model, run.tokenizer)  # says which benchmark cannot be scored
        started = time.perf_counter()
        run.writer.rehearse(**run.snapshot())
        notes += preflight.surprises_of_saving(time.perf_counter() - started)
    say(banner(run, notes))


def make_steps(run: TrainingRun) -> str:
    """Makes the optimizer steps that are left, going back after spikes if so asked.

    Returns:
        "finished", or "stopped" if a signal asked for it.
    """
    config, accelerator, progress = run.config, run.accelerator, run.progress
    stop_signal = StopSignal()
    while True:
        first = progress.data_step
        bar = tqdm(
            desc="training",
            initial=progress.step,
            total=config.max_steps,
            disable=None if accelerator.is_main_process else True,  # None: only on a terminal
        )
        with (
            bar,
            Prefetcher(run.loader, start_step=first, device=accelerator.device) as batches,
            profiler(accelerator, Path(config.output_dir) if config.profile else None) as profile,
        ):
            end = run_steps(run, batches, stop_signal, profile, bar)
        if end != "spiked":
            return end
        go_back(run)


def run_steps(
    run: TrainingRun,
    batches: Prefetcher,
    stop_signal: StopSignal,
    profile: torch.profiler.profile | None,
    bar: tqdm,
) -> str:
    """Makes optimizer steps until there is a reason not to.

    Returns:
        "finished", "stopped", or "spiked" if the run has to go back.
    """
    config, progress = run.config, run.progress
    throughput = Throughput(elapsed_seconds=progress.elapsed_seconds)
    outcomes: list[StepOutcome] = []  # since the last log line
    while progress.step < config.max_steps:
        waited_before = batches.waited_seconds
        learning_rate = learning_rate_of(config, progress.step)
        outcomes.append(train_step(run, batches, learning_rate))
        throughput.count(config.total_batch_tokens, batches.waited_seconds - waited_before)
        progress.step += 1
        bar.update()
        if profile:
            profile.step()
        is_stopped, has_lost_checkpoint = run.agreement.exchange(
            [stop_signal.received, run.writer.problem is not None]
        )
        if has_lost_checkpoint:
            run.writer.wait()  # raises, on all processes alike

        step = progress.step
        is_last = step == config.max_steps
        is_eval = bool(run.validation) and is_due(config.eval_every, step, is_last)
        is_score = bool(config.eval_tasks) and (
            is_last or is_due(config.eval_tasks_every, step, is_last)
        )
        is_save = is_last or is_stopped or is_due(config.save_every, step, is_last)
        if is_eval or is_score or is_save or step == 1 or step % config.log_every == 0:
            progress.elapsed_seconds = throughput.elapsed_seconds
            values, findings = look_back(run, outcomes)
            has_spike = any(found.kind == "spike" for found in findings)
            if config.rollback_on_spike and has_spike and can_go_back(run):
                return "spiked"
            values |= {"learning_rate": learning_rate} | measure(run, throughput)
            if not is_stopped:  # who asked it to stop waits for the checkpoint
                values |= validate(run) if is_eval else {}
                values |= run.score(run.model, run.tokenizer) if is_score else {}
            if is_save:
                values["save_stall_seconds"] = run.writer.save(**run.snapshot())
            report(run, bar, values)
            outcomes.clear()
            throughput.restart()
        if is_stopped and not is_last:
            return "stopped"
    return "finished"


def train_step(run: TrainingRun, batches: Prefetcher, learning_rate: float) -> StepOutcome:
    """One optimizer update over `total_batch_tokens`; nothing here waits for the device."""
    config, accelerator, progress = run.config, run.accelerator, run.progress
    # Dropout, too, is a function of the step, so that a resumed run needs no saved random state.
    entropy = np.random.SeedSequence((config.seed, progress.data_step, accelerator.process_index))
    torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
    set_learning_rate(run.optimizer.optimizer, learning_rate / config.learning_rate)

    micro_losses = []
    for _ in range(run.loader.micro_steps):
        batch = {
            name: ids.to(accelerator.device, non_blocking=True)
            for name, ids in next(batches).items()
        }
        # `accumulate` synchronises gradients on the last micro-step only, and `backward` divides
        # by the number of micro-steps; all have equally many tokens, so the mean is exact.
        with accelerator.accumulate(run.wrapped_model):
            micro_loss = run.wrapped_model(**batch).loss
            micro_losses.append(micro_loss.detach())
            accelerator.backward(micro_loss)
            if accelerator.sync_gradients:
                grad_norm = clip_gradients(run.wrapped_model, accelerator, config.max_grad_norm)
                loss = accelerator.reduce(torch.stack(micro_losses).mean(), "mean")
                if skip_unless_finite(run.optimizer.optimizer, loss, grad_norm):
                    run.optimizer.step()
            run.optimizer.zero_grad()
    return StepOutcome(
        step=progress.step + 1,
        data_step=progress.data_step,
        loss=loss,
        grad_norm=grad_norm,
        micro_losses=torch.stack(micro_losses),
    )


def report(run: TrainingRun, bar: tqdm, values: dict) -> None:
    """Sends the values to the trackers and shows them as a line."""
    step = run.progress.step
    run.accelerator.log(values, step=step)
    if not run.accelerator.is_main_process:
        return
    shown = [f"{name} {value:.4g}" for name, value in values.items() if name not in UNSHOWN]
    line = f"step {step}: {', '.join(shown)}"
    if bar.disable:
        print(line, flush=True)
    else:
        bar.write(line)
        bar.set_postfix(loss=f"{values['loss']:.4g}")
    if "sample" in values:
        bar.write(f"step {step}: eval_loss {values['eval_loss']:.4f}, sample:")
        bar.write(textwrap.indent(values["sample"], "    "))


def learning_rate_of(config: TrainConfig, step: int) -> float:
    """The rate for a step, of the group with the peak `learning_rate`."""
    return learning_rate_at(
        step,
        schedule=config.schedule,
        peak=config.learning_rate,
        floor=config.min_learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=config.decay_steps,
        max_steps=config.max_steps,
    )


def is_due(every: int, step: int, is_last: bool) -> bool:
    """Whether something that happens every so many steps, and at the end, happens now."""
    return every > 0 and (is_last or step % every == 0)


if __name__ == "__main__":
    main(CONFIG)
