"""Fills in the pages what the code says better: arguments of a script, help of a command.

A line `<!-- arguments: MODULE:DATACLASS -->` becomes a table for each group of arguments, a line
`<!-- help: VERB -->` the output of `gpt2scratch VERB --help`.
"""

import contextlib
import dataclasses
import importlib
import io
import os
import re
import runpy
import sys
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from unittest import mock

ARGUMENTS = re.compile(r"^<!-- arguments: ([\w.]+):(\w+) -->$", re.MULTILINE)
HELP = re.compile(r"^<!-- help:((?: [\w-]+)*) -->$", re.MULTILINE)
DEFAULTS_OF_THE_MACHINE = {"num_workers": "one for each core; 1 for a little text"}
HELP_COLUMNS = "88"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with every marked line replaced; mkdocs calls it for each page."""
    markdown = ARGUMENTS.sub(lambda found: argument_tables(*found.groups()), markdown)
    return HELP.sub(lambda found: help_of(found[1].split()), markdown)


def argument_tables(module: str, name: str) -> str:
    """Markdown tables of a dataclass's fields, under a heading for each group."""
    config_class = getattr(importlib.import_module(module), name)
    types_of = get_type_hints(config_class)
    groups: dict[str | None, list[str]] = {}
    for field in dataclasses.fields(config_class):
        cells = (f"`--{field.name}`", type_text(types_of[field.name]), default_text(field))
        row = " | ".join([*cells, field.metadata["help"].replace("|", r"\|")])
        groups.setdefault(field.metadata.get("group"), []).append(f"| {row} |")
    parts = []
    for group, rows in groups.items():
        parts += [f"## {group[0].upper()}{group[1:]}", ""] if group else []
        parts += ["| argument | value | default | |", "|---|---|---|---|", *rows, ""]
    return "\n".join(parts)


def type_text(annotation: Any) -> str:
    """A type as the command line has it: `int`, `a or b`, several of them."""
    if get_origin(annotation) is Literal:
        return " ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) is list:
        return f"{type_text(get_args(annotation)[0])}, several"
    if get_origin(annotation) in (types.UnionType, Union):
        return " or ".join(
            type_text(kind) for kind in get_args(annotation) if kind is not types.NoneType
        )
    return {str: "text", int: "integer", float: "number", bool: "`true`&nbsp;`false`"}[annotation]


def default_text(field: dataclasses.Field) -> str:
    """The default as one would type it; required arguments say so."""
    if field.name in DEFAULTS_OF_THE_MACHINE:
        return DEFAULTS_OF_THE_MACHINE[field.name]
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is not dataclasses.MISSING:
        value = field.default
    else:
        return "**required**"
    if value is None or value == [] or value == "":
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:_}`" if isinstance(value, int) else f"`{value}`"


def help_of(words: list[str]) -> str:
    """What `gpt2scratch WORDS --help` prints, as a block of text."""
    output = io.StringIO()
    with (
        mock.patch.dict(os.environ, COLUMNS=HELP_COLUMNS),
        mock.patch.object(sys, "argv", ["gpt2scratch", *words, "--help"]),
        contextlib.redirect_stdout(output),
        contextlib.suppress(SystemExit),
    ):
        runpy.run_module("modeling_gpt2scratch", run_name="__main__", alter_sys=False)
    if "usage:" not in output.getvalue():
        raise ValueError(f"expected the help of gpt2scratch {' '.join(words)}, found none")
    return f"```text\n{output.getvalue().strip()}\n```"
