"""Looks at token shards, checks them, and exchanges them with other programs.

    python -m modeling_gpt2scratch.data.shards.format inspect PATH... [--tokenizer gpt2]
    python -m modeling_gpt2scratch.data.shards.format verify DIR [--fast]
    python -m modeling_gpt2scratch.data.shards.format convert SOURCE... OUTPUT_DIR --to ours|llm.c
    python -m modeling_gpt2scratch.data.shards.format merge DIR

`inspect` describes data directories and single token files, whoever wrote them. `verify` holds a
data directory against its manifest and prints every fault. `convert` makes a data directory of
files of build-nanogpt, llm.c, modded-nanogpt and nanoGPT, or llm.c's files of a data directory.
`merge` completes what the tasks of a datatrove pipeline wrote.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tabulate import tabulate
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from modeling_gpt2scratch.common.command_line import OneLineErrorParser
from modeling_gpt2scratch.data.shards.conversion import to_llmc, to_ours
from modeling_gpt2scratch.data.shards.format import MAX_SHARD_TOKENS, ShardError
from modeling_gpt2scratch.data.shards.manifest import MANIFEST_NAME, Manifest
from modeling_gpt2scratch.data.shards.merging import PART_PATTERN, merge_parts
from modeling_gpt2scratch.data.shards.token_files import (
    NANOGPT,
    TokenFile,
    read_token_file,
    token_files,
)
from modeling_gpt2scratch.data.shards.verification import problems_of
from modeling_gpt2scratch.data.tokens.ids import token_dtype
from modeling_gpt2scratch.data.tokens.tokenizer import GPT2, TokenizerError, load_tokenizer

PROGRAM = "token_shards"
OURS, LLMC = "ours", "llm.c"
DEFAULT_SHARD_TOKENS = 100_000_000
TOKENS_SHOWN = 32


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, works, and turns what is wrong with the input into one line and an exit code."""
    arguments = _parser().parse_args(argv)
    transformers_logging.set_verbosity_error()
    try:
        code = arguments.run(arguments)
    except (ShardError, TokenizerError, OSError) as error:
        sys.exit(f"{PROGRAM} {arguments.command}: error: {error}")
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineErrorParser(
        prog=PROGRAM,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    format_help = "the files have no header, whatever their names"

    inspect = commands.add_parser("inspect", help="describe directories and files")
    inspect.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    inspect.add_argument("--tokenizer", help="show the first tokens of files as text")
    inspect.add_argument("--format", choices=[NANOGPT], help=format_help)
    inspect.set_defaults(run=_inspect)

    verify = commands.add_parser("verify", help="hold a directory against its manifest")
    verify.add_argument("directory", type=Path, metavar="DIR")
    verify.add_argument("--fast", action="store_true", help="sizes and headers only")
    verify.set_defaults(run=_verify)

    convert = commands.add_parser("convert", help="from and to other programs' files")
    convert.add_argument("sources", nargs="+", type=Path, metavar="SOURCE")
    convert.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR")
    convert.add_argument("--to", choices=[OURS, LLMC], required=True)
    convert.add_argument("--tokenizer", default=GPT2, help="that wrote the files (gpt2)")
    convert.add_argument("--val", nargs="+", type=Path, default=[], help="files of this split")
    convert.add_argument("--format", choices=[NANOGPT], help=format_help)
    convert.add_argument("--shard_tokens", type=_shard_tokens, default=DEFAULT_SHARD_TOKENS)
    convert.add_argument("--name", help="how llm.c's files begin, otherwise as OUTPUT_DIR")
    convert.add_argument("--overwrite", action="store_true", help="replace an older result")
    convert.set_defaults(run=_convert)

    merge = commands.add_parser("merge", help="complete a distributed preparation")
    merge.add_argument("directory", type=Path, metavar="DIR")
    merge.set_defaults(run=_merge)
    return parser


def _shard_tokens(text: str) -> int:
    """A number of tokens that a header can say."""
    if not text.isdecimal() or not 0 < int(text) <= MAX_SHARD_TOKENS:
        raise argparse.ArgumentTypeError(f"expected 1 to {MAX_SHARD_TOKENS}, found {text!r}")
    return int(text)


def _verify(arguments: argparse.Namespace) -> int:
    """Prints one line per fault, or one that all is well."""
    problems = problems_of(arguments.directory, fast=arguments.fast)
    if not problems:
        splits = Manifest.load(arguments.directory).splits.values()
        n_shards = sum(len(split.shards) for split in splits)
        n_tokens = sum(split.n_tokens for split in splits)
        depth = "sizes and headers" if arguments.fast else "checksums, ids and documents"
        print(f"ok: {arguments.directory}: {n_tokens:,} tokens in {n_shards} shards, {depth}")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def _convert(arguments: argparse.Namespace) -> int:
    """Converts and says what there is now."""
    output_dir = arguments.output_dir
    if arguments.to == OURS:
        manifest = to_ours(
            arguments.sources,
            output_dir,
            tokenizer_name=arguments.tokenizer,
            val=arguments.val,
            format=arguments.format,
            shard_tokens=arguments.shard_tokens,
            overwrite=arguments.overwrite,
        )
        for converted in manifest.arguments["converted"]:
            print(f"{converted['file']}: {converted['format']}, to {converted['split']}")
        print(_describe(output_dir, manifest))
        return 0
    if len(arguments.sources) != 1 or arguments.val or arguments.sources[0].is_file():
        raise ShardError(
            f"expected one data directory of ours for --to {LLMC}, found "
            f"{' '.join(map(str, [*arguments.sources, *arguments.val]))}; convert other programs' "
            f"files --to {OURS} first"
        )
    written = to_llmc(
        arguments.sources[0], output_dir, name=arguments.name, overwrite=arguments.overwrite
    )
    for split, files in written.items():
        print(f"{split}: {', '.join(map(str, files[:1] + files[1:][-1:]))}, {len(files)} in all")
    return 0


def _merge(arguments: argparse.Namespace) -> int:
    """Merges the parts and says what there is now."""
    print(_describe(arguments.directory, merge_parts(arguments.directory)))
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    """Describes what can be read, and names what cannot in a line of its own."""
    tokenizer = load_tokenizer(arguments.tokenizer) if arguments.tokenizer else None
    files, code = [], 0
    paths = list(reversed(arguments.paths))
    while paths:
        path = paths.pop()
        try:
            if (path / MANIFEST_NAME).exists():
                print(_describe(path, Manifest.load(path)), end="\n\n")
            elif path.is_dir():
                paths += reversed(_files_in(path))
            else:
                files.append(read_token_file(path, format=arguments.format))
        except (ShardError, OSError) as error:
            print(f"{PROGRAM} inspect: error: {error}", file=sys.stderr)
            code = 1
    if files:
        print(_table_of_files(files, tokenizer))
    for file in files if tokenizer else []:
        tokens = file.tokens[:TOKENS_SHOWN]
        file.check_ids(tokens, len(tokenizer), tokenizer=arguments.tokenizer)
        print(f"\n{file.path}: {tokenizer.decode(tokens.tolist())!r}")
    return code


def _files_in(directory: Path) -> list[Path]:
    """The token files of a directory that has no manifest."""
    files = token_files(directory)
    if not files:
        raise ShardError(f"{directory}: expected {MANIFEST_NAME} or token files, found neither")
    n_parts = len(list(directory.glob(PART_PATTERN)))
    if n_parts:
        print(f"{directory}: not merged yet, {n_parts} tasks are complete\n")
    return files


def _describe(directory: Path, manifest: Manifest) -> str:
    """What a data directory holds and how it was made."""
    rows = [
        [
            name,
            f"{split.n_tokens:,}",
            f"{split.n_documents:,}",
            f"{split.n_bytes / split.n_tokens:.3f}" if split.n_tokens else "",
            f"{len(split.shards):,}",
        ]
        for name, split in manifest.splits.items()
    ]
    headers = ["split", "tokens", "documents", "bytes/token", "shards"]
    lines = [
        f"{directory}: {np.dtype(token_dtype(manifest.vocab_size)).name} ids of the tokenizer "
        f"{manifest.tokenizer.get('name')}, {manifest.vocab_size:,} entries, <|endoftext|> is "
        f"{manifest.end_of_text_id}",
        tabulate(rows, headers, disable_numparse=True, colalign=["left"] + ["right"] * 4),
        *(f"{name}: {value}" for name, value in manifest.arguments.items()),
    ]
    return "\n".join(lines)


def _table_of_files(files: list[TokenFile], tokenizer: PreTrainedTokenizerBase | None) -> str:
    """One row per file; every token is read."""
    rows = []
    for file in files:
        end_of_text_id = tokenizer.eos_token_id if tokenizer else _end_of_text_id_beside(file.path)
        largest = n_documents = 0
        for tokens in file.chunks():
            largest = max(largest, int(tokens.max()))
            n_documents += int(np.count_nonzero(tokens == end_of_text_id))
        documents = "unknown" if end_of_text_id is None else f"{n_documents:,}"
        dtype = file.tokens.dtype.name
        rows.append(
            [file.path, file.format, dtype, f"{len(file.tokens):,}", f"{largest:,}", documents]
        )
    headers = ["file", "format", "dtype", "tokens", "largest id", "<|endoftext|>"]
    alignment = ["left"] * 3 + ["right"] * 3
    return tabulate(rows, headers, disable_numparse=True, colalign=alignment)


def _end_of_text_id_beside(path: Path) -> int | None:
    """The end-of-text id of the data directory that a file stands in, if it stands in one."""
    try:
        return Manifest.load(path.parent).end_of_text_id
    except ShardError:
        return None
