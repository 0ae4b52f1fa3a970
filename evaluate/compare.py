"""Compare language models on tasks: one Markdown table on stdout, one results.json.

    python evaluate/compare.py --models out/export gpt2 --tasks val lambada --val_data data/shards

Exit code 0 if every model has every number, 1 if a cell of the table says why it has none, 2 for
bad arguments.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import platform
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import hellaswag
import lambada
import torch
import transformers
from hellaswag import HellaswagTask
from lambada import LambadaTask
from perplexity import ValidationTask
from scoring import CausalScorer, Task, TaskResult
from tabulate import tabulate
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

TASKS: dict[str, type[Task]] = {
    "val": ValidationTask,
    "lambada": LambadaTask,
    "hellaswag": HellaswagTask,
}
DTYPES = ("float32", "bfloat16", "float16")
RESULTS_FILE = "results.json"
CELL_CHARACTERS = 120  # of an error in the table; results.json has it whole


@dataclass(frozen=True)
class CompareConfig:
    """Arguments of compare.py."""

    models: list[str] = field(metadata={"help": "model directories or Hub names, one column each"})
    tasks: list[str] = field(metadata={"help": "what to measure", "choices": list(TASKS)})
    limit: int | None = field(
        default=None,
        metadata={
            "help": "first N samples of each task: windows of val, passages of lambada, questions "
            "of hellaswag"
        },
    )
    val_data: str | None = field(
        default=None, metadata={"help": "shard directory of prepare_data.py, for the task val"}
    )
    lambada_data: str = field(
        default=lambada.HUB_NAME,
        metadata={"help": ".jsonl file with a field `text`, or a Hub data set with split `test`"},
    )
    hellaswag_data: str = field(
        default=hellaswag.HUB_NAME,
        metadata={
            "help": ".jsonl file of the official format, or a Hub data set with split `validation`"
        },
    )
    batch_tokens: int = field(default=8192, metadata={"help": "padded tokens of one forward pass"})
    device: str = field(
        default="auto",
        metadata={"help": "a torch device; auto is cuda, mps or cpu, the first found"},
    )
    dtype: str = field(
        default="float32", metadata={"help": "of weights and activations", "choices": DTYPES}
    )
    output_dir: str | None = field(
        default=None,
        metadata={
            "help": f"directory for {RESULTS_FILE}; by default that of the first model, "
            "or `results` if the first model is no local directory"
        },
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "run model code that comes with a checkpoint"}
    )

    def __post_init__(self) -> None:
        for name in ("models", "tasks"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"--{name}: expected each once, found {' '.join(values)}")
        for name in ("limit", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name}: expected at least 1, found {value}")
        if "val" in self.tasks and self.val_data is None:
            raise ValueError("--val_data: expected a shard directory for task val, found none")
        if self.device != "auto":
            try:
                torch.device(self.device)
            except RuntimeError as error:
                raise ValueError(
                    f"--device: expected auto or a torch device, found {self.device!r}"
                ) from error


class OneLineErrorParser(HfArgumentParser):
    """A parser whose complaint is one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of a whole comparison; `argv` defaults to the command line."""
    config, output_dir = parse_arguments(argv)
    # Importing the package, where it is installed, registers model type "gpt2scratch" with the
    # Auto classes. Without it, other models work as well, and that one with --trust_remote_code.
    with contextlib.suppress(ImportError):
        import modeling_gpt2scratch  # noqa: F401

    start = time.perf_counter()
    tasks = load_tasks(config)
    results, models = {}, {}
    for name in config.models:
        results[name], models[name] = evaluate_model(name, config, tasks)
    print(markdown_table(config, results))
    write_json(
        output_dir / RESULTS_FILE,
        {
            "results": results,
            "models": models,
            "arguments": dataclasses.asdict(config),
            "python_version": platform.python_version(),
            "torch_version": torch.__version__,
            "transformers_version": transformers.__version__,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "total_evaluation_time_seconds": round(time.perf_counter() - start, 3),
        },
    )
    return int(any("error" in cell for cells in results.values() for cell in cells.values()))


def parse_arguments(argv: Sequence[str] | None) -> tuple[CompareConfig, Path]:
    """The checked arguments and the output directory, which exists; exits with 2 on bad ones."""
    parser = OneLineErrorParser(
        CompareConfig, description=CompareConfig.__doc__, allow_abbrev=False
    )
    try:
        config, unknown = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
    except ValueError as error:
        parser.error(str(error))
    if unknown:
        parser.error(f"expected the arguments listed by --help, found {' '.join(unknown)}")
    output_dir = Path(config.output_dir or default_output_dir(config.models[0]))
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output_dir: expected a directory, found {error}")
    return config, output_dir


def default_output_dir(model: str) -> str:
    """The model's directory if it is a local one, else `results`."""
    return model if Path(model).is_dir() else "results"


def load_tasks(config: CompareConfig) -> dict[str, Task | Exception]:
    """Each task with its data, or why it has none."""
    tasks: dict[str, Task | Exception] = {}
    for name in config.tasks:
        try:
            tasks[name] = TASKS[name].from_config(config)
        except Exception as error:
            tasks[name] = error
    return tasks


def evaluate_model(
    name: str, config: CompareConfig, tasks: dict[str, Task | Exception]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The model's entry of `results`, a dict for each task, and its entry of `models`."""
    try:
        scorer = load_scorer(name, config)
    except Exception as error:
        return {task_name: error_cell(name, task_name, error) for task_name in tasks}, {}
    cells = {}
    for task_name, task in tasks.items():
        if isinstance(task, Exception):
            cells[task_name] = error_cell(name, task_name, task)
            continue
        try:
            start = time.perf_counter()
            result = task.evaluate(scorer)
            cells[task_name] = result_cell(task_name, task, result, time.perf_counter() - start)
        except Exception as error:
            cells[task_name] = error_cell(name, task_name, error)
    model = scorer.model
    description = {
        "class": type(model).__name__,
        "model_num_parameters": model.num_parameters(),
        "model_dtype": str(model.dtype).removeprefix("torch."),
        "model_sha": getattr(model.config, "_commit_hash", None),  # of a Hub model
        "device": str(model.device),
    }
    # The next model may need the memory of this one.
    del scorer, model
    gc.collect()
    torch.cuda.empty_cache()
    return cells, description


def load_scorer(name: str, config: CompareConfig) -> CausalScorer:
    """The model and its tokenizer on the device."""
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise FileNotFoundError(f"expected a model directory, found no directory {name}")
    options = {"trust_remote_code": config.trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(name, **options)
    model = AutoModelForCausalLM.from_pretrained(
        name, dtype=getattr(torch, config.dtype), **options
    )
    return CausalScorer(
        model.to(resolve_device(config.device)), tokenizer, batch_tokens=config.batch_tokens
    )


def resolve_device(name: str) -> torch.device:
    """The device called `name`; auto is the fastest kind there is."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def result_cell(name: str, task: Task, result: TaskResult, seconds: float) -> dict[str, Any]:
    """One task of one model, under the keys that lm-evaluation-harness uses where it has them."""
    cell = {
        "alias": name,
        "protocol": task.protocol,
        "version": task.version,
        "n_samples": result.n_samples,
        "sha256": task.sha256,
    }
    for metric, estimate in result.estimates.items():
        cell[f"{metric},none"] = estimate.value
        cell[f"{metric}_stderr,none"] = estimate.stderr
    return {
        **cell,
        **result.details,
        "higher_is_better": dict(task.metrics),
        "seconds": round(seconds, 3),
    }


def error_cell(model: str, task: str, error: Exception) -> dict[str, str]:
    """The same place when there is no result: one line, also said on stderr."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    print(f"{model}, {task}: {reason}", file=sys.stderr)
    return {"error": reason}


def markdown_table(config: CompareConfig, results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A row for each task and metric, a column for each model, value ± standard error."""
    rows = []
    for task_name in config.tasks:
        task = TASKS[task_name]
        first = "" if config.limit is None else f", first {config.limit} {task.samples}"
        for metric, higher_is_better in task.metrics.items():
            cells = [
                format_cell(results[model][task_name], metric, task) for model in config.models
            ]
            arrow = "↑" if higher_is_better else "↓"
            rows.append(
                [task_name, f"{task.protocol} v{task.version}{first}", metric, arrow, *cells]
            )
    headers = ["Task", "Protocol", "Metric", "", *config.models]
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


def format_cell(cell: dict[str, Any], metric: str, task: type[Task]) -> str:
    """Text of one cell; an error stands in the task's first row only."""
    if "error" in cell:
        reason = textwrap.shorten(cell["error"], CELL_CHARACTERS).replace("|", "\\|")
        return f"error: {reason}" if metric == next(iter(task.metrics)) else "–"
    value, stderr = cell[f"{metric},none"], cell[f"{metric}_stderr,none"]
    return format_number(value) + ("" if stderr is None else f" ± {format_number(stderr)}")


def format_number(value: float) -> str:
    """Four decimals, as lm-evaluation-harness has it; from a million on, scientific notation."""
    return f"{value:.4f}" if value < 1e6 else f"{value:.4e}"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace `path` by `content` in one step: a reader finds the old file or the new, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=2, ensure_ascii=False, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
