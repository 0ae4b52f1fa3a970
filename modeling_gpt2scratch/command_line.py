"""A dataclass as the only source of a script's command line: a YAML recipe first, flags over it."""

import dataclasses
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from transformers import HfArgumentParser

Config = TypeVar("Config")


def argument(help: str, **default) -> Any:
    """A dataclass field with a help text."""
    return dataclasses.field(metadata={"help": help}, **default)


def check_numbers(config: Any, *, positive: Sequence[str], non_negative: Sequence[str]) -> None:
    """Refuses fields outside their range, which ends below 2**63; None passes.

    Raises:
        ValueError: at the first such field.
    """
    for name in (*positive, *non_negative):
        value = getattr(config, name)
        bound = "above 0" if name in positive else "of at least 0"
        in_range = value is None or 0 < value < 2**63 or (value == 0 and name in non_negative)
        if not in_range:
            raise ValueError(f"expected --{name} {bound}, found {value}")


def parse_config(
    config_class: type[Config], *, description: str | None, argv: Sequence[str] | None = None
) -> Config:
    """Reads `[RECIPE.yaml] [--flag value ...]` into a dataclass.

    The recipe's entries become flags in front of the user's, so that both go through the same
    types and checks and the user's win. Exits with code 2 and one line if anything is wrong: an
    unknown flag or key, a value of the wrong type, or whatever the dataclass itself refuses with a
    ValueError or FileExistsError.
    """
    parser = OneLineErrorParser(config_class, description=description, allow_abbrev=False)
    argv = list(sys.argv[1:] if argv is None else argv)
    parser.usage = f"{parser.prog} [RECIPE.yaml] [--flag value ...]"
    try:
        if argv and not argv[0].startswith("-"):
            argv = _flags_of_recipe(Path(argv[0]), config_class) + argv[1:]
        (config,) = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    return config


class OneLineErrorParser(HfArgumentParser):
    """A parser whose complaint is one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _flags_of_recipe(path: Path, config_class: type) -> list[str]:
    """The entries of a recipe as command-line flags; an empty entry leaves the default."""
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: expected a YAML recipe, found {reason}") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"{path}: expected `key: value` lines, found {type(recipe).__name__}")
    known = [entry.name for entry in dataclasses.fields(config_class)]
    for key in recipe:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
            raise ValueError(f"{path}: unknown key {key!r}{hint}")
    return [
        part
        for key, value in recipe.items()
        if value is not None
        for part in (f"--{key}", *(map(str, value) if isinstance(value, list) else [str(value)]))
    ]
