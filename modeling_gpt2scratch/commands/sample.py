"""Generates text: `gpt2scratch sample runs/quickstart --prompt "Returns the"`.

MODEL is a run, one of its checkpoints, or any causal language model of transformers, in a directory
or on the Hub (OWNER/NAME or OWNER/NAME@REVISION). Several models continue the same prompts
with the same seeds. Without a prompt, you type prompts one by one. The same seed gives the same
text.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from modeling_gpt2scratch.common.argument_parser import OneLineErrorParser, number
from modeling_gpt2scratch.common.console import activity, tell
from modeling_gpt2scratch.common.errors import ending_in_one_line
from modeling_gpt2scratch.common.interruptions import Interruptible
from modeling_gpt2scratch.common.sampling import TEMPERATURE, TOP_K
from modeling_gpt2scratch.common.threads import let_waiting_threads_rest
from modeling_gpt2scratch.common.user_cache import user_cache

PROGRAM = "gpt2scratch sample"
HISTORY_NAME = "sample_history"
STANDARD_INPUT = "-"


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, writes, and turns what is wrong with the input into one line and an exit code."""
    arguments = _parse_arguments(argv)
    with ending_in_one_line(PROGRAM, ValueError):
        _write(arguments, [*arguments.prompt, *_prompts_of(arguments.prompts_file)])


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The checked arguments; exits with code 2 and one line if anything is wrong with them."""
    parser = OneLineErrorParser(prog=PROGRAM, description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="models to sample from")
    add = parser.add_argument_group("prompts").add_argument
    help = "how a text begins; empty for the beginning of a document"
    add("--prompt", nargs="+", action="extend", default=[], metavar="TEXT", help=help)
    help = f"one prompt per line, {STANDARD_INPUT} for the standard input"
    add("--prompts_file", metavar="FILE", help=help)
    add = parser.add_argument_group("sampling").add_argument
    whole = {"metavar": "INTEGER"}
    add("--num_samples", type=number(int, 1), default=1, **whole, help="texts for each prompt")
    help = "tokens to generate; when the context window is full, the oldest tokens are dropped"
    add("--max_new_tokens", type=number(int, 1), default=200, **whole, help=help)
    help = "0 takes the likeliest token, 1 the model's own distribution"
    add("--temperature", type=number(float, 0), default=TEMPERATURE, metavar="NUMBER", help=help)
    help = "sample from this many of the likeliest tokens, 0 for all"
    add("--top_k", type=number(int, 0), default=TOP_K, **whole, help=help)
    help = "sample from the likeliest tokens that together have this probability"
    add("--top_p", type=number(float, 0, 1), default=1.0, metavar="NUMBER", help=help)
    help = "seed of the first text of each prompt; the next text has the next seed"
    add("--seed", type=number(int, 0, 2**62), default=0, **whole, help=help)
    help = "run code that comes with a model"
    parser.add_argument("--trust_remote_code", action="store_true", help=help)
    arguments = parser.parse_args(argv)
    is_asked = bool(arguments.prompt) or arguments.prompts_file is not None
    if not is_asked and not (sys.stdin.isatty() and sys.stdout.isatty()):
        parser.error("expected --prompt, --prompts_file or a terminal, found none")
    return arguments


def _prompts_of(file: str | None) -> list[str]:
    """The lines of a file that are not empty.

    Raises:
        ValueError: if there is none, or it is no text.
    """
    if file is None:
        return []
    try:
        content = sys.stdin.buffer.read() if file == STANDARD_INPUT else Path(file).read_bytes()
        lines = content.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected text in UTF-8, found {error}") from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise ValueError(f"{file}: expected one prompt per line, found none")
    return prompts


def _write(arguments: argparse.Namespace, prompts: Sequence[str]) -> None:
    """Loads the models, then writes, or asks for prompts where there is none.

    Raises:
        ValueError: if a model cannot be loaded or cannot write.
    """
    let_waiting_threads_rest()
    with Interruptible(PROGRAM) as ctrl_c:
        with activity(f"loading {', '.join(arguments.models)}"):
            with ctrl_c.ending_at_once():
                from modeling_gpt2scratch.distributed.processes import quiet_transformers
                from modeling_gpt2scratch.generation.conversation import converse
                from modeling_gpt2scratch.generation.text_generator import (
                    Sampling,
                    load_generator,
                    write_samples,
                )
            quiet_transformers()
            trust = {"trust_remote_code": arguments.trust_remote_code}
            generators = [load_generator(name, **trust) for name in arguments.models]
        for name, generator in zip(arguments.models, generators, strict=True):
            if Path(generator.name) != Path(name):
                tell(f"{name}: the run has not finished; using {generator.name}", file=sys.stderr)
        names = ("temperature", "top_k", "top_p", "max_new_tokens")
        sampling = Sampling(**{name: getattr(arguments, name) for name in names})
        texts = {"n": arguments.num_samples, "seed": arguments.seed}
        if prompts:
            write_samples(generators, prompts, sampling, **texts)
            return
    # Ctrl-C ends a text there, not the program.
    converse(generators, sampling, **texts, history=user_cache() / HISTORY_NAME)
