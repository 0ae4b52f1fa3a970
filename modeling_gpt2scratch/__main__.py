"""Everything around prepare_data.py, train_accelerate.py and evaluate/compare.py."""

import importlib
import sys
from collections.abc import Sequence

from modeling_gpt2scratch import __version__
from modeling_gpt2scratch.common.argument_parser import OneLineErrorParser, say_when_interrupted
from modeling_gpt2scratch.common.console import readable_output
from modeling_gpt2scratch.common.interruptions import Interruptible

PROGRAM = "gpt2scratch"
# Each is a module of `commands/`, which is imported only if it is called.
VERBS = {
    "doctor": "check that this machine can train",
    "launch": "start a script on several processes, as accelerate launch does",
    "shards": "inspect, verify, adopt, convert, merge and publish token shards",
    "convert": "exchange models with transformers' gpt2, nanoGPT and llm.c",
    "sample": "generate text, in one go or prompt by prompt",
    "serve": "serve a model through an OpenAI-compatible API",
    "publish": "upload a run to the Hugging Face Hub",
    "report": "write a page about a run, with its curves",
    "plot": "draw the losses of runs",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Hands the words after the verb to the verb."""
    with readable_output():
        _hand_on(sys.argv[1:] if argv is None else list(argv))


def _hand_on(words: list[str]) -> None:
    """Calls the verb that the first word names."""
    parser = OneLineErrorParser(prog=PROGRAM, description=__doc__)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    verbs = parser.add_subparsers(title="verbs", dest="verb", required=True, metavar="VERB")
    for verb, help in VERBS.items():
        verbs.add_parser(verb, help=help)
    verb = parser.parse_args(words[:1] or ["--help"]).verb
    say_when_interrupted(f"{PROGRAM} {verb}")
    with Interruptible(f"{PROGRAM} {verb}") as ctrl_c, ctrl_c.ending_at_once():
        module = importlib.import_module(f"modeling_gpt2scratch.commands.{verb}")
    module.main(words[1:])


if __name__ == "__main__":
    main()
