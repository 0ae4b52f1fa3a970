"""Our models for other programs, and other programs' models as ours.

    python -m modeling_gpt2scratch.interchange.conversion to-gpt2 RUN OUT
    python -m modeling_gpt2scratch.interchange.conversion from-nanogpt ckpt.pt OUT
    python -m modeling_gpt2scratch.interchange.conversion from-llmc model.bin OUT

`to-gpt2` writes a stock `gpt2` model, for programs that know nothing of ours. `from-nanogpt` reads
checkpoints of nanoGPT and build-nanogpt, `from-llmc` those of llm.c. Weights keep their bits, OUT
appears complete or not at all, and no pickled code is executed.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from modeling_gpt2scratch.checkpoints.checkpoint import open_to_readers
from modeling_gpt2scratch.common.atomic_files import new_directory, require_free
from modeling_gpt2scratch.common.command_line import OneLineErrorParser
from modeling_gpt2scratch.configuration_gpt2scratch import GELU_APPROXIMATION, GPT2ScratchConfig
from modeling_gpt2scratch.data.tokens.tokenizer import (
    GPT2,
    TokenizerError,
    load_tokenizer,
    save_tokenizer,
)
from modeling_gpt2scratch.modeling_gpt2scratch import GPT2ScratchForCausalLM

from .foreign_checkpoints import (
    GPT2_VOCAB_SIZE,
    ConversionError,
    assemble,
    from_llmc,
    from_nanogpt,
    gpt2_name,
)

MARKER = "config.json"
NO_TOKENIZER = "none"

# What a stock gpt2 configuration calls by the same names, and where it refuses an int.
GPT2_FIELDS = (
    *("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "use_cache"),
    *("activation_function", "resid_pdrop", "embd_pdrop", "attn_pdrop", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)
GPT2_FLOAT_FIELDS = ("layer_norm_epsilon", "initializer_range")


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, converts, and turns what is wrong with the input into one line and an exit code."""
    arguments = _parse_arguments(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model, tokenizer = _convert(arguments)
        with new_directory(arguments.out.absolute()) as directory:
            _save(model, tokenizer, directory)
    except (ConversionError, TokenizerError, OSError) as error:
        sys.exit(f"{arguments.prog}: error: {error}")
    config = model.config
    print(
        f"{arguments.out}: {config.model_type} model of {model.num_parameters():,} parameters in "
        f"{str(model.dtype).removeprefix('torch.')}, vocabulary {config.vocab_size:,}, "
        f"activation {config.activation_function}, "
        f"{'without' if tokenizer is None else 'with'} tokenizer"
    )


def read_run(path: Path) -> tuple[GPT2ScratchForCausalLM, PreTrainedTokenizerBase | None]:
    """The model of a run or of one of its checkpoints, and its tokenizer if it has one.

    Raises:
        ConversionError: if it is no model of ours, or not a whole one.
        TokenizerError: if the tokenizer cannot be loaded.
    """
    try:
        model_type = json.loads((path / MARKER).read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ConversionError(
            f"{path}: expected a finished run or one of its checkpoint-N, found {error}"
        ) from error
    if model_type != GPT2ScratchConfig.model_type:
        raise ConversionError(
            f"{path}: expected a {GPT2ScratchConfig.model_type} model, found {model_type}"
        )
    try:
        model, report = GPT2ScratchForCausalLM.from_pretrained(
            path.absolute(), dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True
        )
    except Exception as error:  # transformers passes on whatever its readers raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConversionError(f"{path}: cannot be loaded: {reason}") from error
    for problem in ("mismatched_keys", "missing_keys", "unexpected_keys"):
        if report[problem]:
            raise ConversionError(
                f"{path}: expected the tensors of its config.json, found "
                f"{problem.replace('_', ' ')}: {', '.join(sorted(map(str, report[problem]))[:3])}"
            )
    has_tokenizer = (path / "tokenizer_config.json").is_file()
    return model, load_tokenizer(str(path.absolute())) if has_tokenizer else None


def to_gpt2(model: GPT2ScratchForCausalLM) -> GPT2LMHeadModel:
    """The same model in transformers' own class, whose projections keep their weights transposed.

    Both share their memory.
    """
    fields = {name: getattr(model.config, name) for name in GPT2_FIELDS}
    fields |= {name: float(getattr(model.config, name)) for name in GPT2_FLOAT_FIELDS}
    fields["n_ctx"] = model.config.n_positions  # an old name, which llama.cpp's converter reads
    tensors = {}
    for name, tensor in model.state_dict().items():
        is_projection = gpt2_name(name) != name and name.endswith(".weight")
        tensors[gpt2_name(name)] = tensor.t() if is_projection else tensor
    stock = assemble(GPT2LMHeadModel, GPT2Config(**fields), tensors)
    stock.generation_config = model.generation_config
    return stock


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The checked arguments; exits with code 2 and one line if anything is wrong with them."""
    parser = OneLineErrorParser(prog="modeling_gpt2scratch.interchange.conversion")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, source, help in (
        ("to-gpt2", "RUN", "a run of ours -> stock gpt2"),
        ("from-nanogpt", "CKPT.PT", "a checkpoint of nanoGPT or build-nanogpt -> ours"),
        ("from-llmc", "MODEL.BIN", "a checkpoint of llm.c -> ours"),
    ):
        command_parser = commands.add_parser(command, help=help, allow_abbrev=False)
        command_parser.set_defaults(prog=command_parser.prog)
        add = command_parser.add_argument
        add("source", metavar=source, type=Path)
        add("out", metavar="OUT", type=Path, help="directory to make")
        add("--overwrite", action="store_true", help="replace the model in OUT")
        if command != "to-gpt2":
            add("--tokenizer", help="gpt2, a directory, a repository of the Hub, or none")
        if command == "from-nanogpt":
            add("--n_head", type=_positive, help="attention heads, if the file has only weights")
            add(
                "--activation",
                choices=tuple(GELU_APPROXIMATION),
                help="if not the one of the repository today",
            )
            add("--vocab_size", type=_positive, help="rows of the embedding to keep")
    arguments = parser.parse_args(argv)
    source, out = arguments.source.absolute(), arguments.out.absolute()
    try:
        require_free(out, marker=MARKER, overwrite=arguments.overwrite)
        if source.resolve().is_relative_to(out.resolve()):
            raise FileExistsError(f"expected OUT not to hold {source}, found {out}; choose another")
    except FileExistsError as error:
        parser.exit(2, f"{arguments.prog}: error: {error}\n")
    return arguments


def _positive(text: str) -> int:
    """A number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return int(text)


def _convert(
    arguments: argparse.Namespace,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """The model and the tokenizer to write."""
    if arguments.command == "to-gpt2":
        model, tokenizer = read_run(arguments.source)
        return to_gpt2(model), tokenizer
    if arguments.command == "from-llmc":
        model = from_llmc(arguments.source)
    else:
        model = from_nanogpt(
            arguments.source,
            n_head=arguments.n_head,
            activation=arguments.activation,
            vocab_size=arguments.vocab_size,
        )
    tokenizer = _tokenizer_for(model.config.vocab_size, arguments.tokenizer)
    if tokenizer is not None:
        tokenizer.model_max_length = model.config.n_positions
        for config in (model.config, model.generation_config):
            config.bos_token_id = tokenizer.bos_token_id
            config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.eos_token_id
    return model, tokenizer


def _tokenizer_for(vocab_size: int, name: str | None) -> PreTrainedTokenizerBase | None:
    """The tokenizer of this name; if None, GPT-2's for a vocabulary of its size."""
    if name is None and vocab_size != GPT2_VOCAB_SIZE:
        print(f"no tokenizer known for {vocab_size:,} entries; --tokenizer names one")
        return None
    if name == NO_TOKENIZER:
        return None
    try:
        tokenizer = load_tokenizer(name or GPT2)
    except TokenizerError as error:
        raise TokenizerError(f"{error}; or --tokenizer {NO_TOKENIZER}") from error
    if len(tokenizer) > vocab_size:
        raise TokenizerError(
            f"{name}: expected at most {vocab_size:,} entries as in the model, found "
            f"{len(tokenizer):,}; name another tokenizer, or {NO_TOKENIZER}"
        )
    return tokenizer


def _save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, directory: Path
) -> None:
    """Model and tokenizer as `from_pretrained` reads them."""
    try:
        model.save_pretrained(directory)
    except (SafetensorError, ValueError) as error:
        raise OSError(f"the model cannot be written: {error}") from error
    if tokenizer is not None:
        save_tokenizer(tokenizer, directory)
        if isinstance(model, GPT2LMHeadModel):
            _save_classic_vocabulary(tokenizer, directory)
    open_to_readers(directory.iterdir())


def _save_classic_vocabulary(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """OpenAI's vocab.json and merges.txt, for tools and older transformers that read only these.

    They describe a byte-level BPE with GPT-2's pre-tokenization, and no other tokenizer.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    pre_tokenizer = state["pre_tokenizer"] or {}
    if state["model"]["type"] == "BPE" and pre_tokenizer.get("type") == "ByteLevel":
        tokenizer.backend_tokenizer.model.save(str(directory))


if __name__ == "__main__":
    main()
