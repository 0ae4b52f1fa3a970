"""Pre-trains a GPT-2: `accelerate launch train_accelerate.py recipes/quickstart.yaml`.

The same script runs on one CPU core, one GPU or many nodes; only the Accelerate configuration
differs. Without dropout, losses do not depend on the number of processes. A run can be stopped at
any moment and continued with `--resume auto`.
"""

import contextlib
import dataclasses
import math
import os
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from modeling_gpt2scratch import GPT2ScratchConfig, GPT2ScratchForCausalLM, checkpointing
from modeling_gpt2scratch.checkpoint_writer import CheckpointWriter
from modeling_gpt2scratch.checkpointing import CheckpointError
from modeling_gpt2scratch.command_line import parse_config
from modeling_gpt2scratch.metrics import METRICS_NAME, JsonlTracker, Throughput
from modeling_gpt2scratch.optimization import adamw, learning_rate_at, set_learning_rate
from modeling_gpt2scratch.prefetcher import Prefetcher, StreamError
from modeling_gpt2scratch.processes import (
    LaunchError,
    StopSignal,
    closing,
    describe_environment,
    make_accelerator,
    on_all_processes,
    on_main_process,
    require_agreement,
)
from modeling_gpt2scratch.run_directory import find_resume_point, make_output_dir
from modeling_gpt2scratch.shard_loader import ShardLoader, TokenWindows
from modeling_gpt2scratch.token_shards import ShardError
from modeling_gpt2scratch.tokenization import TokenizerError
from modeling_gpt2scratch.train_config import TrainConfig
from modeling_gpt2scratch.training_data import TrainingData
from modeling_gpt2scratch.validation import sample_text, validation_loss


class DivergenceError(RuntimeError):
    """A loss or gradient that is no number any more."""


# What the user can mend, and therefore sees as one line.
EXPECTED_ERRORS = (
    *(LaunchError, ShardError, TokenizerError, CheckpointError, DivergenceError),
    OSError,
)


def main() -> None:
    """Parses, trains, and turns what is wrong with the input into one line and an exit code."""
    config = parse_config(TrainConfig, description=__doc__)
    transformers_logging.disable_progress_bar()  # one for each checkpoint file is too many
    # torch then takes its memory in huge pages; small ones cost CPU runs a third of their time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        train(config)
    except EXPECTED_ERRORS as error:
        # One line, not one per process, unless the others know nothing of it.
        if os.environ.get("RANK", "0") == "0" or isinstance(error, StreamError):
            print(f"train_accelerate.py: error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, LaunchError) else 1)


def train(config: TrainConfig) -> None:
    """Finds the point to start from and the other processes, and trains."""
    data = TrainingData(config)
    checkpoint = find_resume_point(config)
    start_step = 0
    if checkpoint:
        identity = data.identity() | config.identity()
        start_step = checkpointing.load_state(checkpoint, expected=identity)["step"]
    if start_step > config.max_steps:
        raise LaunchError(
            f"expected --max_steps of at least {start_step}, where {checkpoint} is, "
            f"found {config.max_steps}"
        )
    metrics = JsonlTracker(Path(config.output_dir) / METRICS_NAME, resume_step=start_step)
    accelerator = make_accelerator(
        mixed_precision=config.mixed_precision,
        trackers=[metrics, *config.report_to],
        project_dir=config.output_dir,
    )
    with contextlib.closing(data), closing(accelerator):
        train_from(checkpoint, start_step, config, data, accelerator)


def train_from(
    checkpoint: Path | None,
    start_step: int,
    config: TrainConfig,
    data: TrainingData,
    accelerator: Accelerator,
) -> None:
    """Wires data, model and optimizer together, makes the steps that are left, and saves."""
    require_agreement(data.identity(), "data")
    loader, validation = on_all_processes(
        data.open, rank=accelerator.process_index, world_size=accelerator.num_processes
    )
    accelerator.gradient_accumulation_steps = loader.micro_steps

    torch.manual_seed(config.seed)  # the same weights on every rank
    model, tokenizer = make_model(config, data)
    if checkpoint:
        checkpointing.load_weights(checkpoint, model)
    if config.compile == "model":
        model.compile()  # in place: the parameters keep their names
    optimizer = adamw(model, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    wrapped_model, wrapped_optimizer = accelerator.prepare(model, optimizer)
    if checkpoint:
        checkpointing.load_optimizer(checkpoint, model, optimizer)

    writer = CheckpointWriter(
        Path(config.output_dir),
        keep_checkpoints=config.keep_checkpoints,
        keep_every=config.keep_every,
        in_background=config.save_in_background,
    )
    with (
        contextlib.closing(writer),
        Prefetcher(loader, start_step=start_step, device=accelerator.device) as batches,
    ):
        run = Run(
            config=config,
            accelerator=accelerator,
            model=model,
            wrapped_model=wrapped_model,
            optimizer=wrapped_optimizer,
            tokenizer=tokenizer,
            data=data,
            loader=loader,
            batches=batches,
            validation=validation,
            writer=writer,
        )
        environment = describe_environment(accelerator)
        on_main_process(make_output_dir, config, checkpoint, environment, data.manifest_files)
        accelerator.init_trackers(
            "gpt2scratch",
            config=dataclasses.asdict(config),
            init_kwargs={"wandb": {"name": Path(config.output_dir).name, "dir": config.output_dir}},
        )
        print_banner(run, start_step=start_step)
        n_done = run_steps(run, start_step=start_step)
        writer.wait()
        if n_done == config.max_steps:
            writer.save_model(model, tokenizer)
    if n_done == config.max_steps:
        accelerator.print(f"finished: model and tokenizer are in {config.output_dir}")
    else:
        accelerator.print(f"stopped after step {n_done}; continue with --resume auto")


@dataclass(frozen=True)
class Run:
    """What the loop works with."""

    config: TrainConfig
    accelerator: Accelerator
    model: GPT2ScratchForCausalLM  # never wrapped: for saving, validation and samples
    wrapped_model: nn.Module  # the same parameters behind DDP
    optimizer: AcceleratedOptimizer
    tokenizer: PreTrainedTokenizerBase
    data: TrainingData
    loader: ShardLoader
    batches: Prefetcher  # from the loader
    validation: dict[str, tuple[TokenWindows, float]]  # windows and weight by source
    writer: CheckpointWriter


def run_steps(run: Run, *, start_step: int) -> int:
    """Makes the optimizer steps from `start_step` on.

    Returns:
        Steps of the run that are done: `max_steps`, or fewer if a signal stopped it.
    """
    config, accelerator = run.config, run.accelerator
    stop_signal = StopSignal()
    throughput = Throughput()
    n_done = start_step
    progress = tqdm(
        range(start_step, config.max_steps),
        desc="training",
        initial=start_step,
        total=config.max_steps,
        disable=None if accelerator.is_main_process else True,  # None: only on a terminal
    )
    for step in progress:
        learning_rate = learning_rate_at(
            step,
            peak=config.learning_rate,
            floor=config.min_learning_rate,
            warmup_steps=config.warmup_steps,
            max_steps=config.max_steps,
        )
        waited_before = run.batches.waited_seconds
        loss, grad_norm = train_step(run, step, learning_rate)
        waited_seconds = run.batches.waited_seconds - waited_before
        throughput.count(config.total_batch_tokens, waited_seconds)
        if stop_signal.received:
            accelerator.set_trigger()
        is_stopped = accelerator.check_trigger()  # on every rank, if it is on any

        n_done = step + 1
        is_last = n_done == config.max_steps
        is_eval = bool(run.validation) and is_due(config.eval_every, n_done, is_last)
        is_save = is_last or is_stopped or is_due(config.save_every, n_done, is_last)
        if is_eval or is_save or n_done == 1 or n_done % config.log_every == 0:
            data_wait = torch.tensor(throughput.data_wait, device=accelerator.device)
            of_all_ranks = accelerator.gather(torch.stack([loss, data_wait])[None])  # (ranks, 2)
            values = {
                "loss": of_all_ranks[:, 0].mean().item(),
                "learning_rate": learning_rate,
                "grad_norm": float(grad_norm),
                "tokens_per_second": throughput.tokens_per_second,
                "data_wait": of_all_ranks[:, 1].max().item(),  # all wait for the slowest
            }
            refuse_divergence(config, n_done, values)
            if is_eval and not is_stopped:  # who asked it to stop waits for the checkpoint
                values |= validate(run)
            report(run, progress, n_done, values)
            if is_save:
                save_checkpoint(run, n_done)
            throughput.restart()
        if is_stopped:
            break
    return n_done


def train_step(run: Run, step: int, learning_rate: float) -> tuple[Tensor, Tensor]:
    """One optimizer update over `total_batch_tokens`.

    Returns:
        This rank's mean loss in nats per token, and the global norm of the unclipped gradient.
    """
    config, accelerator = run.config, run.accelerator
    # Dropout, too, is a function of the step, so that a resumed run needs no saved random state.
    entropy = np.random.SeedSequence((config.seed, step, accelerator.process_index))
    torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
    set_learning_rate(run.optimizer, learning_rate)

    loss = torch.zeros((), device=accelerator.device)
    for _ in range(run.loader.micro_steps):
        batch = {
            name: ids.to(accelerator.device, non_blocking=True)
            for name, ids in next(run.batches).items()
        }
        # `accumulate` synchronises gradients on the last micro-step only, and `backward` divides
        # by the number of micro-steps; all have equally many tokens, so the mean is exact.
        with accelerator.accumulate(run.wrapped_model):
            micro_loss = run.wrapped_model(**batch).loss
            accelerator.backward(micro_loss)
            if accelerator.sync_gradients:
                grad_norm = accelerator.clip_grad_norm_(
                    run.wrapped_model.parameters(), config.max_grad_norm
                )
            run.optimizer.step()
            run.optimizer.zero_grad()
        loss += micro_loss.detach() / run.loader.micro_steps
    return loss, grad_norm


def validate(run: Run) -> dict:
    """Loss on the validation windows, of each source if there are several, and a sample.

    The sample is made on the main process only.
    """
    losses = {
        name: validation_loss(
            run.model,
            windows,
            run.accelerator,
            n_windows=run.data.n_validation_windows(windows),
            batch_size=run.config.micro_batch_size,
            document_start=run.data.document_start,
        )
        for name, (windows, _) in run.validation.items()
    }
    weights = {name: weight for name, (_, weight) in run.validation.items()}
    values = {"eval_loss": sum(weights[name] * loss for name, loss in losses.items())}
    if len(losses) > 1:
        values |= {f"eval_loss/{name}": loss for name, loss in losses.items()}
    if run.accelerator.is_main_process:
        values["sample"] = sample_text(run.model, run.tokenizer, seed=run.config.seed)
    return values


def report(run: Run, progress: tqdm, step: int, values: dict) -> None:
    """Sends the values to the trackers and shows them, as a line where there is no terminal."""
    run.accelerator.log(values, step=step)
    if not run.accelerator.is_main_process:
        return
    shown = {name: f"{value:.4g}" for name, value in values.items() if name != "sample"}
    progress.set_postfix(shown)
    if progress.disable:
        line = ", ".join(f"{name} {text}" for name, text in shown.items())
        print(f"step {step}: {line}", flush=True)
    if "sample" in values:
        progress.write(f"step {step}: eval_loss {values['eval_loss']:.4f}, sample:")
        progress.write(textwrap.indent(values["sample"], "    "))


def refuse_divergence(config: TrainConfig, step: int, values: dict) -> None:
    """Stops a run whose loss is lost, before it overwrites what is good."""
    for name in ("loss", "grad_norm"):
        if not math.isfinite(values[name]):
            raise DivergenceError(
                f"expected a finite {name} at step {step}, found {values[name]}; lower "
                f"--learning_rate or resume an earlier checkpoint in {config.output_dir}"
            )


def save_checkpoint(run: Run, step: int) -> None:
    """Writes `checkpoint-STEP`."""
    run.writer.save(
        model=run.model,
        tokenizer=run.tokenizer,
        optimizer=run.optimizer.optimizer,
        state=run.data.identity()
        | run.config.identity()
        | {"step": step, "config": dataclasses.asdict(run.config)},
    )


def is_due(every: int, step: int, is_last: bool) -> bool:
    """Whether something that happens every so many steps, and at the end, happens now."""
    return every > 0 and (is_last or step % every == 0)


def make_model(
    config: TrainConfig, data: TrainingData
) -> tuple[GPT2ScratchForCausalLM, PreTrainedTokenizerBase]:
    """A freshly initialised model for the tokenizer of the data, and that tokenizer."""
    tokenizer, manifest = data.tokenizer(), data.manifest
    tokenizer.model_max_length = config.n_positions
    model_config = GPT2ScratchConfig(
        vocab_size=manifest.vocab_size,
        n_positions=config.n_positions,
        n_embd=config.n_embd,
        n_layer=config.n_layer,
        n_head=config.n_head,
        resid_pdrop=config.dropout,
        embd_pdrop=config.dropout,
        attn_pdrop=config.dropout,
        bos_token_id=manifest.end_of_text_id,
        eos_token_id=manifest.end_of_text_id,
    )
    model = GPT2ScratchForCausalLM(model_config)
    model.generation_config.pad_token_id = manifest.end_of_text_id
    return model, tokenizer


def print_banner(run: Run, *, start_step: int) -> None:
    """What is about to run, to be read before leaving it alone."""
    config, accelerator, loader = run.config, run.accelerator, run.loader
    n_parameters = run.model.num_parameters()
    n_embedding = n_parameters - run.model.num_parameters(exclude_embeddings=True)
    rows = {
        "processes": f"{accelerator.num_processes} ({accelerator.distributed_type.value})",
        "device": f"{accelerator.device}, precision {accelerator.mixed_precision}",
        "parameters": f"{n_parameters:,} ({n_embedding:,} in embeddings)",
        "tokens per step": f"{config.total_batch_tokens:,} = {config.sequence_length} per row x "
        f"{config.micro_batch_size} rows x {loader.micro_steps} micro-steps x "
        f"{accelerator.num_processes} processes",
        "steps": f"{start_step:,} to {config.max_steps:,}",
        "data": "; ".join(
            f"{epochs:.2f} epochs of {source.n_tokens:,} tokens in {source.name}"
            for source, epochs in zip(loader.sources, loader.epochs(config.max_steps), strict=True)
        ),
        "output": config.output_dir,
    }
    accelerator.print(tabulate(rows.items(), tablefmt="plain"))


if __name__ == "__main__":
    main()
