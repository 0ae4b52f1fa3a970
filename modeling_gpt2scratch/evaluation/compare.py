"""Compare language models on tasks: one Markdown table on stdout, one results.json.

    python evaluate/compare.py --models out/export gpt2 --tasks val lambada --val_data data/shards

Exit code 0 if every model has every number, 1 if a cell of the table says why it has none, 2 for
bad arguments.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from tqdm import tqdm
from transformers import HfArgumentParser

from modeling_gpt2scratch.evaluation.results.cache import ResultCache
from modeling_gpt2scratch.evaluation.results.charts import BARS_NAME, CURVES_NAME
from modeling_gpt2scratch.evaluation.results.measurements import Measurement, ModelMeasurements
from modeling_gpt2scratch.evaluation.results.report import (
    HARNESS_FOLDER,
    RESULTS_FILE,
    Comparison,
    report,
)
from modeling_gpt2scratch.evaluation.scoring.processes import ProcessGroup
from modeling_gpt2scratch.evaluation.scoring.scorer import Task
from modeling_gpt2scratch.evaluation.tasks import (
    arc_easy,
    cbt,
    hellaswag,
    lambada,
    local_text,
    paper_corpora,
    piqa,
    wikitext,
)
from modeling_gpt2scratch.evaluation.tasks.registry import ALL, resolve_tasks
from modeling_gpt2scratch.evaluation.tasks.validation import ValidationTask

from .comparison import evaluate_model, load_tasks

TASKS: dict[str, type[Task]] = {
    "val": ValidationTask,
    **lambada.TASKS,
    **cbt.TASKS,
    **wikitext.TASKS,
    **hellaswag.TASKS,
    **arc_easy.TASKS,
    **piqa.TASKS,
    **paper_corpora.TASKS,
    **local_text.TASKS,
}
FILES = sorted({kind.data.file for kind in TASKS.values() if hasattr(kind, "data")})
DTYPES = ("float32", "bfloat16", "float16")
CACHE_FOLDER = "evaluation_cache"


def data_place(task: str) -> Any:
    """A field for the place of a task's data, where it is not the usual one."""
    data = TASKS[task].data
    usual = f"{data.file} in --data_dir, else {data.hub_name} from the Hub"
    text = f"a file of {data.file}'s format, or a Hub data set; by default {usual}"
    return field(default=None, metadata={"help": text})


@dataclass(frozen=True)
class CompareConfig:
    """Arguments of compare.py."""

    models: list[str] = field(metadata={"help": "model directories or Hub names, one column each"})
    tasks: list[str] = field(
        metadata={"help": f"what to measure: {ALL}, or some of {', '.join(TASKS)}"}
    )
    baseline: str | None = field(
        default=None,
        metadata={"help": "the one of the models that others are compared with; else the first"},
    )
    limit: int | None = field(
        default=None,
        metadata={
            "help": "first N samples of each task: windows of val, passages of lambada, questions "
            "of hellaswag, and so on"
        },
    )
    val_data: str | None = field(
        default=None, metadata={"help": "shard directory of prepare_data.py, for the task val"}
    )
    lambada_data: str | None = data_place("lambada")
    lambada_standard_data: str | None = data_place("lambada_standard")
    cbt_data: str | None = data_place("cbt-cn")
    text_data: str | None = field(
        default=None, metadata={"help": "documents of one's own for task text, .jsonl or .txt"}
    )
    wikitext_data: str | None = data_place("wikitext")
    hellaswag_data: str | None = data_place("hellaswag")
    arc_easy_data: str | None = data_place("arc_easy")
    piqa_data: str | None = data_place("piqa")
    data_dir: str | None = field(
        default=None, metadata={"help": f"directory with the official files: {', '.join(FILES)}"}
    )
    batch_tokens: str = field(
        default="auto",
        metadata={"help": "padded tokens of one forward pass; halved when memory runs out"},
    )
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
    cache: bool = field(
        default=True, metadata={"help": "go on where an interrupted evaluation stopped"}
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": f"directory of that cache; by default {CACHE_FOLDER} beside the results"},
    )
    log_samples: bool = field(
        default=False,
        metadata={"help": f"also write the values of each sample, to {HARNESS_FOLDER}"},
    )
    charts: bool = field(
        default=False, metadata={"help": f"also draw {BARS_NAME} and, for runs, {CURVES_NAME}"}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "run model code that comes with a checkpoint"}
    )

    def __post_init__(self) -> None:
        if len(set(self.models)) != len(self.models):
            raise ValueError(f"--models: expected each once, found {' '.join(self.models)}")
        if self.baseline not in (None, *self.models):
            raise ValueError(f"--baseline: expected one of --models, found {self.baseline}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit: expected at least 1, found {self.limit}")
        is_number = self.batch_tokens.isdecimal() and int(self.batch_tokens) >= 1
        if self.batch_tokens != "auto" and not is_number:
            raise ValueError(
                f"--batch_tokens: expected at least 1, or auto, found {self.batch_tokens}"
            )
        if "val" in self.kinds and self.val_data is None:
            raise ValueError("--val_data: expected a shard directory for task val, found none")
        if self.data_dir is not None and not Path(self.data_dir).is_dir():
            raise ValueError(f"--data_dir: expected a directory, found none: {self.data_dir}")
        if self.device != "auto":
            try:
                torch.device(self.device)
            except RuntimeError as error:
                raise ValueError(
                    f"--device: expected auto or a torch device, found {self.device!r}"
                ) from error

    @property
    def kinds(self) -> dict[str, type[Task]]:
        """The tasks by name; `all` leaves out those of one's own data where none is named."""
        names = resolve_tasks(self.tasks, list(TASKS))
        own = {"val": self.val_data, "text": self.text_data}
        if self.tasks == [ALL]:
            names = [name for name in names if own.get(name, "") is not None]
        return {name: TASKS[name] for name in names}

    @property
    def tokens_of_pass(self) -> int | Literal["auto"]:
        """`batch_tokens` as the scorer takes it."""
        return "auto" if self.batch_tokens == "auto" else int(self.batch_tokens)


class OneLineErrorParser(HfArgumentParser):
    """A parser whose complaint is one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None, *, description: str | None = None) -> int:
    """Exit code of a whole comparison; `argv` defaults to the command line."""
    config, output_dir = parse_arguments(argv)
    # Importing the package, where it is installed, registers model type "gpt2scratch" with the
    # Auto classes. Without it, other models work as well, and that one with --trust_remote_code.
    with contextlib.suppress(ImportError):
        import modeling_gpt2scratch  # noqa: F401

    start = time.perf_counter()
    processes = ProcessGroup(config.device)
    comparison = Comparison([ModelMeasurements(name) for name in config.models])
    try:
        evaluate(config, comparison, output_dir, processes)
        comparison.is_complete = True
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
    is_written = True
    if processes.is_main:
        is_written = report(config, comparison, output_dir, time.perf_counter() - start)
    if comparison.is_complete:
        processes.end()
    # What is missing, the main process says: a launcher ends all once one of them has failed.
    is_whole = is_written and all(has_all(model, config) for model in comparison.models)
    return int(processes.is_main and not is_whole)


def has_all(model: ModelMeasurements, config: CompareConfig) -> bool:
    """Whether a model has every number."""
    cells = [model.tasks.get(name) for name in config.kinds]
    return all(cell is not None and cell.result is not None for cell in cells)


def evaluate(
    config: CompareConfig, comparison: Comparison, output_dir: Path, processes: ProcessGroup
) -> None:
    """Fills `comparison` as it goes."""
    tasks, problems = load_tasks(config.kinds, config, processes)
    comparison.tasks = tasks
    if processes.is_main:
        for name, problem in problems.items():
            print(f"{name}: {problem}", file=sys.stderr)
    directory = Path(config.cache_dir) if config.cache_dir else output_dir / CACHE_FOLDER
    cache = ResultCache(directory if config.cache else None)
    disable = None if processes.is_main else True  # None: only where nobody watches
    with tqdm(comparison.models, unit="model", disable=disable) as progress:
        for model in progress:
            progress.set_description(model.name)
            model.tasks |= {name: Measurement(error=text) for name, text in problems.items()}
            evaluate_model(model, tasks, config, cache, processes)


def parse_arguments(argv: Sequence[str] | None) -> tuple[CompareConfig, Path]:
    """The checked arguments and the output directory, which can be written to.

    Exits with 2 and one line on bad ones.
    """
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
    try:
        # A share may be mounted so that nothing but an attempt tells.
        tempfile.TemporaryFile(dir=output_dir).close()
    except OSError as error:
        parser.error(f"--output_dir: expected a directory that can be written to, found {error}")
    return config, output_dir


def default_output_dir(model: str) -> str:
    """The model's directory if it is a local one, else `results`."""
    return model if Path(model).is_dir() else "results"


if __name__ == "__main__":
    sys.exit(main())
