"""What a run looks at between its steps: the loss on held-out text, a sample, and benchmarks."""

from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_gpt2scratch.common.sampling import SAMPLING
from modeling_gpt2scratch.data.loading.loader import TokenWindows, model_inputs
from modeling_gpt2scratch.evaluation.in_training import load_benchmarks, score_benchmarks
from modeling_gpt2scratch.evaluation.tasks.task import Task
from modeling_gpt2scratch.loss_gpt2scratch import IGNORED

from .configuration import TrainConfig
from .run import TrainingRun

SAMPLE_TOKENS = 64
BENCHMARK_TOKENS = 8192  # padded tokens of one forward pass of a benchmark


def open_benchmarks(
    config: TrainConfig, accelerator: Accelerator, *, limit: int | None
) -> dict[str, Task]:
    """The benchmarks of `--eval_tasks` with their data, by name.

    Args:
        limit: examples of each, None for all.

    Raises:
        BenchmarkError: on every process alike, if data of a benchmark cannot be read.
    """
    return load_benchmarks(
        config.eval_tasks,
        sources={name: getattr(config, f"{name}_data") for name in config.eval_tasks},
        limit=limit,
        accelerator=accelerator,
    )


def score(
    run: TrainingRun,
    benchmarks: dict[str, Task],
    *,
    before_batches: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """What `score_benchmarks` finds in the model of a run, on its own benchmarks or fewer."""
    return score_benchmarks(
        benchmarks,
        run.model,
        run.tokenizer,
        run.accelerator,
        batch_tokens=BENCHMARK_TOKENS,
        before_batches=before_batches,
    )


def validate(
    run: TrainingRun,
    *,
    n_windows: int | None = None,
    before_batch: Callable[[], None] = lambda: None,
) -> dict:
    """Loss on the validation windows, of each source if there are several, and a sample.

    Args:
        run: whose model is looked at.
        n_windows: of each source; None for all that `eval_tokens` allows.
        before_batch: called on all processes before each forward pass; it may raise.
    """
    losses = {
        name: validation_loss(
            run.model,
            windows,
            run.accelerator,
            n_windows=min(n_windows or len(windows), run.data.n_validation_windows(windows)),
            batch_size=run.loader.micro_batch_size,
            document_start=run.data.document_start,
            is_filled=run.config.compile != "no",
            before_batch=before_batch,
        )
        for name, (windows, _) in run.validation.items()
    }
    weights = {name: weight for name, (_, weight) in run.validation.items()}
    values = {"eval_loss": sum(weights[name] * loss for name, loss in losses.items())}
    if len(losses) > 1:
        values |= {f"eval_loss/{name}": loss for name, loss in losses.items()}
    if run.is_sharded or run.accelerator.is_main_process:
        values["sample"] = sample_text(
            run.model, run.tokenizer, seed=run.config.seed, is_sharded=run.is_sharded
        )
    return values


@torch.no_grad()
def validation_loss(
    model: PreTrainedModel,
    windows: TokenWindows,
    accelerator: Accelerator,
    *,
    n_windows: int,
    batch_size: int,
    document_start: int | None = None,
    is_filled: bool = False,
    before_batch: Callable[[], None] = lambda: None,
) -> float:
    """Mean loss in nats per token over the first windows of the validation split.

    The windows are always the same and shared out among the processes, so that the result does not
    depend on their number.

    Args:
        model: without any wrapper.
        n_windows: how many to read.
        batch_size: windows per forward pass.
        document_start: id with which documents begin, if they are to be kept apart.
        is_filled: fill the last batch up with rows that do not count, so that a compiled model
            sees one shape.
        before_batch: called on all processes before each forward pass; it may raise.
    """
    rank, world_size = accelerator.process_index, accelerator.num_processes
    own = np.arange(rank, n_windows, world_size)
    n_calls = -(-n_windows // (world_size * batch_size))  # of the process with the most windows
    total = 0.0  # of the mean losses of this process's windows
    model.eval()
    for call in range(n_calls):
        before_batch()
        indices = own[call * batch_size : (call + 1) * batch_size]
        # Processes that share the model's parameters must call it equally often.
        shown = indices if len(indices) else np.zeros(1, dtype=np.int64)
        n_counted = len(shown)
        tokens = windows.read(np.resize(shown, batch_size) if is_filled else shown)
        batch = model_inputs(tokens, document_start=document_start)
        batch["shift_labels"][n_counted:] = IGNORED
        inputs = {name: ids.to(accelerator.device) for name, ids in batch.items()}
        outputs = model(**inputs, use_cache=False)
        total += outputs.loss.item() * len(indices)
    model.train()
    share = torch.tensor(total / n_windows, device=accelerator.device)
    return accelerator.reduce(share, reduction="sum").item()


@torch.no_grad()
def sample_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    is_sharded: bool = False,
) -> str:
    """What the model writes after `<|endoftext|>`.

    Args:
        model: without any wrapper.
        is_sharded: whether processes share the model's parameters, and all call this.
    """
    torch.manual_seed(seed)
    prompt = torch.tensor([[tokenizer.eos_token_id]], device=model.device)
    model.eval()
    with torch.compiler.set_stance("force_eager"):  # growing inputs would recompile at each token
        output_ids = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            **SAMPLING,
            remove_invalid_values=True,  # of a model that diverges: its loss says so
            max_new_tokens=min(SAMPLE_TOKENS, model.config.n_positions),
            synced_gpus=is_sharded,
        )
    model.train()
    return tokenizer.decode(output_ids[0], skip_special_tokens=True)
