"""The parts of a training run, wired together."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import nn
from transformers import PreTrainedTokenizerBase

from modeling_gpt2scratch.checkpoints.checkpoint import (
    find_checkpoint,
    load_optimizer,
    load_state,
    load_weights,
    verify_checkpoint,
)
from modeling_gpt2scratch.checkpoints.pusher import RevisionPusher
from modeling_gpt2scratch.checkpoints.retention import checkpoints_by_step
from modeling_gpt2scratch.checkpoints.revisions import prepare_repository
from modeling_gpt2scratch.checkpoints.writer import CheckpointWriter
from modeling_gpt2scratch.data.loading.loader import ShardLoader, TokenWindows
from modeling_gpt2scratch.distributed.accelerator import prepare_accelerator
from modeling_gpt2scratch.distributed.agreement import Agreement
from modeling_gpt2scratch.distributed.processes import (
    LaunchError,
    on_all_processes,
    on_main_process,
    require_agreement,
    require_expected,
    say,
)
from modeling_gpt2scratch.distributed.zero_state import prepare_for_training
from modeling_gpt2scratch.evaluation.tasks.task import Task
from modeling_gpt2scratch.hardware.compilation import checkpoint_activations, compile_model
from modeling_gpt2scratch.hardware.devices import device_peak_flops, use_tf32
from modeling_gpt2scratch.hardware.micro_batch import find_micro_batch_size
from modeling_gpt2scratch.modeling_gpt2scratch import GPT2ScratchForCausalLM
from modeling_gpt2scratch.optim.optimizer import make_optimizer
from modeling_gpt2scratch.tracking.metrics import EVENTS_NAME, METRICS_NAME, EventLog, JsonlTracker
from modeling_gpt2scratch.tracking.status import recorded
from modeling_gpt2scratch.tracking.trackers import start_trackers

from .checks import is_own
from .configuration import AUTO, TrainConfig
from .data import TrainingData
from .directory import (
    OutputLock,
    best_checkpoint,
    leave_later_checkpoints,
    prepare_output_dir,
    recorded_arguments,
    taken,
)
from .model import make_model, require_memory, sum_of_weights
from .progress import TrainingProgress

# Held-out windows and their weight, by source.
Validation = dict[str, tuple[TokenWindows, float]]


@dataclass(frozen=True)
class TrainingRun:
    """What the loop works with."""

    config: TrainConfig
    arguments: dict  # as they are recorded
    accelerator: Accelerator
    agreement: Agreement
    progress: TrainingProgress  # changes as the run goes on
    model: GPT2ScratchForCausalLM  # never behind DDP: for saving, validation and samples
    wrapped_model: nn.Module  # the same parameters, as the loop calls them
    optimizer: AcceleratedOptimizer
    tokenizer: PreTrainedTokenizerBase
    data: TrainingData
    loader: ShardLoader
    validation: Validation
    benchmarks: dict[str, Task]  # of `--eval_tasks`, by name
    lock: OutputLock
    writer: CheckpointWriter
    pusher: RevisionPusher
    metrics: JsonlTracker
    events: EventLog
    tracker_ids: dict[str, str]  # under which trackers know the run
    compiled: str  # in words
    peak_flops: float | None  # of one device, in FLOP/s; None if unknown

    @property
    def is_sharded(self) -> bool:
        """Whether the processes share the model's parameters, and must call it together."""
        return self.accelerator.distributed_type == DistributedType.FSDP

    def checkpoint_contents(self) -> dict:
        """What a checkpoint holds, as arguments of the writer."""
        state = self.data.identity() | self.config.identity() | self.progress.to_state()
        state |= {"trackers": self.tracker_ids, "config": self.arguments}
        state["validation"] = self.data.validation_digest()
        if self.accelerator.scaler is not None:
            state["loss_scale"] = self.accelerator.scaler.state_dict()  # numbers
        return {
            "model": self.model,
            "tokenizer": self.tokenizer,
            "optimizer": self.optimizer.optimizer,
            "state": state,
        }


def open_run(
    config: TrainConfig,
    data: TrainingData,
    accelerator: Accelerator,
    benchmarks: dict[str, Task],
    *,
    checkpoint: Path | None,
    state: dict,
) -> TrainingRun:
    """Everything at the point from which training goes on; makes the run's directory.

    Args:
        benchmarks: of `--eval_tasks`, by name.
        checkpoint: to continue from, None for a run from scratch.
        state: of that checkpoint, else empty.

    Raises:
        ValueError, OSError: on every process alike, if the parts do not fit together.
    """
    require_agreement((data.identity(), state), "data and checkpoint")
    _require_validation(config, data)
    progress = _progress(config, data, checkpoint, state)
    model, tokenizer, loader, validation = _model_and_data(config, data, accelerator, checkpoint)
    on_main_process(_prepare_hub, config, checkpoint, state)  # when nothing else is refused
    if checkpoint:
        load_weights(checkpoint, model)
    wrapped_model, optimizer, compiled = _prepare(config, accelerator, model, loader)
    if checkpoint:
        load_optimizer(checkpoint, model, optimizer.optimizer)
    _load_loss_scale(accelerator, state)
    arguments = recorded_arguments(config, accelerator, compiled, checkpoint, state, progress)
    return TrainingRun(
        config=config,
        arguments=arguments,
        accelerator=accelerator,
        agreement=Agreement(timeout_minutes=config.timeout_minutes),
        progress=progress,
        model=model,
        wrapped_model=wrapped_model,
        optimizer=optimizer,
        tokenizer=tokenizer,
        data=data,
        loader=loader,
        validation=validation,
        benchmarks=benchmarks,
        compiled=compiled,
        peak_flops=device_peak_flops(
            accelerator.device,
            mixed_precision=accelerator.mixed_precision,
            peak_tflops=config.peak_tflops,
        ),
        **_open_directory(config, data, accelerator, checkpoint, state, progress, arguments),
    )


def can_go_back(run: TrainingRun) -> bool:
    """Whether there is a checkpoint to return to; says so if there is none."""
    run.writer.wait()
    checkpoint = on_main_process(find_checkpoint, Path(run.config.output_dir))
    if checkpoint is None:
        say(f"no checkpoint to go back to from step {run.progress.step}; going on")
    return checkpoint is not None


def go_back(run: TrainingRun) -> None:
    """Returns to the last checkpoint, and leaves out the data since then.

    Raises:
        DivergenceError: if it has been returned to too often.
    """
    progress = run.progress
    checkpoint = on_main_process(find_checkpoint, Path(run.config.output_dir))
    left_from = progress.step
    state = load_state(checkpoint, expected={})
    load_weights(checkpoint, run.model)
    load_optimizer(checkpoint, run.model, run.optimizer.optimizer)
    _load_loss_scale(run.accelerator, state)
    progress.go_back(state)
    run.metrics.rewind(progress.step)
    run.events.write("rollback", step=left_from, to_step=progress.step)
    say(f"went back from step {left_from} to {checkpoint.name}, leaving out the data between")


def save_result(run: TrainingRun) -> None:
    """Saves the model and its tokenizer in the run's directory, and says where they are from.

    Raises:
        CheckpointError, OSError: on every process alike.
    """
    on_main_process(run.lock.require)
    output_dir, best, source = Path(run.config.output_dir), run.progress.best, ""
    if best.step is not None and (run.config.keep_best or run.config.patience):
        found = f"the lowest eval_loss was {best.loss:.4f}, after step {best.step}"
        if run.progress.is_out_of_patience(run.config.patience):
            found += f"; {best.n_since} validations since then found no lower one"
        say(found)
    if run.config.final == "best":
        checkpoint = on_main_process(best_checkpoint, output_dir, best.step)
        verify_checkpoint(checkpoint)
        load_weights(checkpoint, run.model)
        source = f", from {checkpoint.name}"
    run.writer.save_model(run.model, run.tokenizer)
    say(f"finished: model and tokenizer are in {output_dir}{source}")


def _load_loss_scale(accelerator: Accelerator, state: dict) -> None:
    """Goes on with the loss scale of a checkpoint, if that run had one and this one needs it."""
    if accelerator.scaler is not None and "loss_scale" in state:
        accelerator.scaler.load_state_dict(state["loss_scale"])


def _progress(
    config: TrainConfig, data: TrainingData, checkpoint: Path | None, state: dict
) -> TrainingProgress:
    """Where the run is; refuses one that is further than it shall go."""
    progress = TrainingProgress.load(state, config, data.validation_digest(), place=checkpoint)
    if progress.step > config.max_steps:
        raise LaunchError(
            f"expected --max_steps of at least {progress.step}, the step of {checkpoint}, "
            f"found {config.max_steps}"
        )
    output_dir = Path(config.output_dir)
    if config.keep_best:  # which the run may not have done until now, or elsewhere
        kept = on_main_process(checkpoints_by_step, output_dir)
        if progress.best.step not in kept or not is_own(checkpoint, output_dir):
            progress.forget_best(f"no checkpoint of that step is in {output_dir}")
    if config.final == "best" and progress.was_done:  # the result there stays as it is
        on_main_process(best_checkpoint, output_dir, progress.best.step)
    return progress


def _require_validation(config: TrainConfig, data: TrainingData) -> None:
    """Refuses data without a validation split where its losses decide something."""
    if (config.keep_best or config.patience) and not data.validation():
        raise LaunchError(
            "expected data with a validation split for --keep_best, --final best or --patience, "
            "found none; prepare them with --val_fraction above 0, or add --final last"
        )


def _prepare_hub(config: TrainConfig, checkpoint: Path | None, state: dict) -> None:
    """Refuses a repository that checkpoints cannot go to, or another run's."""
    if config.push_to_hub is not None:
        is_same = state.get("config", {}).get("push_to_hub") == config.push_to_hub
        is_ours = is_same and is_own(checkpoint, Path(config.output_dir))
        prepare_repository(config.push_to_hub, private=config.private, is_own=is_ours)


def _model_and_data(
    config: TrainConfig, data: TrainingData, accelerator: Accelerator, checkpoint: Path | None
) -> tuple[GPT2ScratchForCausalLM, PreTrainedTokenizerBase, ShardLoader, Validation]:
    """The model, its tokenizer, and this process's share of the data.

    Data are opened first, because they are refused sooner than a large model is made; but how many
    rows fit only the model can tell.
    """
    rank, world_size = accelerator.process_index, accelerator.num_processes
    rows_per_process = data.rows_per_process(world_size)
    open_data = partial(on_all_processes, data.open, rank=rank, world_size=world_size)
    micro_batch_size, opened = config.micro_batch_size, None
    if micro_batch_size != AUTO:
        opened = open_data(micro_batch_size=micro_batch_size)
    is_sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    on_all_processes(
        require_memory, config, data.manifest, device=accelerator.device, is_sharded=is_sharded
    )
    torch.manual_seed(config.seed)  # the same weights on every rank
    tokenizer = data.tokenizer()
    vocabulary = {"manifest": data.manifest, "tokenizer": tokenizer}
    model = on_all_processes(make_model, config, checkpoint, **vocabulary)
    if config.init_from:
        require_agreement(sum_of_weights(model), "weights of --init_from")
    require_expected("parameters", model.num_parameters(), config.expect_parameters)
    if config.activation_checkpointing:
        checkpoint_activations(model)
    if opened is None:
        micro_batch_size = find_micro_batch_size(
            model,
            accelerator,
            rows_per_rank=rows_per_process,
            sequence_length=config.sequence_length,
        )
        opened = open_data(micro_batch_size=micro_batch_size)
    return model, tokenizer, *opened


def _prepare(
    config: TrainConfig,
    accelerator: Accelerator,
    model: GPT2ScratchForCausalLM,
    loader: ShardLoader,
) -> tuple[nn.Module, AcceleratedOptimizer, str]:
    """The model as the loop calls it, its optimizer, and in words how it was compiled."""
    prepare_accelerator(
        accelerator,
        micro_batch_size=loader.micro_batch_size,
        micro_steps=loader.micro_steps,
        max_grad_norm=config.max_grad_norm,
        optimizer=config.optimizer,
    )
    use_tf32(config.tf32)
    compiled = on_all_processes(
        compile_model, model, config.compile, device=accelerator.device, strict=config.strict
    )
    optimizer = make_optimizer(
        model,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        name=config.optimizer,
        muon_learning_rate=config.muon_learning_rate,
        device=accelerator.device,
    )
    return *prepare_for_training(accelerator, model, optimizer), compiled


def _open_directory(
    config: TrainConfig,
    data: TrainingData,
    accelerator: Accelerator,
    checkpoint: Path | None,
    state: dict,
    progress: TrainingProgress,
    arguments: dict,
) -> dict[str, Any]:
    """What the run writes to its directory, and the lock on it, by their names in `TrainingRun`."""
    output_dir, step = Path(config.output_dir), progress.step
    is_main = accelerator.is_main_process
    with taken(config, checkpoint) as lock, recorded(output_dir, lambda: step, is_main=is_main):
        on_main_process(
            prepare_output_dir,
            *(config, checkpoint, accelerator, data.manifest_files),
            arguments=arguments,
            is_done=progress.is_done(config),
            was_done=progress.was_done,
        )
        on_main_process(leave_later_checkpoints, checkpoint, output_dir)
        writer = CheckpointWriter(
            output_dir,
            keep_checkpoints=config.keep_checkpoints,
            keep_every=config.keep_every,
            keep_best=config.keep_best,
            in_background=config.save_in_background,
            timeout_minutes=config.timeout_minutes,
        )
        metrics = JsonlTracker(output_dir / METRICS_NAME, resume_step=step)
        is_continued = is_own(checkpoint, output_dir)  # else the trackers begin a run of its own
        tracker_ids = start_trackers(
            accelerator,
            config.report_to,
            project=config.project,
            output_dir=config.output_dir,
            arguments=arguments,
            strict=config.strict,
            jsonl=metrics,
            saved=state.get("trackers", {}) if is_continued else {},
        )
        events = EventLog(output_dir / EVENTS_NAME)
        if is_continued and accelerator.is_main_process and metrics.last_step < step:
            say(
                f"{metrics.tracker}: expected a line for step {step}, where {checkpoint.name} is, "
                f"found the last one for step {metrics.last_step}; the lines between are lost"
            )
            events.write("gap", step=step, from_step=metrics.last_step)
        pusher = RevisionPusher(
            output_dir,
            config.push_to_hub,
            private=config.private,
            metrics=metrics.tracker,
            step=step,
            record=events.write,
        )
        named = {"metrics": metrics, "events": events, "tracker_ids": tracker_ids}
        return {"lock": lock, "writer": writer, "pusher": pusher} | named
