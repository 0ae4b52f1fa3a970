"""Benchmarks of a model that is being trained, by the tasks and the arithmetic of `compare.py`.

    benchmarks = load_benchmarks(["lambada"], sources={}, limit=None, accelerator=accelerator)
    score_benchmarks(benchmarks, model, tokenizer, accelerator, batch_tokens=8192)

The data is loaded once, before the first step. All processes of the run call both functions: they
share out the batches of `compare.py` among themselves, so that the scores do not depend on their
number.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_gpt2scratch.common.errors import one_line
from modeling_gpt2scratch.distributed.processes import on_all_processes, require_agreement, say
from modeling_gpt2scratch.hardware.devices import without_tf32

from .scoring.processes import SharedProblemError, alike
from .scoring.shared_scorer import SharedScorer
from .tasks.registry import TASKS
from .tasks.samples import Selection
from .tasks.task import Task


class BenchmarkError(OSError):
    """Data of a benchmark that cannot be read."""


def load_benchmarks(
    names: Sequence[str],
    *,
    sources: dict[str, str | None],
    limit: int | None,
    accelerator: Accelerator,
) -> dict[str, Task]:
    """The benchmarks called `names`, with their data.

    One process of each machine reads first, so that the others find what it downloaded.

    Args:
        sources: by name, a local file or a Hub data set in place of the usual one.
        limit: examples of each, None for all.

    Raises:
        BenchmarkError, LaunchError: if data cannot be read, or differ between processes; on every
            process alike.
    """
    benchmarks = {}

    def load(is_first: bool) -> None:
        if accelerator.is_local_main_process == is_first:
            benchmarks.update({name: _load(name, sources.get(name), limit) for name in names})

    on_all_processes(load, True)
    on_all_processes(load, False)
    require_agreement({name: benchmarks[name].sha256 for name in names}, "data of benchmarks")
    return benchmarks


@without_tf32()
def score_benchmarks(
    benchmarks: dict[str, Task],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    *,
    batch_tokens: int,
    before_batches: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Every metric of every benchmark, as "lambada/acc" and so on, on every process alike.

    A benchmark that cannot be scored, for want of memory or because a score is not a number, is
    left out, and the main process says so; a run does not end for it. An infinite perplexity is
    left out without a word.

    Args:
        model: of the run: not behind DDP, but itself if FSDP2 shards it. It keeps its mode.
        batch_tokens: padded tokens of one forward pass of one process.
        before_batches: called on all processes now and then; it may raise.
    """
    values = {}
    was_training = model.training
    # Batches have all sizes, and each would be compiled anew.
    with torch.compiler.set_stance("force_eager"), torch.autocast(model.device.type, enabled=False):
        try:
            scorer = SharedScorer(
                *(model, tokenizer, accelerator),
                batch_tokens=batch_tokens,
                in_training=True,
                before_batches=before_batches,
            )
            for name, task in benchmarks.items():
                try:
                    result = alike(partial(task.evaluate, scorer), (ValueError, OverflowError))
                except SharedProblemError as error:
                    say(f"no score of {name}: {error}")
                    continue
                values |= {
                    f"{name}/{metric}": estimate.value
                    for metric, estimate in result.estimates.items()
                    if estimate.nats is None
                }
        finally:
            model.train(was_training)
    return values


def _load(name: str, source: str | None, limit: int | None) -> Task:
    """One benchmark with its data."""
    kind = TASKS[name]
    try:
        return kind.load(Selection(place=source, limit=limit))
    except Exception as error:  # `datasets` has many ways to find no network
        hint = "" if source else f"; give a local file with --{kind.data.argument}"
        raise BenchmarkError(
            f"{name}: its examples cannot be read: {one_line(error)}{hint}"
        ) from error
