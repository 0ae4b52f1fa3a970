"""Training from its first step to the saved model: the algorithm, from top to bottom.

Without dropout, losses do not depend on the number of processes. A run can be stopped at any moment
and continued from its last checkpoint.
"""

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.nn.parallel import DistributedDataParallel as DDP
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from modeling_gpt2scratch.checkpoints.checkpoint import load_state
from modeling_gpt2scratch.common.console import activity, progress_bar
from modeling_gpt2scratch.common.interruptions import Stopped, StopRequest
from modeling_gpt2scratch.data.loading.prefetcher import Prefetcher
from modeling_gpt2scratch.distributed.accelerator import asks_for_fp8, ending, make_accelerator
from modeling_gpt2scratch.distributed.device import to_device
from modeling_gpt2scratch.distributed.processes import on_main_process, say
from modeling_gpt2scratch.hardware.devices import keep_freed_memory, require_fp8
from modeling_gpt2scratch.hardware.profiling import profiler
from modeling_gpt2scratch.optim.optimizer import set_learning_rate
from modeling_gpt2scratch.optim.schedules import learning_rate_at
from modeling_gpt2scratch.tracking.metrics import Throughput
from modeling_gpt2scratch.tracking.status import recorded

from . import preflight
from .banner import banner, surprises, surprises_of_load, surprises_of_resuming
from .configuration import TrainConfig
from .data import TrainingData
from .directory import find_resume_point
from .model import with_max_steps
from .run import TrainingRun, can_go_back, go_back, open_run, save_result
from .steps import StepOutcome, clip_gradients, judge_steps, measure, report, update_weights
from .validation import open_benchmarks, score, validate


def train(config: TrainConfig) -> str:
    """Makes the run that the arguments describe, or what is left of it.

    It can be called again, and from a notebook.

    Returns:
        "finished", or "stopped" if SIGTERM asked for it.

    Raises:
        KeyboardInterrupt: after Ctrl-C. Steps that had been made are then in a checkpoint.
        MendableError, OSError: what the user can mend, on every process alike.
    """
    transformers_logging.disable_progress_bar()  # one for each checkpoint file is too many
    # torch then takes its memory in huge pages; small ones slow CPU runs down.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if not torch.accelerator.is_available():
        keep_freed_memory()
    if asks_for_fp8(config.mixed_precision):
        require_fp8()
    with activity("opening the data"):
        data = TrainingData(config)
    config = with_max_steps(config, data.manifest)
    accelerator = make_accelerator(
        mixed_precision=config.mixed_precision,
        timeout_minutes=config.timeout_minutes,
    )
    with contextlib.closing(data), ending(accelerator):
        preflight.require_launch(config, accelerator)
        with activity("looking for a checkpoint"):
            checkpoint, state = find_resume_point(config), {}
        if checkpoint:
            identity = data.identity() | config.identity()
            state = load_state(checkpoint, expected=identity)
        return train_from(checkpoint, state, config, data, accelerator)


def train_from(
    checkpoint: Path | None,
    state: dict,
    config: TrainConfig,
    data: TrainingData,
    accelerator: Accelerator,
) -> str:
    """Makes the steps that are left after a checkpoint, and saves the model.

    Returns:
        "finished" or "stopped", as for `train`.
    """
    with activity("making the model"):
        benchmarks = open_benchmarks(config, accelerator, limit=config.eval_tasks_limit)
        run = open_run(config, data, accelerator, benchmarks, checkpoint=checkpoint, state=state)
    with contextlib.closing(run.lock), run.pusher:
        with (
            contextlib.closing(run.writer),
            recorded(
                Path(config.output_dir),
                lambda: run.progress.step,
                is_main=accelerator.is_main_process,
            ) as outcome,
            run.agreement.naming_the_stalled(),
        ):
            run_preflight(run, before=state.get("config", {}))
            on_main_process(run.lock.delete_replaced)
            with StopRequest() as request:
                with preflight.fitting_in_memory(run.loader.micro_batch_size):
                    end = make_steps(run, request)
                with activity("saving"):
                    run.writer.wait()
                    if end == "finished":
                        save_result(run)
                outcome.settle(end)  # while signals only ask
        is_sending = end == "finished" and config.push_every > 0
        # Who asked the run to stop meanwhile leaves the rest to the next process.
        if is_sending and not on_main_process(lambda: request.is_made):
            run.pusher.finish()
    step = run.progress.step
    place = f"stopped after step {step}" if step else "stopped before the first step"
    # On all alike, or those of another machine would wait for these.
    is_from_keyboard = any(gather_object([request.is_from_keyboard]))
    if is_from_keyboard and (end == "stopped" or is_sending):
        raise KeyboardInterrupt(place if end == "stopped" else "finished, but not all was sent")
    if end == "stopped":
        say(f"{place}; continue with --resume auto")
        if dist.is_torchelastic_launched():
            say("(the launcher calls every signal a failure; the checkpoint is complete)")
    return end


def run_preflight(run: TrainingRun, before: dict) -> None:
    """Says what is about to run, after a checkpoint of other arguments `before`, and tries it."""
    config, accelerator, progress = run.config, run.accelerator, run.progress
    notes = surprises_of_load()
    notes += surprises_of_resuming(config, accelerator, before, was_done=progress.was_done)
    notes += surprises(config, accelerator, run.model, has_validation=bool(run.validation))
    if config.preflight:
        with activity("trying everything once"):
            loss = preflight.try_one_batch(
                run.wrapped_model, run.loader, accelerator, step=progress.data_step
            )
            if progress.step == 0 and config.init_from is None:
                notes += preflight.surprises_of_loss(loss, run.model.config.vocab_size)
            if run.validation:
                validate(run, n_windows=accelerator.num_processes)
            if config.eval_tasks:
                few = open_benchmarks(config, accelerator, limit=accelerator.num_processes)
                score(run, few)  # says which benchmark cannot be scored
            started = time.perf_counter()
            every = {name: getattr(config, name) for name in ("save_every", "eval_every")}
            run.writer.rehearse(**run.checkpoint_contents(), last_step=config.max_steps, **every)
            notes += preflight.surprises_of_saving(time.perf_counter() - started)
    say(banner(run, notes))


def make_steps(run: TrainingRun, request: StopRequest) -> str:
    """Makes the optimizer steps that are left, going back after spikes if so asked.

    Returns:
        "finished", or "stopped" if that was requested.
    """
    config, accelerator, progress = run.config, run.accelerator, run.progress
    while True:
        first = progress.data_step
        steps = {"initial": progress.step, "total": config.max_steps}
        with (
            progress_bar(desc="training", **steps, is_shown=accelerator.is_main_process) as bar,
            Prefetcher(run.loader, start_step=first, device=accelerator.device) as batches,
            profiler(accelerator, Path(config.output_dir) if config.profile else None) as profile,
        ):
            end = run_steps(run, batches, request, profile, bar)
        if end != "spiked":
            return end
        go_back(run)


def run_steps(
    run: TrainingRun,
    batches: Prefetcher,
    request: StopRequest,
    profile: torch.profiler.profile | None,
    bar: tqdm,
) -> str:
    """Makes optimizer steps until there is a reason not to.

    Returns:
        "finished", "stopped", or "spiked" if the run has to go back.
    """
    config, progress = run.config, run.progress
    throughput, outcomes = Throughput(elapsed_seconds=progress.elapsed_seconds), []
    # A rollback raises left_out_steps, which this step's checkpoint does not have: save it again.
    saved_step = None if progress.rolled_back_to == progress.step else progress.step
    while not progress.is_done(config):
        waited_before = batches.waited_seconds
        is_owed = progress.is_owed
        due = due_after(run) if is_owed else Due()
        outcome = None if is_owed else train_step(run, batches, request)
        is_stopped = outcome is None and not is_owed
        if outcome is not None:
            outcomes.append(outcome)
            throughput.count(config.total_batch_tokens, batches.waited_seconds - waited_before)
            progress.step += 1
            bar.update()
            if profile:
                profile.step()
            is_stopped = is_asked_to_stop(run, request)
            due = due_after(run)
        if not (due.line or is_stopped or is_owed):
            continue
        values = steps_of_line(run, outcomes, throughput) if outcomes else {}
        if values is None:
            return "spiked"
        found = {}
        if not is_stopped:
            found, is_stopped = validate_and_score(run, due, request, bar)
        values |= found
        is_best = "eval_loss" in values and progress.best.step == progress.step
        is_end = progress.is_out_of_patience(config.patience)
        progress.is_owed = is_stopped and (due.validation or due.scores or is_end)
        is_given_up = is_end and not is_stopped
        is_save = due.save or (is_best and config.keep_best) or is_given_up
        if is_save or (is_stopped and saved_step != progress.step):
            bar.set_description("saving")
            values["save_stall_seconds"] = save(run, is_sent=due.push or is_given_up)
            saved_step = progress.step
        if outcomes or found:
            report(run, bar, values)
        run.pusher.logged(progress.step)
        outcomes.clear()
        throughput.restart()
        bar.set_description("training")
        if is_stopped and not progress.is_done(config):
            return "stopped"
    return "finished"


def steps_of_line(
    run: TrainingRun, outcomes: list[StepOutcome], throughput: Throughput
) -> dict | None:
    """What a line says of the steps since the last one; None if a spike among them is undone."""
    config, progress = run.config, run.progress
    run.agreement.wait()
    values, findings = judge_steps(run, outcomes)  # which waits for the device
    progress.elapsed_seconds = throughput.elapsed_seconds
    has_spike = any(found.kind == "spike" for found in findings)
    if config.rollback_on_spike and has_spike and can_go_back(run):
        return None
    # Of the last group, whose peak is `learning_rate` itself.
    values["learning_rate"] = run.optimizer.optimizer.param_groups[-1]["lr"]
    return values | measure(run, throughput)


def save(run: TrainingRun, *, is_sent: bool) -> float:
    """Begins to write a checkpoint, for the Hub as well if the run sends any there.

    Returns:
        Seconds that the training stood still.
    """
    best = run.progress.best.step
    on_written = run.pusher.hold if is_sent and run.config.push_every else None
    return run.writer.save(**run.checkpoint_contents(), best_step=best, on_written=on_written)


def is_asked_to_stop(run: TrainingRun, request: StopRequest) -> bool:
    """Whether any process was asked to.

    Raises:
        OSError: on all processes alike, if a checkpoint could not be written, or the directory of
            the run is gone.
    """
    is_stopped, has_failed_checkpoint, is_directory_gone = run.agreement.exchange(
        [request.is_made, run.writer.problem is not None, run.lock.is_lost]
    )
    if is_directory_gone:
        raise run.lock.error_if_lost()
    if has_failed_checkpoint:
        run.writer.wait()  # raises
    return is_stopped


def train_step(run: TrainingRun, batches: Prefetcher, request: StopRequest) -> StepOutcome | None:
    """One optimizer update over `total_batch_tokens`; only masks of documents wait for the device.

    Returns:
        None if a process that is alone was asked to stop; the weights are then those before.
    """
    config, accelerator, progress = run.config, run.accelerator, run.progress
    if config.document_mask:
        run.agreement.wait()  # for lost processes: transformers' mask will wait for the device
    # Dropout, too, is a function of the step, so that a resumed run needs no saved random state.
    entropy = np.random.SeedSequence((config.seed, progress.data_step, accelerator.process_index))
    torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
    learning_rate = learning_rate_of(config, progress.step)
    set_learning_rate(run.optimizer.optimizer, learning_rate / config.learning_rate)

    micro_losses = []
    is_alone = accelerator.num_processes == 1
    for _ in range(run.loader.micro_steps):
        try:
            with request.raising() if is_alone else contextlib.nullcontext():
                batch = to_device(next(batches), accelerator.device)  # it may be long in coming
        except Stopped:
            return None
        # `accumulate` synchronises replicas on the last micro-step only, and `backward` divides
        # by the number of micro-steps; all have equally many tokens, so the mean is exact.
        with accelerator.accumulate(run.wrapped_model):
            micro_loss = run.wrapped_model(**batch).loss
            micro_losses.append(micro_loss.detach())
            accelerator.backward(micro_loss)
            if accelerator.sync_gradients:
                grad_norm = clip_gradients(run.wrapped_model, accelerator, config.max_grad_norm)
                loss = accelerator.reduce(torch.stack(micro_losses).mean(), "mean")
                loss_scale = update_weights(run.optimizer, accelerator, loss, grad_norm)
            # A gradient of DDP's is a view of its bucket; None would end that, for a second copy.
            run.optimizer.zero_grad(set_to_none=not isinstance(run.wrapped_model, DDP))
    return StepOutcome(
        step=progress.step + 1,
        data_step=progress.data_step,
        loss=loss,
        grad_norm=grad_norm,
        micro_losses=torch.stack(micro_losses),
        loss_scale=loss_scale,
    )


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


@dataclass(frozen=True)
class Due:
    """What happens after a step; by itself nothing."""

    line: bool = False  # in the log
    validation: bool = False
    scores: bool = False  # on benchmarks
    save: bool = False
    push: bool = False  # of what is saved, to the Hub


def due_after(run: TrainingRun) -> Due:
    """What happens after the step just made if nothing special does."""
    config, step = run.config, run.progress.step
    is_last = step == config.max_steps

    def is_due(every: int) -> bool:
        return every > 0 and (is_last or step % every == 0)

    validation = bool(run.validation) and is_due(config.eval_every)
    scores = bool(config.eval_tasks) and (is_last or is_due(config.eval_tasks_every))
    save = is_last or is_due(config.save_every)
    line = validation or scores or save or step == 1 or step % config.log_every == 0
    push = is_due(config.push_every)
    return Due(line=line, validation=validation, scores=scores, save=save, push=push)


def validate_and_score(
    run: TrainingRun, due: Due, request: StopRequest, bar: tqdm
) -> tuple[dict[str, Any], bool]:
    """Validation loss, sample and scores as far as they are due, and whether a stop left the rest.

    Scores are also due where validations end the run. Who asks a run to stop waits for its
    checkpoint.
    """
    config, progress = run.config, run.progress

    def leave_if_asked() -> None:
        if is_asked_to_stop(run, request):
            raise Stopped

    is_alone = run.accelerator.num_processes == 1
    can_be_left = request.raising if is_alone else contextlib.nullcontext
    values = {}
    try:
        if due.validation:
            bar.set_description("validating")
            with can_be_left():
                values |= validate(run, before_batch=leave_if_asked)
            progress.best.add(progress.step, values["eval_loss"])
        if due.scores or (config.eval_tasks and progress.is_out_of_patience(config.patience)):
            bar.set_description("scoring benchmarks")
            with can_be_left():
                values |= score(run, run.benchmarks, before_batches=leave_if_asked)
    except Stopped:
        return values, True
    return values, False
