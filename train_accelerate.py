"""Pre-trains a GPT-2: `accelerate launch train_accelerate.py recipes/quickstart.yaml`.

The same script runs on one CPU core, one GPU or many nodes; only the Accelerate configuration
differs. Without dropout, losses do not depend on the number of processes. A run can be stopped at
any moment and continued with `--resume auto`.
"""

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
from modeling_gpt2scratch.checkpointing import CheckpointError
from modeling_gpt2scratch.command_line import parse_config
from modeling_gpt2scratch.metrics import METRICS_NAME, JsonlTracker, Throughput
from modeling_gpt2scratch.optimization import adamw, learning_rate_at, set_learning_rate
from modeling_gpt2scratch.processes import (
    LaunchError,
    StopSignal,
    closing,
    describe_environment,
    make_accelerator,
    on_main_process,
)
from modeling_gpt2scratch.run_directory import find_resume_point, make_output_dir
from modeling_gpt2scratch.shard_loader import ShardLoader, TokenWindows
from modeling_gpt2scratch.token_shards import Manifest, ShardError
from modeling_gpt2scratch.tokenization import TokenizerError, fingerprint, load_tokenizer
from modeling_gpt2scratch.train_config import TrainConfig
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
        if os.environ.get("RANK", "0") == "0":  # one line, not one per process
            print(f"train_accelerate.py: error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, LaunchError) else 1)


def train(config: TrainConfig) -> None:
    """Finds the point to start from and the other processes, and trains."""
    manifest = Manifest.load(Path(config.data))
    checkpoint = find_resume_point(config)
    start_step = 0
    if checkpoint:
        state = checkpointing.load_state(checkpoint, expected=config.identity(manifest))
        start_step = state["step"]
    if start_step > config.max_steps:
        raise LaunchError(
            f"expected --max_steps of at least {start_step}, where {checkpoint} is, "
            f"found {config.max_steps}"
        )
    metrics = JsonlTracker(Path(config.output_dir) / METRICS_NAME, resume_step=start_step)
    accelerator = make_accelerator(
        mixed_precision=config.mixed_precision,
        trackers=[metrics] + [config.report_to] * (config.report_to != "none"),
        project_dir=config.output_dir,
    )
    with closing(accelerator):
        train_from(checkpoint, start_step, config, manifest, accelerator)


def train_from(
    checkpoint: Path | None,
    start_step: int,
    config: TrainConfig,
    manifest: Manifest,
    accelerator: Accelerator,
) -> None:
    """Wires data, model and optimizer together, makes the steps that are left, and saves."""
    loader, validation = open_data(config, manifest, accelerator)
    accelerator.gradient_accumulation_steps = loader.micro_steps

    torch.manual_seed(config.seed)  # the same weights on every rank
    model, tokenizer = make_model(config, manifest)
    if checkpoint:
        checkpointing.load_weights(checkpoint, model)
    if config.compile:
        model.compile()  # in place: the parameters keep their names
    optimizer = adamw(model, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    wrapped_model, wrapped_optimizer = accelerator.prepare(model, optimizer)
    if checkpoint:
        checkpointing.load_optimizer(checkpoint, model, optimizer)

    run = Run(
        config=config,
        accelerator=accelerator,
        model=model,
        wrapped_model=wrapped_model,
        optimizer=wrapped_optimizer,
        tokenizer=tokenizer,
        loader=loader,
        validation=validation,
        identity=config.identity(manifest),
    )
    on_main_process(make_output_dir, config, checkpoint, describe_environment(accelerator))
    accelerator.init_trackers(
        "gpt2scratch",
        config=dataclasses.asdict(config),
        init_kwargs={"wandb": {"name": Path(config.output_dir).name, "dir": config.output_dir}},
    )
    print_banner(run, start_step=start_step)
    n_done = run_steps(run, start_step=start_step)
    if n_done == config.max_steps:
        on_main_process(checkpointing.save_model, model, tokenizer, Path(config.output_dir))
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
    loader: ShardLoader
    validation: TokenWindows | None
    identity: dict  # what a resumed run must share


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
        loss, grad_norm = train_step(run, step, learning_rate)
        throughput.count(config.total_batch_tokens)
        if stop_signal.received:
            accelerator.set_trigger()
        is_stopped = accelerator.check_trigger()  # on every rank, if it is on any

        n_done = step + 1
        is_last = n_done == config.max_steps
        is_eval = run.validation is not None and is_due(config.eval_every, n_done, is_last)
        is_save = is_last or is_stopped or is_due(config.save_every, n_done, is_last)
        if is_eval or is_save or n_done == 1 or n_done % config.log_every == 0:
            values = {
                "loss": accelerator.reduce(loss, reduction="mean").item(),
                "learning_rate": learning_rate,
                "grad_norm": float(grad_norm),
                "tokens_per_second": throughput.tokens_per_second,
            }
            refuse_divergence(config, n_done, values)
            if is_eval and not is_stopped:  # who asked it to stop waits for the checkpoint
                values |= validate(run)
            report(run, progress, n_done, values)
            if is_save:
                on_main_process(save_checkpoint, run, n_done)
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
    for micro_step in range(run.loader.micro_steps):
        input_ids, targets = (
            tokens.to(accelerator.device, non_blocking=True)
            for tokens in run.loader.batch(step, micro_step)
        )
        # `accumulate` synchronises gradients on the last micro-step only, and `backward` divides
        # by the number of micro-steps; all have equally many tokens, so the mean is exact.
        with accelerator.accumulate(run.wrapped_model):
            micro_loss = run.wrapped_model(input_ids=input_ids, shift_labels=targets).loss
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
    """Loss on the validation windows and, on the main process, a sample."""
    loss = validation_loss(
        run.model,
        run.validation,
        run.accelerator,
        max_tokens=run.config.eval_tokens,
        batch_size=run.config.micro_batch_size,
    )
    if not run.accelerator.is_main_process:
        return {"eval_loss": loss}
    sample = sample_text(run.model, run.tokenizer, seed=run.config.seed)
    return {"eval_loss": loss, "sample": sample}


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
    checkpointing.save_checkpoint(
        Path(run.config.output_dir),
        model=run.model,
        tokenizer=run.tokenizer,
        optimizer=run.optimizer.optimizer,
        state=run.identity | {"step": step, "config": dataclasses.asdict(run.config)},
    )


def is_due(every: int, step: int, is_last: bool) -> bool:
    """Whether something that happens every so many steps, and at the end, happens now."""
    return every > 0 and (is_last or step % every == 0)


def open_data(
    config: TrainConfig, manifest: Manifest, accelerator: Accelerator
) -> tuple[ShardLoader, TokenWindows | None]:
    """This rank's training batches, and the validation windows if any were held out.

    Raises:
        LaunchError: if the processes cannot share `total_batch_tokens` evenly.
        ShardError: if the data must not be trained on.
    """
    world_size = accelerator.num_processes
    divisor = config.sequence_length * config.micro_batch_size * world_size
    if config.total_batch_tokens % divisor:
        nearest = max(1, round(config.total_batch_tokens / divisor)) * divisor
        raise LaunchError(
            f"expected --total_batch_tokens divisible by sequence_length x micro_batch_size x "
            f"processes = {config.sequence_length} x {config.micro_batch_size} x {world_size} = "
            f"{divisor}, found {config.total_batch_tokens}; the nearest is {nearest}"
        )
    train, validation = (
        TokenWindows(
            Path(config.data),
            split,
            sequence_length=config.sequence_length,
            rank=accelerator.process_index,
            world_size=world_size,
        )
        if split in manifest.splits
        else None
        for split in ("train", "val")
    )
    loader = ShardLoader(
        train,
        rows_per_step=config.total_batch_tokens // config.sequence_length,
        micro_batch_size=config.micro_batch_size,
        rank=accelerator.process_index,
        world_size=world_size,
        seed=config.seed,
    )
    return loader, validation


def make_model(
    config: TrainConfig, manifest: Manifest
) -> tuple[GPT2ScratchForCausalLM, PreTrainedTokenizerBase]:
    """A freshly initialised model for the tokenizer of the data, and that tokenizer."""
    tokenizer = load_tokenizer(str(Path(config.data).resolve()))
    if fingerprint(tokenizer) != manifest.tokenizer["fingerprint"]:
        raise ShardError(
            f"{config.data}: expected the tokenizer that made the shards, found another one's "
            f"files; prepare the data again"
        )
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
        "steps": f"{start_step:,} to {config.max_steps:,}, "
        f"{config.max_steps / loader.steps_per_epoch:.2f} epochs of "
        f"{loader.windows.n_tokens:,} tokens",
        "output": config.output_dir,
    }
    accelerator.print(tabulate(rows.items(), tablefmt="plain"))


if __name__ == "__main__":
    main()
