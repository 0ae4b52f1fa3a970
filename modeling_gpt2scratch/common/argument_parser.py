"""argparse as every command here uses it: an error is one line, and help names each flag once.

It loads neither torch nor transformers, so that `--help` and a wrong flag are answered at once.
"""

import argparse
import contextlib
import dataclasses
import difflib
import itertools
import numbers
import os
import re
import sys
import textwrap
import types
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from .addresses import redacted
from .console import tell

TRUTHS = ("true", "yes", "t", "y", "1")
UNTRUTHS = ("false", "no", "f", "n", "0")
# What stands for a value in `--help`.
PLACEHOLDERS = {str: "TEXT", int: "INTEGER", float: "NUMBER"}
WRONG_CHOICE = re.compile(
    r"(?:argument (\S+): )?invalid choice: (['\"])(.*)\2 \(choose from (.*)\)", re.DOTALL
)
WRONG_TYPE = re.compile(r"invalid (\w+) value: ")
# What other training scripts call it: nanoGPT, build-nanogpt, llm.c and the Trainer.
OTHER_NAMES = {
    "learning_rate": "lr",
    "min_learning_rate": "min_lr",
    "max_steps": "steps max_iters lr_decay_iters num_iterations num_train_epochs epochs",
    "micro_batch_size": "bs batch_size per_device_train_batch_size train_batch_size",
    "total_batch_tokens": "gradient_accumulation_steps grad_accum_steps total_batch_size",
    "batch_tokens": "bs batch_size",
    "n_positions": "block_size context_length max_seq_len",
    "mixed_precision": "dtype bf16 fp16",
    "max_grad_norm": "grad_clip",
    "eval_every": "eval_steps eval_interval eval_strategy val_loss_every",
    "eval_tokens": "eval_iters val_max_steps",
    "save_every": "save_steps save_interval save_strategy checkpoint_every",
    "keep_checkpoints": "save_total_limit",
    "log_every": "logging_steps log_interval",
    "schedule": "decay_lr lr_scheduler_type",
    "init_from": "model_name_or_path",
    "resume": "resume_from_checkpoint resume_from",
    "output_dir": "out_dir out run_name wandb_run_name experiment_name",
    "overwrite": "overwrite_output_dir force",
    "report_to": "wandb wandb_log",
    "project": "wandb_project",
    "data": "dataset dataset_name train_files input_bin",
    "dataset": "dataset_name data data_files input",
    "val_fraction": "val_split validation_split test_size",
    "push_to_hub": "hub_model_id repo_id",
    "models": "model model_name_or_path pretrained",
}
# argparse itself takes -1e-9 and -inf for flags.
NEGATIVE_NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$|-(inf(inity)?|nan)$", re.IGNORECASE)
FLAG = re.compile(r"--[\w-]+(=[^ ]*)?")  # and no text that begins like one
MOST_NAMES_SHOWN = 12  # more are not read in one line
KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "True or False"}


class OneLineErrorParser(argparse.ArgumentParser):
    """A parser whose complaint is one line, without the usage before it, on each machine.

    It takes `--max-steps` for `--max_steps`, and its help names the defaults.
    """

    def __init__(self, **options):
        super().__init__(formatter_class=_HelpFormatter, allow_abbrev=False, **options)
        self._negative_number_matcher = NEGATIVE_NUMBER

    def add_fields(self, config_class: type) -> None:
        """One flag for each field of a dataclass, under the headings that the fields name."""
        types_of_fields = get_type_hints(config_class)
        headings: dict[str | None, Any] = {None: self}
        for field in dataclasses.fields(config_class):
            options = _way_to_read(types_of_fields[field.name])
            if field.default_factory is not dataclasses.MISSING:
                options["default"] = field.default_factory()
            elif field.default is not dataclasses.MISSING:
                options["default"] = field.default
            else:
                options["required"] = True
            group = field.metadata.get("group")
            if group not in headings:
                headings[group] = self.add_argument_group(group)
            help = field.metadata.get("help", "").replace("%", "%%")
            headings[group].add_argument(f"--{field.name}", help=help, **options)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None):
        args = [with_underscores(part) for part in (sys.argv[1:] if args is None else args)]
        for part in args:
            try:
                part.encode()
            except UnicodeEncodeError:  # what is recorded could not be written
                self.error(f"expected arguments in UTF-8, found {ascii(part)}")
        self._refuse_unknown(args)
        return super().parse_known_args(args, namespace)

    def _refuse_unknown(self, args: Sequence[str]) -> None:
        """Ends at a flag that does not exist, before argparse misses those that were meant."""
        if self._subparsers is not None:  # what follows the name of a command is the command's
            args = list(itertools.takewhile(lambda part: part.startswith("-"), args))
        args = args[: args.index("--")] if "--" in args else args
        known = [*self._option_string_actions]
        if {"-h", "--help"} & {*args} & {*known}:
            return
        for part in args:
            flag = part.partition("=")[0]
            if FLAG.fullmatch(part) and flag not in known:
                names = [name.removeprefix("--") for name in known if name.startswith("--")]
                names = [name for name in names if name != "help"] or ["help"]
                self.error(f"unknown flag {with_hint(flag[2:], names, '--')}")

    def note(self, message: str) -> None:
        """Writes one line, and goes on."""
        if _is_first_of_machine():
            tell(f"{self.prog}: note: {message}", file=sys.stderr)

    def error(self, message: str) -> NoReturn:
        """Exits with code 2 and one line."""
        line = f"{self.prog}: error: {redacted(readable(message))}\n"
        self.exit(2, line if _is_first_of_machine() else None)


def with_underscores(part: str) -> str:
    """A flag under its own name, `--max_steps=3` for --max-steps=3; anything else as it is."""
    flag, equals, value = part.partition("=")
    is_flag = re.fullmatch(r"--[\w-]+", flag)  # and no text that begins like one
    return f"--{flag[2:].replace('-', '_')}{equals}{value}" if is_flag else part


def with_hint(name: str, known: Sequence[str], dashes: str = "") -> str:
    """The name and the one that was meant, or the few that there are, or where they are listed."""
    close = [own for own, others in OTHER_NAMES.items() if own in known and name in others.split()]
    close = close or difflib.get_close_matches(name, known, n=1)
    if close:
        return f"{dashes}{name}; did you mean {dashes}{close[0]}?"
    hint = "see --help" if len(known) > MOST_NAMES_SHOWN else f"known: {', '.join(known)}"
    return f"{dashes}{name}; {hint}"


def say_when_interrupted(program: str) -> None:
    """From now on, Ctrl-C that nobody catches ends this process in one line and with code 130."""

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
            return
        if _is_first_of_machine():
            tell(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)

    sys.excepthook = hook


def number(kind: type, least: float, most: float = float("inf")) -> Callable[[str], float]:
    """A `type` for argparse: an int or a float within these bounds."""
    bounds = f"of at least {least}" if most == float("inf") else f"from {least} to {most}"

    def read(text: str) -> float:
        with contextlib.suppress(ValueError):
            found = kind(text)
            if least <= found <= most and found != float("inf"):
                return found
        raise argparse.ArgumentTypeError(f"expected {KINDS[kind]} {bounds}, found {text!r}")

    return read


def checked(kind: Any, value: Any) -> Any:
    """A program's value as a field of this type holds it: a path as a text, one entry as a list.

    Raises:
        ValueError: "expected X, found Y".
    """
    if get_origin(kind) in (Union, types.UnionType):
        if value is None:
            return None
        (kind,) = (one for one in get_args(kind) if one is not types.NoneType)
    if get_origin(kind) is list:
        parts = value if isinstance(value, list | tuple) else [value]
        return [checked(*get_args(kind), part) for part in parts]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, numbers.Number) or type(value).__name__ == "bool":
        value = getattr(value, "item", lambda: value)()  # numpy's
    if isinstance(value, str):
        value = str.__str__(value)  # and no class of somebody's own
    elif type(value) is int and kind in (str, float):  # micro_batch_size=4, learning_rate=1
        with contextlib.suppress(OverflowError):  # of a number that no float holds
            value = kind(value)
    choices = get_args(kind)
    if value not in choices if choices else type(value) is not kind or value == "":
        wanted = f"one of {', '.join(map(repr, choices))}" if choices else KINDS[kind]
        raise ValueError(f"expected {wanted}, found {value!r}")
    return value


def readable(message: str) -> str:
    """argparse's complaint in our words; about a wrong choice, with the nearest right one."""
    kinds = {kind.__name__: words for kind, words in KINDS.items()}
    message = WRONG_TYPE.sub(lambda m: f"expected {kinds.get(m[1], m[1])}, found ", message)
    found = WRONG_CHOICE.fullmatch(message)
    if found is None:
        return message
    name, value, choices = found[1], found[3], re.findall(r"[\w.-]+", found[4])
    near = difflib.get_close_matches(value, choices, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    place = f"{name}: " if name else ""
    return f"{place}expected one of {', '.join(choices)}, found {value!r}{hint}"


def shown(value: Any) -> str:
    """A value as the command line would have it, or none."""
    if value in (None, []):
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_first_of_machine() -> bool:
    """Whether this is the only process of a machine, or the one that speaks for all."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _way_to_read(kind: Any) -> dict[str, Any]:
    """How argparse is to read a field of this type."""
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (one for one in get_args(kind) if one is not types.NoneType)
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    if get_origin(kind) is list:
        return _way_to_read(*get_args(kind)) | {"nargs": "+", "action": _Extend}
    if kind is bool:
        return {"type": _truth, "nargs": "?", "const": True, "metavar": "true|false"}
    return {"type": _text if kind is str else kind, "metavar": PLACEHOLDERS[kind]}


def _text(text: str) -> str:
    """As it is, but what a shell makes of a variable that is not set is not taken for a value."""
    if not text:
        raise argparse.ArgumentTypeError("expected a text, found none; leave the flag out")
    return text


def _truth(text: str) -> bool:
    """What a word says."""
    if text.lower() not in (*TRUTHS, *UNTRUTHS):
        raise argparse.ArgumentTypeError(f"expected true or false, found {text!r}")
    return text.lower() in TRUTHS


class _Extend(argparse.Action):
    """All values of a flag that is given several times, in place of its default."""

    def __call__(self, parser, namespace, values, option_string=None):
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if before is self.default else before), *values])


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help that says what must be given, and the default of what has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        help = action.help or ""
        if not action.option_strings or action.nargs == 0:
            return help
        if action.required:
            return f"{help} [required]"
        if action.default in (None, argparse.SUPPRESS, []):
            return help
        return f"{help} [default: {shown(action.default).replace('%', '%%')}]"

    def _split_lines(self, text: str, width: int) -> list[str]:
        # Unlike argparse, which breaks names at their hyphens.
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)
