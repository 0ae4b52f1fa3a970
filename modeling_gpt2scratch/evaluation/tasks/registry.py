"""The tasks by name: those of this folder, of installed packages, and of a directory of yours.

A module of tasks has a dictionary `TASKS`, from the name to the class. A task of this folder takes
one file and a line in `MODULES`; one of yours takes one file in the directory that `--include_path`
names, or a module that your package declares under the entry points `gpt2scratch.tasks`.
"""

import difflib
import importlib.util
import keyword
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from modeling_gpt2scratch.common.errors import named

from . import (
    arc_easy,
    blimp,
    cbt,
    hellaswag,
    lambada,
    local_text,
    paper_corpora,
    piqa,
    validation,
    wikitext,
)
from .samples import SampleData
from .task import Task

PARTS_OF_TASK = ("protocol", "version", "samples", "metrics", "data", "load", "evaluate")

ALL = "all"
ENTRY_POINTS = "gpt2scratch.tasks"
HARNESS_NAMES = {"lambada_openai": "lambada"}  # of tasks that have another name here
# In the order of the table.
MODULES = (
    *(validation, lambada, cbt, wikitext, hellaswag, blimp),
    *(arc_easy, piqa, paper_corpora, local_text),
)
TASKS: dict[str, type[Task]] = {
    name: kind for module in MODULES for name, kind in module.TASKS.items()
}


class TaskError(ValueError):
    """Tasks that are not there or cannot be used."""


def known_tasks(include_path: str | None = None) -> dict[str, type[Task]]:
    """Every task by name: the built-in ones, then those of packages, then those of a directory.

    Args:
        include_path: directory of modules, each file of which is run; None for no such directory.

    Raises:
        TaskError: for a module without tasks, or a name that is taken.
    """
    tasks = dict(TASKS)
    for entry_point in entry_points(group=ENTRY_POINTS):
        place = f"entry point {entry_point.name} = {entry_point.value}"
        try:
            module = entry_point.load()
        except Exception as error:  # whatever a package of somebody else's raises
            raise TaskError(f"{place}: expected a module of tasks, found {named(error)}") from error
        _add(tasks, module, place)
    for path in _modules_in(include_path) if include_path is not None else ():
        spec = importlib.util.spec_from_file_location(f"gpt2scratch_tasks_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise TaskError(f"{path}: expected a module of tasks, found {named(error)}") from error
        _add(tasks, module, str(path))
    return tasks


def resolve_tasks(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The tasks called `names`, "task" or "task:protocol"; `all` is every one of them.

    Raises:
        ValueError: for an unknown name, with the nearest, or one that occurs twice.
    """
    if list(names) == [ALL]:
        return list(known)
    for name in names:
        if name not in known:
            raise ValueError(f"--tasks: {_unknown(name, known)}")
    if len(set(names)) != len(names):
        raise ValueError(f"--tasks: expected each once, found {' '.join(names)}")
    return list(names)


def _modules_in(include_path: str) -> Iterable[Path]:
    """The Python files of a directory, by name."""
    paths = sorted(Path(include_path).glob("*.py"))
    if not paths:
        raise TaskError(
            f"--include_path: expected a directory with .py files, found {include_path}"
        )
    return paths


def _add(tasks: dict[str, type[Task]], module: ModuleType, place: str) -> None:
    """Adds the tasks of a module."""
    own = getattr(module, "TASKS", None)
    if not isinstance(own, Mapping) or not own:
        raise TaskError(f"{place}: expected a dictionary TASKS of name and class, found {own!r}")
    for name, kind in own.items():
        if not isinstance(name, str) or name == ALL:
            raise TaskError(
                f"{place}: expected a text other than {ALL!r} as name of a task, found {name!r}; "
                f"rename it"
            )
        if name in tasks:
            raise TaskError(f"{place}: expected a new name for a task, found {name!r} again")
        if missing := [part for part in PARTS_OF_TASK if not hasattr(kind, part)]:
            raise TaskError(f"{place}: expected {missing[0]} of the task {name!r}, found none")
        if not isinstance(kind.metrics, Mapping) or not kind.metrics:
            raise TaskError(
                f"{place}: expected metrics of the task {name!r} as a dictionary of name and "
                f"whether higher is better, found {kind.metrics!r}"
            )
        if not isinstance(kind.data, SampleData):
            raise TaskError(
                f"{place}: expected data of the task {name!r} as a SampleData, found {kind.data!r}"
            )
        flag = kind.data.argument
        if not (isinstance(flag, str) and flag.isidentifier() and not keyword.iskeyword(flag)):
            raise TaskError(
                f"{place}: expected letters, digits and _ as argument of the data of the task "
                f"{name!r}, found {flag!r}; rename it"
            )
        tasks[name] = kind


def _unknown(name: str, known: Sequence[str]) -> str:
    """What is wrong with a name, and which was perhaps meant."""
    if name == ALL:
        return f"expected {ALL} alone, found it among others"
    task, colon, protocol = name.partition(":")
    protocols = [other for other in known if other.startswith(f"{task}:")]
    if colon and task in known:
        if not protocols:
            return f"expected {task}, which has only one protocol, found {name!r}"
        names = [other.partition(":")[2] for other in protocols]
        near = difflib.get_close_matches(protocol, names, n=1, cutoff=0.4)
        meant = f"; did you mean {task}:{near[0]}?" if near else ""
        return f"expected {task} or one of {', '.join(protocols)}, found {name!r}{meant}"
    if near := _meant(name, known):
        return f"expected {ALL} or names of tasks, found {name!r}; did you mean {near}?"
    return f"expected {ALL} or some of {', '.join(known)}, found {name!r}"


def _meant(name: str, known: Sequence[str]) -> str | None:
    """The task that was perhaps meant, or all whose names begin like this one."""
    task, colon, protocol = name.partition(":")
    own = HARNESS_NAMES.get(task)
    for other in (f"{own}{colon}{protocol}", own):
        if other in known:
            return other
    headlines = [other for other in known if other.startswith(name) and ":" not in other]
    if headlines:
        return f"one of {', '.join(headlines)}" if len(headlines) > 1 else headlines[0]
    return next(iter(difflib.get_close_matches(name, [*known, ALL], n=1, cutoff=0.4)), None)
