"""A dataclass as the only source of a script's command line: YAML recipes first, flags over them.

A message about a value is one line that begins with where the value came from. Class attributes of
the dataclass say more:

only_with: arguments that act only beside certain values of another, any if they are GIVEN, or an
    ADDRESS: {argument: (other, values)}.
only_until: arguments of a recipe that are left out, with one line about it, if another is given
    after it: {argument: others}.
main: the argument whose flag people leave out; the first if it is not named.
gives_way: those of a recipe that are left out, with one line, if a later one does not allow them.
written: the argument that is a directory to be made, in which no recipe may be.
"""

import argparse
import dataclasses
import difflib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

import yaml

from .addresses import take_arguments
from .argument_parser import (
    OneLineErrorParser,
    checked,
    readable,
    say_when_interrupted,
    shown,
    with_hint,
    with_underscores,
)
from .errors import file_problem
from .output_directory import require_apart, resolved

Config = TypeVar("Config")
# Name of an argument: the recipe's number and path, or the number after all recipes and no path.
Origins = dict[str, tuple[int, str | None]]

MAX_VALUE_CHARACTERS = 10_000  # of one text among the arguments
MAX_RECIPE_BYTES = 2**20
DEFAULT = "default"  # in place of a path
GIVEN = ("any",)  # in place of values: all but none, 0 and false
ADDRESS = ("at an address",)  # in place of values: all with ://
_places: dict[str, str] = {}  # values of recipes, and where they stand
EMPTY = ("", "null", "~")


class ArgumentError(ValueError):
    """An argument that cannot be used, or several that do not go together.

    Args:
        problem: "expected X, found Y; do Z".
    """

    def __init__(self, *names: str, problem: str):
        super().__init__(f"{', '.join(f'--{name}' for name in names)}: {problem}")
        self.names = names
        self.problem = problem

    def located(self, origins: Origins) -> str:
        """The line for the user, with recipe and key, or the flag, in front of the problem."""
        groups: dict[str | None, list[str]] = {}
        for name in self.names:
            groups.setdefault(origins.get(name, (0, DEFAULT))[1], []).append(name)
        places = []
        for path, names in groups.items():
            if path is None:
                places.append(", ".join(f"--{name}" for name in names))
            elif path == DEFAULT:
                places.append(f"{', '.join(names)} ({DEFAULT})")
            else:
                places.append(f"{path}: {', '.join(names)}")
        return ": ".join(["; ".join(places), self.problem] if places else [self.problem])


def argument(help: str, *, group: str | None = None, **default) -> Any:
    """A dataclass field with a help text, under a heading of `--help` if a group is named."""
    return dataclasses.field(metadata={"help": help, "group": group}, **default)


def check_numbers(config: Any, *, positive: Sequence[str], non_negative: Sequence[str]) -> None:
    """Refuses fields outside their range, which ends below 2**63; None passes.

    Raises:
        ArgumentError: at the first such field.
    """
    for name in (*positive, *non_negative):
        value = getattr(config, name)
        bound = "above 0" if name in positive else "of at least 0"
        if value is not None and 2**63 <= value < math.inf:
            bound = "below 2^63"
        in_range = value is None or 0 < value < 2**63 or (value == 0 and name in non_negative)
        if not in_range:
            raise ArgumentError(name, problem=f"expected a number {bound}, found {value}")


def parse_config(
    config_class: type[Config],
    *,
    description: str | None,
    argv: Sequence[str] | None = None,
    program: str | None = None,
) -> Config:
    """Reads `[RECIPE.yaml ...] [--flag value ...]` into a dataclass; what comes later wins.

    The recipes' entries become flags in front of the user's, so that all go through the same types
    and checks. Exits with code 2 and one line if anything is wrong: an unknown flag or key, a value
    of the wrong type, or whatever the dataclass itself refuses with a ValueError or OSError.
    `program` stands before every message, if it is not the name of the script.
    """
    parser = OneLineErrorParser(prog=program, description=description, exit_on_error=False)
    parser.usage = f"{parser.prog} [RECIPE.yaml ...] [--flag value ...]"
    parser.add_fields(config_class)
    say_when_interrupted(parser.prog)
    argv = take_arguments(argv)
    n_recipes = next((n for n, part in enumerate(argv) if part.startswith("-")), len(argv))
    paths, flags = argv[:n_recipes], [_without_no(part, config_class) for part in argv[n_recipes:]]
    known = [field.name for field in dataclasses.fields(config_class)]
    origins: Origins = {}
    try:
        entries: dict[str, str | list[str]] = {}
        for number, path in enumerate(paths):
            recipe = _read_recipe(path, config_class)
            entries |= recipe
            origins |= dict.fromkeys(recipe, (number, path))
        entries = {name: value for name, value in entries.items() if value not in EMPTY}
        origins = {name: origins[name] for name in entries}
        given = {_name_of(part) for part in flags if part.startswith("--")}
        origins |= dict.fromkeys(given, (n_recipes, None))
        for name, later in _outdated(config_class, entries, origins).items():
            parser.note(f"{origins[name][1]}: {name} is ignored, because {later} given after it")
            del entries[name], origins[name]
        in_front = [flag for name in entries.keys() - given for flag in _flags(name, entries[name])]
        namespace, left = parser.parse_known_args([*in_front, *flags])
        if left:
            raise ValueError(_stray(left[0], known))
        _refuse_long(vars(namespace))
        _places.update(_places_of(entries, origins))
        config = _made_of(config_class, vars(namespace), origins, parser)
        _refuse_without_effect(config, origins)
        written = getattr(config, getattr(config_class, "written", ""), None)
        if written is not None:
            require_apart(resolved(written), [], kept=paths)
    except argparse.ArgumentError as error:
        names = [_name_of(error.argument_name)] if error.argument_name else []
        parser.error(ArgumentError(*names, problem=readable(error.message)).located(origins))
    except ArgumentError as error:
        parser.error(error.located(origins))
    except ValueError as error:
        parser.error(with_place(str(error)))
    except OSError as error:
        parser.error(with_place(file_problem(error)))
    return config


def from_keywords(config_class: type[Config], arguments: dict[str, Any]) -> Config:
    """The dataclass of a program's keywords, under the rules of the command line.

    Raises:
        TypeError: for a name that it has not, with the nearest one, or one that must be given.
        ArgumentError: for a value of another type, or one without effect.
    """
    kinds = get_type_hints(config_class)
    known = [field.name for field in dataclasses.fields(config_class)]
    values = {}
    for name, value in arguments.items():
        if name not in known:
            raise TypeError(f"unknown argument {with_hint(name, known)}")
        try:
            values[name] = checked(kinds[name], value)
        except ValueError as error:
            raise ArgumentError(name, problem=str(error)) from None
    _refuse_long(values)
    missing = [name for name in _required(config_class) if name not in values]
    if missing:
        found = f"found no {' and no '.join(missing)}; add {missing[0]}=..."
        raise TypeError(f"expected {' and '.join(_required(config_class))}, {found}")
    config = config_class(**values)
    given = [name for name, value in values.items() if value is not None]
    _refuse_without_effect(config, dict.fromkeys(given, (0, None)))
    return config


def with_place(message: str) -> str:
    """A message about a value, with recipe and key in front if it is one of a recipe.

    Args:
        message: "VALUE: expected X, found Y".
    """
    value = next((value for value in _places if message.startswith(f"{value}: ")), None)
    return message if value is None else f"{_places[value]}: {message}"


def raw_recipe(path: str, *, flag: str) -> dict[str, Any]:
    """The entries of a recipe, every value as a text; `flag` may have been left out before `path`.

    Raises:
        ValueError: if it cannot be read, is too large, or holds something else than entries.
    """
    expected = f"{path}: expected a YAML recipe, found"
    try:
        size = Path(path).stat().st_size
        if not Path(path).is_file():  # a pipe may never end
            kind = "a directory" if Path(path).is_dir() else "no file"
            raise ValueError(f"{expected} {kind}; name a file, or a flag: --{flag} {path}")
        if Path(path).suffix.lower() not in (".yaml", ".yml"):
            kind = "no .yaml or .yml file; if it is not a recipe, pass it with its flag"
            raise ValueError(f"{expected} {kind}: --{flag} {path}")
        if size > MAX_RECIPE_BYTES:
            raise ValueError(f"{expected} {size:,} bytes of something")
        recipe = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_RecipeLoader)
        json.dumps(recipe, ensure_ascii=False).encode()  # YAML lets "\\ud800" pass for a text
    except FileNotFoundError:
        directory, name = Path(path).parent, Path(path).name
        beside = [file.name for file in directory.glob("*.y*ml")]
        close = difflib.get_close_matches(name, beside, n=1)
        hint = f"did you mean {directory / close[0]}?" if close else f"you are in {Path.cwd()}"
        raise ValueError(f"{expected} no file; {hint}") from None
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        reason += "; indent with spaces" if r"'\t'" in reason else ""
        raise ValueError(f"{expected} {reason}") from None
    except RecursionError:
        reason = "entries in entries, deeper than anything that makes sense"
        raise ValueError(f"{expected} {reason}") from None
    if not isinstance(recipe, dict):
        kind = {list: "a list", str: "a single value"}.get(type(recipe), "nothing")
        raise ValueError(f"{path}: expected `key: value` lines, found {kind}")
    return recipe


def goes_with(found: Any, values: tuple) -> bool:
    """Whether the value of another argument is one of those that `only_with` asks for."""
    if values is ADDRESS:
        return "://" in found
    chosen = found if isinstance(found, list) else [found]
    return bool(found) if values is GIVEN else any(one in values for one in chosen)


class _RecipeLoader(yaml.BaseLoader):
    """Every scalar as the text that stands there; a key that stands twice is refused.

    YAML's own types would make `no` a false, and leave 3e-4 a text. Aliases are refused: nine lines
    of them can stand for more values than memory holds.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            line = event.start_mark.line + 1
            raise yaml.YAMLError(f"*{event.anchor} in line {line}; write the value itself")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"the key {key.value!r} again in line {line}; leave one out")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _read_recipe(path: str, config_class: type) -> dict[str, str | list[str]]:
    """The entries of a recipe, of which empty ones stand for the default."""
    known = [field.name for field in dataclasses.fields(config_class)]
    recipe = raw_recipe(path, flag=getattr(config_class, "main", known[0]))
    types = get_type_hints(config_class)
    for key, value in recipe.items():
        if key not in known:
            raise ValueError(f"{path}: unknown key {with_hint(key, known)}")
        problem = _problem_of_shape(value, is_list=get_origin(types[key]) is list)
        if problem:
            raise ValueError(f"{path}: {key}: {problem}")
    return recipe


def _required(config_class: type) -> list[str]:
    """The arguments without a default."""
    none = dataclasses.MISSING
    fields = dataclasses.fields(config_class)
    return [f.name for f in fields if f.default is none and f.default_factory is none]


def _places_of(entries: dict, origins: Origins) -> dict[str, str]:
    """Where the texts of recipes stand that no flag has replaced."""
    given = ((entries.get(name), path, name) for name, (_, path) in origins.items() if path)
    return {value: f"{path}: {name}" for value, path, name in given if isinstance(value, str)}


def _outdated(config_class: type, entries: dict, origins: Origins) -> dict[str, str]:
    """Entries of a recipe that hold only for what has changed since, and that: "--model was"."""
    outdated = {}
    for name, others in getattr(config_class, "only_until", {}).items():
        number = origins[name][0] if name in entries else math.inf
        later = [f"--{other}" for other in others if origins.get(other, (-1,))[0] > number]
        if later:
            outdated[name] = f"{' and '.join(later)} {'were' if len(later) > 1 else 'was'}"
    return outdated


def _made_of(
    config_class: type[Config], values: dict, origins: Origins, parser: OneLineErrorParser
) -> Config:
    """The dataclass; what a recipe derived from values that have changed since gives way to them.

    Raises:
        ArgumentError: at the first problem that this does not solve.
    """
    while True:
        try:
            return config_class(**values)
        except ArgumentError as error:
            name, *others = error.names
            number, path = origins.get(name, (0, None))
            is_outdated = any(origins.get(other, (-1,))[0] > number for other in others)
            gives_way = name in getattr(config_class, "gives_way", ())
            if path is None or not (gives_way and is_outdated):
                raise
            parser.note(f"{error.located(origins)}; {name} of the recipe is left out")
            values[name] = parser.get_default(name)
            del origins[name]


def _problem_of_shape(value: Any, *, is_list: bool) -> str | None:
    """What is wrong with a recipe's value before one looks at its type; None if nothing is."""
    if isinstance(value, list):
        if not is_list:
            return f"expected one value, found a list of {len(value)}"
        if not all(isinstance(entry, str) for entry in value):
            return "expected a list of single values, found more below one of them"
        if flag := next((entry for entry in value if entry.startswith("-")), None):
            return f"expected values, found {flag!r}; a flag is an entry of its own in a recipe"
    elif isinstance(value, dict):
        return "expected a value, found `key: value` lines below it"
    elif is_list and value not in EMPTY:
        return f"expected a list, found {value!r}; write [{value}]"
    return None


def _flags(name: str, value: str | list[str]) -> list[str]:
    """An entry as the command line would have it; an empty list is the default of all lists."""
    if isinstance(value, str):
        return [f"--{name}={value}"]
    return [f"--{name}", *value] if value else []


def _without_no(part: str, config_class: type) -> str:
    """A part of the command line as the parser knows it: `--fast=false` for --no_fast."""
    part = with_underscores(part)
    name = part.removeprefix("--no_")
    is_switch = name != part and get_type_hints(config_class).get(name) is bool
    return f"--{name}=false" if is_switch else part


def _name_of(flag: str) -> str:
    """The argument that a flag sets: `max_steps` for --max_steps=3."""
    return flag.split("=")[0].lstrip("-")


def _stray(part: str, known: Sequence[str]) -> str:
    """What is wrong with a part of the command line that belongs to no argument."""
    if part.startswith("--"):
        return f"unknown flag {with_hint(_name_of(part), known, '--')}"
    is_of_pattern = Path(part).exists() and Path(part).suffix not in (".yaml", ".yml")
    hint = "; if the shell expanded a pattern, quote it" * is_of_pattern
    return f"expected recipes before all flags and one value for each, found {part!r}{hint}"


def _refuse_long(values: dict[str, Any]) -> None:
    """Refuses texts that are no name, path or condition, before a message repeats them.

    Raises:
        ArgumentError: at the first of them.
    """
    for name, value in values.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and len(text) > MAX_VALUE_CHARACTERS:
                problem = f"at most {MAX_VALUE_CHARACTERS:,} characters, found {len(text):,}"
                raise ArgumentError(name, problem=f"expected {problem}")


def _refuse_without_effect(config: Any, origins: Origins) -> None:
    """Refuses arguments that change nothing, because of what another one says."""
    for name, (other, values) in getattr(config, "only_with", {}).items():
        found = getattr(config, other)
        # Who switches a part of a recipe off with a flag need not edit the recipe for the rest.
        was_switched_off = origins.get(other, (-1,))[0] > origins.get(name, (-1,))[0]
        if name in origins and not goes_with(found, values) and not was_switched_off:
            needed = "without" if values == (None,) else "with"
            wanted = "" if values == (None,) else f" {' or '.join(map(shown, values))}"
            if values is GIVEN:
                wanted = " above 0" if type(found) in (int, float) else ""
            problem = f"expected {name} only {needed} {other}{wanted}, found {shown(found)}"
            raise ArgumentError(name, other, problem=f"{problem}; leave {name} out")
