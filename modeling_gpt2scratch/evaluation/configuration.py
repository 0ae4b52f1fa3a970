"""The arguments of `evaluate/compare.py`, built from the registry of tasks."""

import argparse
import contextlib
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NoReturn

from modeling_gpt2scratch.checkpoints.retention import STATE_NAME
from modeling_gpt2scratch.common.addresses import redact_fields, split_revision, take_arguments
from modeling_gpt2scratch.common.argument_parser import OneLineErrorParser, with_underscores
from modeling_gpt2scratch.common.command_line import (
    EMPTY,
    ArgumentError,
    argument,
    parse_config,
    raw_recipe,
)
from modeling_gpt2scratch.common.errors import file_problem
from modeling_gpt2scratch.common.output_directory import OutputError, writable_directory

from .tasks.registry import ALL, TASKS, TaskError, known_tasks, resolve_tasks
from .tasks.samples import SampleData, Selection
from .tasks.task import Task

PROGRAM = "compare.py"
RESULTS_FILE = "results.json"
HARNESS_FOLDER = "lm_eval_results"  # laid out as lm-evaluation-harness does
BARS_NAME = "scores.png"
CURVES_NAME = "scores_over_tokens.png"
CACHE_FOLDER = "evaluation_cache"
# What a parser of arguments, or `common/command_line.py`, understands otherwise.
PARSER_WORDS = ("help", "main", "only_until", "only_with", "written")
MODELS, DATA, HARDWARE, OUTPUT = "models and tasks", "data", "hardware", "output"


@dataclass(frozen=True)
class CompareArguments:
    """The arguments that do not depend on the tasks."""

    registry: ClassVar[Mapping[str, type[Task]]] = TASKS
    gives_way: ClassVar = ("data_dir",)

    models: list[str] = argument(
        "model directories or Hub names (OWNER/NAME or OWNER/NAME@REVISION), one column each",
        group=MODELS,
    )
    tasks: list[str] = argument(
        f"what to measure: {ALL}, some of {', '.join(task for task in TASKS if ':' not in task)}, "
        "or TASK:PROTOCOL (docs/reference/protocols.md)",
        group=MODELS,
    )
    baseline: str | None = argument(
        "model that the others are compared with; the first if not given",
        group=MODELS,
        default=None,
    )
    include_path: str | None = argument(
        "directory with your own tasks; every .py file in it is run", group=MODELS, default=None
    )
    trust_remote_code: bool = argument(
        "run model code that comes with a checkpoint", group=MODELS, default=False
    )
    limit: int | None = argument(
        "first N samples of each task: windows of val, passages of lambada, questions of "
        "hellaswag, and so on",
        group=DATA,
        default=None,
    )
    data_dir: str | None = argument(
        "directory that holds the official files, at any depth", group=DATA, default=None
    )
    batch_tokens: str = argument(
        "padded tokens of one forward pass; halved when memory runs out",
        group=HARDWARE,
        default="auto",
    )
    device: str = argument(
        "a torch device; auto is the accelerator if there is one", group=HARDWARE, default="auto"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = argument(
        "dtype of weights and activations", group=HARDWARE, default="float32"
    )
    output_dir: str | None = argument(
        f"directory for {RESULTS_FILE}; by default the first model's directory; `results` if the "
        "first model is a checkpoint or comes from the Hub",
        group=OUTPUT,
        default=None,
    )
    cache: bool = argument(
        "reuse what an earlier comparison measured, and keep what this one measures",
        group=OUTPUT,
        default=True,
    )
    cache_dir: str | None = argument(
        f"directory of that cache; by default {CACHE_FOLDER} beside the results",
        group=OUTPUT,
        default=None,
    )
    log_samples: bool = argument(
        f"also write the values of each sample, to {HARNESS_FOLDER}", group=OUTPUT, default=False
    )
    charts: bool = argument(
        f"also draw {BARS_NAME} and, for runs, {CURVES_NAME}", group=OUTPUT, default=False
    )

    def __post_init__(self) -> None:
        redact_fields(self)
        for name in ("models", "tasks"):
            if not getattr(self, name):
                raise ArgumentError(name, problem="expected at least one, found none")
        for name in self.models:
            split_revision(name)  # refuses a directory with a revision
        if len(set(self.models)) != len(self.models):
            found = " ".join(self.models)
            raise ArgumentError("models", problem=f"expected each once, found {found}")
        if self.baseline not in (None, *self.models):
            raise ArgumentError(
                "baseline", problem=f"expected one of --models, found {self.baseline}"
            )
        if self.limit is not None and self.limit < 1:
            raise ArgumentError("limit", problem=f"expected at least 1, found {self.limit}")
        is_number = self.batch_tokens.isdecimal() and int(self.batch_tokens) >= 1
        if self.batch_tokens != "auto" and not is_number:
            raise ArgumentError(
                "batch_tokens", problem=f"expected at least 1, or auto, found {self.batch_tokens}"
            )
        for name, kind in self.kinds.items():
            data = kind.data
            if data.is_own and self.selection(name).place is None:
                raise ValueError(
                    f"--{data.argument}: expected {data.help} for task {name}, found none; add "
                    f"--{data.argument} PATH"
                )
        self._require_one_kind_of_data()
        if self.data_dir is not None and not Path(self.data_dir).is_dir():
            raise ArgumentError(
                "data_dir", problem=f"expected a directory, found none: {self.data_dir}"
            )
        if self.data_dir is not None and all(self.selection(name).place for name in self.kinds):
            raise ArgumentError(
                *("data_dir", "tasks"),
                problem="expected a task whose data are looked for in data_dir, found a place of "
                f"its own for each of {', '.join(self.kinds)}; leave data_dir out",
            )
        if self.device != "auto":
            require_device(self.device)

    @property
    def kinds(self) -> dict[str, type[Task]]:
        """The tasks by name; `all` leaves out those of one's own data where none is named."""
        names = resolve_tasks(self.tasks, list(self.registry))
        if self.tasks == [ALL]:
            names = [
                name
                for name in names
                if not self.registry[name].data.is_own or self.selection(name).place is not None
            ]
        return {name: self.registry[name] for name in names}

    def selection(self, task: str) -> Selection:
        """Which samples a task is to read."""
        place = getattr(self, self.registry[task].data.argument)
        return Selection(place, self.data_dir, self.limit)

    @property
    def tokens_of_pass(self) -> int | Literal["auto"]:
        """`batch_tokens` as the scorer takes it."""
        return "auto" if self.batch_tokens == "auto" else int(self.batch_tokens)

    def _require_one_kind_of_data(self) -> None:
        """Refuses one file, or data set, for tasks that ask other questions of other files."""
        wanted: dict[str, dict[SampleData, str]] = {}
        for name, kind in self.kinds.items():
            wanted.setdefault(kind.data.argument, {}).setdefault(kind.data, name)
        for flag, tasks in wanted.items():
            place, usual = getattr(self, flag), {data.hub_name for data in tasks}
            if len(tasks) > 1 and not (place is None or place in usual or Path(place).is_dir()):
                files = ", ".join(data.file for data in tasks)
                problem = f"expected a directory with {files}, found one place for all: {place}"
                raise ArgumentError(
                    flag, problem=f"{problem}; measure {', '.join(tasks.values())} one by one"
                )


def arguments_for(registry: Mapping[str, type[Task]]) -> type[CompareArguments]:
    """The arguments with one more for each place of data that the tasks know.

    Raises:
        TaskError: for a place that is called like another argument.
    """
    places: dict[str, SampleData] = {}
    taken = {*PARSER_WORDS, *dir(CompareArguments), *CompareArguments.__dataclass_fields__}
    for name, kind in registry.items():
        if kind.data.argument in taken:
            raise TaskError(
                f"task {name!r}: expected a new name as argument of its data, found "
                f"{kind.data.argument!r}, which has another meaning; rename it"
            )
        places.setdefault(kind.data.argument, kind.data)
    fields = [
        (name, str | None, argument(data.help, group=DATA, default=None))
        for name, data in places.items()
    ]
    only_with = {
        name: (
            "tasks",
            (ALL, *(task for task, kind in registry.items() if kind.data.argument == name)),
        )
        for name in places
    }
    return dataclasses.make_dataclass(
        "CompareConfig",
        fields,
        bases=(CompareArguments,),
        frozen=True,
        namespace={
            "registry": registry,
            "only_with": {"cache_dir": ("cache", (True,))} | only_with,
            "__doc__": "Arguments of compare.py.",
        },
    )


CompareConfig = arguments_for(TASKS)


def require_device(name: str) -> None:
    """Refuses a name that torch does not know, and a device that is not here."""
    import torch  # only who names a device waits for it

    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    here = torch.accelerator.current_accelerator(check_available=True)
    is_here = device is not None and (
        device.type == "cpu"
        or (here is not None and device.type == here.type)
        and (device.index or 0) < torch.accelerator.device_count()
    )
    if not is_here:
        problem = f"expected auto, cpu or a device of this machine, found {name!r}"
        raise ArgumentError("device", problem=problem)


def parse_arguments(
    argv: Sequence[str] | None = None, *, description: str | None = None
) -> tuple[CompareArguments, Path]:
    """The checked arguments and the output directory, which can be written to.

    Exits with 2 and one line on bad ones.
    """
    argv = take_arguments(argv)
    try:
        kind = arguments_for(known_tasks(_include_path(argv)))
    except TaskError as error:
        refuse(str(error))
    config = parse_config(kind, description=description, argv=argv)
    try:
        return config, open_output_dir(config)
    except OutputError as error:
        refuse(f"--output_dir: {error}")
    except OSError as error:
        refuse(file_problem(error))


def open_output_dir(config: CompareArguments) -> Path:
    """The directory of the results, made if there is none.

    Raises:
        OutputError: if it cannot be written to, or holds results of another program.
    """
    given = config.output_dir or default_output_dir(config.models[0])
    output_dir = writable_directory(given, flag="--output_dir")
    if (output_dir / RESULTS_FILE).is_file():
        from .results.results_json import MARKER  # and torch with it

        if difference := MARKER.difference(output_dir):
            raise OutputError(
                f"expected {output_dir} to hold results of {PROGRAM} or none, found {difference}; "
                f"choose another"
            )
    return output_dir


def default_output_dir(model: str) -> str:
    """The model's directory if it is a local one that stays, else `results`.

    A run removes its older checkpoints, with all that is in them.
    """
    stays = Path(model).is_dir() and not Path(model, STATE_NAME).is_file()
    return model if stays else "results"


def refuse(problem: str) -> NoReturn:
    """Ends the program as its parser does: in one line of each machine."""
    OneLineErrorParser(prog=PROGRAM).error(problem)


def _include_path(argv: Sequence[str]) -> str | None:
    """The directory of tasks that flags or recipes name, which have more flags.

    Whatever is wrong with a recipe is said when all of it is read.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--include_path", nargs="?")
    given = first.parse_known_args([with_underscores(part) for part in argv])[0].include_path
    recipes = itertools.takewhile(lambda part: not part.startswith("-"), argv)
    for path in reversed(list(recipes)) if given is None else ():
        with contextlib.suppress(ValueError):
            place = raw_recipe(path, flag="models").get("include_path")
            if isinstance(place, str) and place not in EMPTY:
                return place
    return given or None  # an empty text is refused with all the rest
