"""Looks at token shards, checks them, exchanges them with other programs, and publishes them.

    gpt2scratch shards inspect PATH... [--tokenizer gpt2]
    gpt2scratch shards verify DIR [--fast]
    gpt2scratch shards adopt DIR --tokenizer gpt2
    gpt2scratch shards convert SOURCE... OUTPUT_DIR --to ours|llm.c
    gpt2scratch shards merge DIR
    gpt2scratch shards publish --data DIR --repository you/my-data

`inspect` describes data directories and single token files, whoever wrote them. `verify` checks
a data directory against its manifest and prints every problem. `adopt` lets you train on files of
build-nanogpt, llm.c, modded-nanogpt and nanoGPT in place: it writes a manifest beside them.
`convert` copies such files to a data directory of ours, or writes one as llm.c's files.
`merge` completes what the tasks of a datatrove pipeline wrote. `publish` makes a data directory a
data set of the Hugging Face Hub.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tabulate import tabulate

from modeling_gpt2scratch.common.addresses import redacted
from modeling_gpt2scratch.common.argument_parser import OneLineErrorParser, number
from modeling_gpt2scratch.common.console import tell
from modeling_gpt2scratch.common.errors import ending_in_one_line, printable
from modeling_gpt2scratch.common.interruptions import Interruptible
from modeling_gpt2scratch.common.output_directory import OutputError, making, output_directory
from modeling_gpt2scratch.data.shards.format import MAX_SHARD_TOKENS, ShardError
from modeling_gpt2scratch.data.shards.manifest import MANIFEST_NAME, PART_PATTERN, Manifest
from modeling_gpt2scratch.data.shards.token_files import (
    NANOGPT,
    TokenFile,
    read_token_file,
    token_files,
)
from modeling_gpt2scratch.data.tokens.ids import token_dtype, vocab_size_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROGRAM = "gpt2scratch shards"
OURS, LLMC = "ours", "llm.c"
DEFAULT_SHARD_TOKENS = 100_000_000
TOKENS_SHOWN = 32
NO_HEADER = "the files have no header, whatever their names"
PUBLISHING = """Makes a data directory a data set of the Hugging Face Hub.

Shards go first, a few to a commit, the manifest and a data set card last. An interrupted push has
no manifest, so nobody mistakes it for a complete data set. Run the same command again: it
continues, and skips files whose checksum matches. Log in first, with `hf auth login` or HF_TOKEN.
`--dry_run DIR` only writes the card and the manifest, and needs neither login nor network.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, works, and turns what is wrong with the input into one line and an exit code."""
    arguments = _parse_arguments(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # for the commands that load it
    program = f"{PROGRAM} {arguments.command}"
    with Interruptible(program), ending_in_one_line(program):
        code = arguments.run(arguments)
    sys.exit(code)


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, with the function that works on them as `run`."""
    parser = OneLineErrorParser(prog=PROGRAM, description=__doc__)
    commands = parser.add_subparsers(
        title="commands", dest="command", required=True, metavar="COMMAND"
    )
    for name, help, add_arguments, run in (
        ("inspect", "describe directories and files", _add_inspect, _inspect),
        ("verify", "check a directory against its manifest", _add_verify, _verify),
        ("adopt", "use other programs' token files in place", _add_adopt, _adopt),
        ("convert", "convert from and to other programs' token files", _add_convert, _convert),
        ("merge", "complete a distributed preparation", _add_directory, _merge),
        ("publish", "make a directory a data set of the Hub", _add_publish, _publish),
    ):
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(run=run, parser=command)
        add_arguments(command)
    return parser.parse_args(argv)


def _add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="data directory")


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("paths", nargs="+", type=Path, metavar="PATH", help="data directories and token files")
    add("--tokenizer", metavar="NAME", help="show the first tokens of files as text")
    add("--format", choices=[NANOGPT], help=NO_HEADER)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    _add_directory(parser)
    parser.add_argument("--fast", action="store_true", help="sizes and headers only")


def _add_adopt(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("directory", type=Path, metavar="DIR", help="directory with .bin or .npy files")
    _add_origin(parser, "files of the validation split; else those with val in their name")


def _add_origin(parser: argparse.ArgumentParser, help_val: str) -> None:
    """What files of other programs do not say themselves."""
    add = parser.add_argument
    help = "tokenizer that made the files; headers of llm.c and modded-nanogpt say gpt2"
    add("--tokenizer", metavar="NAME", help=help)
    add("--val", nargs="+", type=Path, default=[], metavar="FILE", help=help_val)
    add("--format", choices=[NANOGPT], help=NO_HEADER)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("sources", nargs="+", type=Path, metavar="SOURCE", help="files, or directories of them")
    add("output_dir", type=Path, metavar="OUTPUT_DIR", help="directory to make")
    add("--to", choices=[OURS, LLMC], required=True, help="format to write")
    help = "files of the validation split; else those with val in their name"
    _add_origin(parser, help)
    help = f"tokens per shard of ours [default: {DEFAULT_SHARD_TOKENS:,}]"
    add("--shard_tokens", type=number(int, 1, MAX_SHARD_TOKENS), metavar="INTEGER", help=help)
    add("--name", metavar="NAME", help="prefix of llm.c's files [default: the name of OUTPUT_DIR]")
    add("--overwrite", action="store_true", help="replace an older result")


def _add_publish(parser: argparse.ArgumentParser) -> None:
    parser.description = PUBLISHING
    add = parser.add_argument
    help = "directory made by prepare_data.py"
    add("--data", required=True, type=Path, metavar="DIR", help=help)
    help = "repository on the Hub, made if needed; its README.md is replaced"
    add("--repository", required=True, metavar="OWNER/NAME", help=help)
    add("--private", action="store_true", help="make the repository private")
    add("--license", metavar="NAME", help="licence of the text, by the Hub's name for it")
    help = "write card and manifest to this new directory"
    add("--dry_run", type=Path, metavar="DIR", help=help)


def _verify(arguments: argparse.Namespace) -> int:
    """Prints one line per fault, or one that all is well."""
    from modeling_gpt2scratch.data.shards.verification import problems_of

    problems = problems_of(arguments.directory, fast=arguments.fast)
    if not problems:
        shards = Manifest.load(arguments.directory).shards
        n_tokens = sum(entry.n_tokens for entry in shards)
        depth = "sizes and headers" if arguments.fast else "checksums, ids and documents"
        print(f"ok: {arguments.directory}: {n_tokens:,} tokens in {len(shards)} shards, {depth}")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def _adopt(arguments: argparse.Namespace) -> int:
    """Adopts and says what there is now."""
    from modeling_gpt2scratch.data.shards.adoption import adopt

    directory = arguments.directory
    manifest = adopt(
        directory, tokenizer_name=arguments.tokenizer, val=arguments.val, format=arguments.format
    )
    for name, split in manifest.splits.items():
        for entry in split.shards:
            print(f"{entry.file}: {entry.layout.format}, to {name}")
    print(_describe(directory, manifest))
    print(f"written: {directory / MANIFEST_NAME}")
    return 0


def _refuse_without_effect(arguments: argparse.Namespace, *names: str, beside: str) -> None:
    """Refuses arguments that mean nothing beside what else was given."""
    for name in names:
        if getattr(arguments, name) is not None:
            raise ShardError(f"--{name} has no effect with {beside}; leave it out")


def _convert(arguments: argparse.Namespace) -> int:
    """Converts and says what there is now."""
    from modeling_gpt2scratch.data.shards.conversion import to_llmc, to_ours

    output_dir = arguments.output_dir
    if arguments.to == OURS:
        _refuse_without_effect(arguments, "name", beside=f"--to {OURS}")
        manifest = to_ours(
            arguments.sources,
            output_dir,
            tokenizer_name=arguments.tokenizer,
            val=arguments.val,
            format=arguments.format,
            shard_tokens=arguments.shard_tokens or DEFAULT_SHARD_TOKENS,
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
    names = ("tokenizer", "format", "shard_tokens")
    _refuse_without_effect(arguments, *names, beside=f"--to {LLMC}")
    written = to_llmc(
        arguments.sources[0], output_dir, name=arguments.name, overwrite=arguments.overwrite
    )
    for split, files in written.items():
        print(f"{split}: {', '.join(map(str, files[:1] + files[1:][-1:]))}, {len(files)} in all")
    return 0


def _merge(arguments: argparse.Namespace) -> int:
    """Merges the parts and says what there is now."""
    from modeling_gpt2scratch.data.shards.merging import merge_parts

    print(_describe(arguments.directory, merge_parts(arguments.directory)))
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    """Describes what can be read, and names what cannot in a line of its own."""
    if all((path / MANIFEST_NAME).exists() for path in arguments.paths):
        _refuse_without_effect(arguments, "tokenizer", "format", beside="data with a manifest")
    tokenizer = None
    if arguments.tokenizer:
        from modeling_gpt2scratch.data.tokens.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(arguments.tokenizer)
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
                file = read_token_file(path, format=arguments.format)
                if tokenizer is not None:
                    n_entries = vocab_size_of(tokenizer)
                    file.check_vocabulary(n_entries, tokenizer=arguments.tokenizer)
                files.append(file)
        except BrokenPipeError:
            raise
        except (ShardError, OSError) as error:
            tell(f"{PROGRAM} inspect: error: {redacted(str(error))}", file=sys.stderr)
            code = 1
    if files:
        print(_table_of_files(files, tokenizer))
    for file in files if tokenizer else []:
        tokens = file.tokens[:TOKENS_SHOWN]
        try:
            file.check_ids(tokens, vocab_size_of(tokenizer), tokenizer=arguments.tokenizer)
        except ShardError as error:
            tell(f"{PROGRAM} inspect: error: {error}", file=sys.stderr)
            code = 1
        else:
            print(f"\n{file.path}: {tokenizer.decode(tokens.tolist())!r}")
    return code


def _publish(arguments: argparse.Namespace) -> int:
    """Uploads, or writes what goes beside the shards."""
    from modeling_gpt2scratch.common.hub_requests import check_license, check_repository
    from modeling_gpt2scratch.hub.datasets import push_data, read_verified, write_small_files

    data, repository, dry_run = arguments.data, arguments.repository, arguments.dry_run
    try:
        check_repository(repository, flag="--repository")
        check_license(arguments.license)
    except ValueError as error:
        arguments.parser.error(str(error))
    if dry_run is None:
        options = {"private": arguments.private, "license": arguments.license}
        print(f"published: {push_data(data, repository, **options)}")
        return 0
    try:
        dry_run = output_directory(dry_run, inputs=[data], flag="--dry_run")
    except OutputError as error:
        arguments.parser.error(str(error))
    with making(dry_run) as folder:
        manifest = read_verified(data)
        write_small_files(data, folder, manifest, repository, arguments.license)
    n_shards = len(manifest.shards)
    print(f"written, not uploaded: {dry_run}; {n_shards:,} shards would go with it")
    return 0


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
    entries = manifest.shards
    formats = sorted({entry.layout.format for entry in entries if entry.layout})
    own = np.dtype(token_dtype(manifest.vocab_size)).name
    kind = f"{' and '.join(formats)} files with" if formats else own
    lines = [
        f"{directory}: {kind} ids of the tokenizer {manifest.tokenizer['name']}, "
        f"{manifest.vocab_size:,} entries, <|endoftext|> is {manifest.end_of_text_id}",
        tabulate(rows, headers, disable_numparse=True, colalign=["left"] + ["right"] * 4),
        *(f"{name}: {value}" for name, value in manifest.arguments.items()),
    ]
    return printable("\n".join(lines))


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
