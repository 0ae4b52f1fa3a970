"""Our models for other programs, and other programs' models as ours.

    gpt2scratch convert to-gpt2 RUN OUT
    gpt2scratch convert from-nanogpt ckpt.pt OUT
    gpt2scratch convert from-llmc model.bin OUT

`to-gpt2` writes a stock `gpt2` model, for programs that know nothing of ours. `from-nanogpt` reads
checkpoints of nanoGPT and build-nanogpt, `from-llmc` those of llm.c. Weights keep their bits, OUT
appears complete or not at all, and no pickled code is executed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from modeling_gpt2scratch.common.argument_parser import OneLineErrorParser, number
from modeling_gpt2scratch.common.errors import ending_in_one_line
from modeling_gpt2scratch.common.interruptions import Interruptible
from modeling_gpt2scratch.common.output_directory import (
    CONVERTED_MODEL,
    OutputError,
    making,
    output_directory,
    require_apart,
)

PROGRAM = "gpt2scratch convert"
# The configuration's, which loads transformers.
ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "gelu")


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, converts, and turns what is wrong with the input into one line and an exit code."""
    arguments = _parse_arguments(argv)
    with Interruptible(PROGRAM) as ctrl_c, ctrl_c.ending_at_once():
        from modeling_gpt2scratch.distributed.processes import quiet_transformers
        from modeling_gpt2scratch.interchange.conversion import limits_in_llama_cpp, save_converted

    quiet_transformers()
    rule = {"marker": CONVERTED_MODEL, "overwrite": arguments.overwrite}
    with ending_in_one_line(f"{PROGRAM} {arguments.direction}"):
        model, tokenizer = _convert(arguments)
        require_apart(arguments.out.resolve(), [arguments.source])
        with making(arguments.out, **rule) as directory:
            save_converted(model, tokenizer, directory)
        config = model.config
        print(
            f"{arguments.out}: {config.model_type} model of {model.num_parameters():,} parameters "
            f"in {str(model.dtype).removeprefix('torch.')}, vocabulary {config.vocab_size:,}, "
            f"activation {config.activation_function}, "
            f"{'without' if tokenizer is None else 'with'} tokenizer"
        )
        if config.model_type == "gpt2":
            for line in limits_in_llama_cpp(model, arguments.out):
                print(line)


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The checked arguments; exits with code 2 and one line if anything is wrong with them."""
    parser = OneLineErrorParser(prog=PROGRAM, description=__doc__)
    directions = parser.add_subparsers(
        title="directions", dest="direction", required=True, metavar="DIRECTION"
    )
    for direction, source, of_source, help in (
        ("to-gpt2", "RUN", "directory of a run or a checkpoint", "one of our runs -> stock gpt2"),
        (
            *("from-nanogpt", "CKPT.PT", "checkpoint of nanoGPT or build-nanogpt"),
            "a checkpoint of nanoGPT or build-nanogpt -> ours",
        ),
        ("from-llmc", "MODEL.BIN", "checkpoint of llm.c", "a checkpoint of llm.c -> ours"),
    ):
        own = directions.add_parser(direction, help=help, description=help)
        own.set_defaults(parser=own)
        own.add_argument("source", metavar=source, type=Path, help=of_source)
        own.add_argument("out", metavar="OUT", type=Path, help="directory to make")
        own.add_argument("--overwrite", action="store_true", help="replace the model in OUT")
        if direction != "to-gpt2":
            help = "gpt2, a directory, a repository on the Hub, or none"
            own.add_argument("--tokenizer", metavar="NAME", help=help)
        if direction == "from-nanogpt":
            help = "attention heads, if the file has only weights"
            own.add_argument("--n_head", metavar="INTEGER", type=number(int, 1), help=help)
            help = "activation, if it differs from the one in the repository's current code"
            own.add_argument("--activation", choices=ACTIVATIONS, help=help)
            help = "rows of the embedding to keep"
            own.add_argument("--vocab_size", metavar="INTEGER", type=number(int, 1), help=help)
    arguments = parser.parse_args(argv)
    try:
        arguments.out = output_directory(
            arguments.out,
            marker=CONVERTED_MODEL,
            overwrite=arguments.overwrite,
            kept=[arguments.source, getattr(arguments, "tokenizer", None)],
            flag="OUT",
        )
    except OutputError as error:
        arguments.parser.error(str(error))
    return arguments


def _convert(arguments: argparse.Namespace):
    """The model and the tokenizer to write, None in place of one that is not known."""
    from modeling_gpt2scratch.interchange.conversion import give_tokenizer, read_run, to_gpt2
    from modeling_gpt2scratch.interchange.foreign_checkpoints import from_llmc, from_nanogpt

    if arguments.direction == "to-gpt2":
        model, tokenizer = read_run(arguments.source)
        return to_gpt2(model), tokenizer
    if arguments.direction == "from-llmc":
        model = from_llmc(arguments.source)
    else:
        model = from_nanogpt(
            arguments.source,
            n_head=arguments.n_head,
            activation=arguments.activation,
            vocab_size=arguments.vocab_size,
        )
    return model, give_tokenizer(model, arguments.tokenizer)
