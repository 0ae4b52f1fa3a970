"""From a configuration to a data directory: what `prepare_data.py` does, in its order.

First it is settled what is held out (`held_out.py`), then the tokenizer is saved, then the shards
are written block by block (`blocks.py`), last comes the manifest; then the directory gets its name.
"""

import dataclasses
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from modeling_gpt2scratch.common.console import activity, gigabytes, progress_bar, tell, warn
from modeling_gpt2scratch.common.errors import SourceError, file_problem, located
from modeling_gpt2scratch.common.output_directory import (
    OutputError,
    claimed,
    nearest_existing,
    require_apart,
)
from modeling_gpt2scratch.common.threads import n_cores
from modeling_gpt2scratch.data.shards.manifest import MANIFEST_NAME, Manifest, Split
from modeling_gpt2scratch.data.shards.verification import problems_of
from modeling_gpt2scratch.data.sources.dataset_argument import (
    Source,
    describe_files,
    describe_sources,
    estimated_bytes,
    local_paths,
    open_sources,
)
from modeling_gpt2scratch.data.sources.docstrings import DocstringFile
from modeling_gpt2scratch.data.sources.document_stream import BATCH_CHARACTERS, DocumentStream
from modeling_gpt2scratch.data.sources.filters import parse_condition
from modeling_gpt2scratch.data.sources.hub_files import remove_partial_downloads
from modeling_gpt2scratch.data.sources.local_files import LocalFile
from modeling_gpt2scratch.data.sources.url_files import UrlFile
from modeling_gpt2scratch.data.tokens.encoder import document_digest, is_held_out
from modeling_gpt2scratch.data.tokens.ids import vocab_size_of
from modeling_gpt2scratch.data.tokens.lost_text import drops_characters, replaces_characters
from modeling_gpt2scratch.data.tokens.names import (
    BYTES,
    GPT2,
    KNOWN_NAMES_WITH_TEXT,
    trained_vocab_size,
)
from modeling_gpt2scratch.data.tokens.tokenizer import (
    load_tokenizer,
    manifest_entries,
    save_tokenizer,
    tokenizer_spec,
    train_tokenizer,
    vocabulary_of,
)
from modeling_gpt2scratch.data.tokens.workers import Encoding

from .blocks import Plan, write_shards
from .configuration import TAIL, PrepareConfig
from .held_out import HeldOut, SplitStream, none_in, settle
from .progress import Progress, ProgressError, WorkingDirectory

LITTLE_BYTES = 2**21  # of tokens, which one process makes in the time that others take to begin
MAX_WORKERS_PER_CORE = 4  # more make nothing faster, and each takes memory
TOKENIZER_PATTERNS = (
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "*_tokens_map.json",
    "added_tokens.json",
)
TOKENIZER_CHARACTERS = 4 * 2**30  # a tokenizer is trained on so much text at most


def prepare(config: PrepareConfig) -> Manifest:
    """Makes the data directory, or finishes one that was begun, and returns its manifest."""
    output_dir = Path(config.output_dir)
    working = WorkingDirectory(output_dir)
    was_published = working.is_published(config.recorded())
    if was_published:
        working.clean_up()
    with activity("listing the files"):
        sources = open_sources(
            config.dataset,
            subset=config.subset,
            text_column=config.text_column,
            where=[parse_condition(condition) for condition in config.where],
            revisions={} if config.overwrite else working.revisions(),
        )
    begins_anew = config.overwrite and not was_published
    made = None if begins_anew else working.finished(config.recorded())
    if made is not None:
        require_whole(made, sources, config)
        tell(f"{output_dir}: already complete; --overwrite makes it again", file=sys.stderr)
        return made
    require_apart(output_dir.resolve(), local_paths(sources))
    with claimed(working.output_dir):
        inputs = describe_inputs(config, sources)
        progress = working.open(config.recorded(), inputs, overwrite=config.overwrite)
        remove_partial_downloads(working.downloads)
        try:
            if progress is None:
                require_free_space(sources, config)
            gather_docstrings(sources, working)
            if progress is None:
                progress = begin(config, sources, inputs, working)
            return finish(config, sources, working, progress)
        except BaseException as error:
            has_blocks = progress is not None and progress.n_blocks > 0
            if not (has_blocks or working.has_downloads):
                working.remove()  # nothing that is worth going on from
            elif has_blocks and isinstance(error, OSError) and working.path.is_dir():
                n_tokens = sum(split["n_tokens"] for split in progress.splits.values())
                problem = file_problem(located(error, output_dir))
                raise OSError(
                    f"{problem}; {n_tokens:,} tokens are safe: run the same command again to go on"
                ) from error
            raise


def describe_inputs(config: PrepareConfig, sources: list[Source]) -> list[list]:
    """What identifies the input as in `describe_files`, and the files of a tokenizer here."""
    files = [(path, path.stat()) for path in sorted(tokenizer_files(config))]
    own = [[str(path), status.st_size, status.st_mtime_ns] for path, status in files]
    return describe_files(sources) + own


def tokenizer_files(config: PrepareConfig) -> Iterator[Path]:
    """The files of the tokenizer that say what it is, if it is a directory or a file."""
    if config.tokenizer in (GPT2, BYTES):  # whatever folder of that name there is
        return
    place = Path(config.tokenizer)
    if place.is_file():
        yield place
    for pattern in TOKENIZER_PATTERNS:
        yield from place.glob(pattern)


def require_whole(made: Manifest, sources: list[Source], config: PrepareConfig) -> None:
    """Refuses to take data for those of this command if they, or what made them, have changed.

    Raises:
        OutputError: if a shard is missing or cut, if the sources are others, or if a file is
            younger than the manifest.
    """
    if problems := problems_of(Path(config.output_dir), fast=True):
        raise OutputError(f"{problems[0]}; add --overwrite to make the data again")
    inputs = [*local_paths(sources), *tokenizer_files(config)]
    # A file from the future says nothing of when it was written.
    times = (path.stat().st_mtime for path in inputs)
    newest = max((moment for moment in times if moment <= time.time()), default=0)
    made_at = (Path(config.output_dir) / MANIFEST_NAME).stat().st_mtime
    if describe_sources(sources) != made.sources or newest > made_at:
        upload = f"`gpt2scratch shards publish --data {config.output_dir}` uploads them as they are"
        raise OutputError(
            f"{config.output_dir}: expected the data that this command made, found that their "
            f"input has changed since; choose another directory or add --overwrite"
            f"{f'; {upload}' if config.push_to_hub else ''}"
        )


def require_free_space(sources: list[Source], config: PrepareConfig) -> None:
    """Refuses to start on a disk that will not hold the shards, by a rough estimate.

    Raises:
        OSError: if the disk looks too small and the user has not said to go on all the same.
    """
    # Where the tail begins is known once all of the text has been read.
    needed = estimated_bytes(
        sources,
        max_tokens=config.max_tokens,
        keeps_downloads=config.split == TAIL,
        are_bytes=config.tokenizer == BYTES,
    )
    free = shutil.disk_usage(nearest_existing(Path(config.output_dir).absolute().parent)).free
    if free < needed and config.limit_documents is None and not config.ignore_free_space:
        raise OSError(
            f"{config.output_dir}: expected about {gigabytes(needed)} GB of free space for shards "
            f"and downloads, found {gigabytes(free)}; choose another disk or a lower --max_tokens, "
            f"or add --ignore_free_space"
        )


def gather_docstrings(sources: list[Source], working: WorkingDirectory) -> None:
    """Makes the files of docstrings, which have a bar of their own, before another one is shown."""
    for source in sources:
        for file in source.files:
            if isinstance(file, DocstringFile):
                file.fetch(working.downloads)


def begin(
    config: PrepareConfig, sources: list[Source], inputs: list, working: WorkingDirectory
) -> Progress:
    """Settles what is held out, saves the tokenizer, and then the progress that has just begun."""
    vocab_size = trained_vocab_size(config.tokenizer)
    tokenizer = None
    if vocab_size is None:
        tokenizer = load_tokenizer(config.tokenizer, known=KNOWN_NAMES_WITH_TEXT)
        if drops_characters(tokenizer):
            warn(
                f"{config.tokenizer}: this tokenizer leaves out characters that it does not know, "
                f"without a trace in the shards; bits per byte come out too low"
            )
        elif replaces_characters(tokenizer):
            warn(
                f"{config.tokenizer}: this tokenizer has one unknown token for all that it does "
                f"not know; bits per byte are those of another text where it stands"
            )
    held_out = settle(config, partial(open_stream, config, sources, working), working)
    if tokenizer is None:
        tokenizer = train_on_sources(vocab_size, config, sources, working, held_out)
    save_tokenizer(tokenizer, working.data)
    progress = Progress(
        arguments=config.recorded(),
        inputs=inputs,
        vocabulary=[*vocabulary_of(tokenizer)],
        held_out=dataclasses.asdict(held_out),
    )
    working.save(progress)
    return progress


def train_on_sources(
    vocab_size: int,
    config: PrepareConfig,
    sources: list[Source],
    working: WorkingDirectory,
    held_out: HeldOut,
) -> PreTrainedTokenizerBase:
    """A tokenizer trained on the documents that will be in the training split."""

    def training_documents(stream: SplitStream, bar: tqdm) -> Iterator[str]:
        n_characters = 0
        for batch in stream:
            for index, text in enumerate(batch.documents):
                if batch.n_train is None:
                    is_val = is_held_out(document_digest(text, config.seed), config.val_fraction)
                else:
                    is_val = index >= batch.n_train
                if not is_val:
                    bar.update()
                    yield text
                    n_characters += len(text)
            if n_characters > TOKENIZER_CHARACTERS:
                break
        bar.set_description(f"learning what makes {vocab_size} entries")

    options = {"desc": f"training a tokenizer of {vocab_size}", "unit": " documents"}
    with (
        closing(split_stream(config, sources, working, held_out)) as stream,
        progress_bar(**options) as bar,
    ):
        return train_tokenizer(training_documents(stream, bar), vocab_size)


def finish(
    config: PrepareConfig, sources: list[Source], working: WorkingDirectory, progress: Progress
) -> Manifest:
    """Writes the shards that are missing, and the manifest, and publishes the directory.

    Raises:
        ProgressError: if the tokenizer is not the one with which the preparation began.
    """
    tokenizer = load_tokenizer(str(working.data.absolute()))
    if [*vocabulary_of(tokenizer)] != progress.vocabulary:
        raise ProgressError(
            f"{working.data}: expected the tokenizer with which the preparation began, found "
            f"another; add --overwrite to begin anew"
        )
    held_out = HeldOut(**progress.held_out)
    if not progress.is_finished:
        plan = Plan(
            encoding=Encoding(
                tokenizer_spec=tokenizer_spec(config.tokenizer, tokenizer),
                end_of_text_id=tokenizer.eos_token_id,
                seed=config.seed,
                val_fraction=config.val_fraction,
                skips_failures=config.on_bad_row == "skip",
            ),
            vocab_size=vocab_size_of(tokenizer),
            shard_tokens=config.shard_tokens,
            has_val=held_out.split is not None,
            block_tokens=config.shuffle_buffer_tokens,
            is_shuffled=config.shuffle,
            is_deduplicated=config.deduplicate,
            max_tokens=config.max_tokens,
            num_workers=min(
                config.num_workers or default_workers(sources), MAX_WORKERS_PER_CORE * n_cores()
            ),
        )
        with closing(split_stream(config, sources, working, held_out, progress.position)) as stream:
            write_shards(stream, plan, working, progress)
        n_tokens = sum(split["n_tokens"] for split in progress.splits.values())
        if stream.used_up and (config.max_tokens is None or n_tokens < config.max_tokens):
            tell(
                f"{stream.used_up}: used up, which ends the mixture; the rest of the other sources "
                f"is not read",
                file=sys.stderr,
            )
    with activity("finishing"):
        require_unchanged(config, sources, progress)
        manifest = Manifest(
            **manifest_entries(config.tokenizer, tokenizer),
            splits={name: Split.from_json(entry) for name, entry in progress.splits.items()},
            arguments=config.recorded(),
            sources=describe_sources(sources),
            left_out=progress.counts,
            held_out=held_out.in_manifest(),
        )
        check_splits(manifest, config, working)
        manifest.save(working.data)
        working.publish(config.overwrite)
    return manifest


def default_workers(sources: list[Source]) -> int:
    """One process for each core; one in all for text that is tokenized before a second is there."""
    files = [file for source in sources for file in source.files]
    is_known = all(isinstance(file, LocalFile | UrlFile) for file in files)
    is_little = is_known and estimated_bytes(sources) <= LITTLE_BYTES
    return 1 if is_little else n_cores()


def split_stream(
    config: PrepareConfig,
    sources: list[Source],
    working: WorkingDirectory,
    held_out: HeldOut,
    position: dict | None = None,
) -> SplitStream:
    """The documents that are long enough, and which of them are the tail, if there is one."""
    in_order = held_out.split == TAIL
    stream = open_stream(config, sources, working, in_order=in_order, position=position)
    return SplitStream(stream, held_out, min_characters=config.min_characters, seed=config.seed)


def open_stream(
    config: PrepareConfig,
    sources: list[Source],
    working: WorkingDirectory,
    *,
    in_order: bool = False,
    position: dict | None = None,
) -> DocumentStream:
    """The documents in the order of this configuration, or in that of the files' names."""
    return DocumentStream(
        sources,
        seed=config.seed if config.shuffle and not in_order else None,
        downloads=working.downloads,
        limit_documents=config.limit_documents,
        # Several batches to a block, whose characters are some four times its tokens.
        batch_characters=min(BATCH_CHARACTERS, max(1, config.shuffle_buffer_tokens // 2)),
        min_characters=config.min_characters,
        on_bad_row=config.on_bad_row,
        named_rows=working.named_rows,
        position=position,
    )


def require_unchanged(config: PrepareConfig, sources: list[Source], progress: Progress) -> None:
    """Refuses shards of files that were still being written while they were read.

    Where not all is read, the rest may change.
    """
    n_tokens = sum(split["n_tokens"] for split in progress.splits.values())
    n_documents = (progress.position or {}).get("n_documents", 0)
    is_full = config.max_tokens is not None and n_tokens >= config.max_tokens
    if is_full or (config.limit_documents is not None and n_documents >= config.limit_documents):
        return
    try:
        before, now = progress.inputs, describe_inputs(config, sources)
    except FileNotFoundError as error:
        raise SourceError(
            f"{error.filename}: expected a file that stays while it is read, found that it has "
            f"gone; put it back, or add --overwrite"
        ) from None
    found = {tuple(file) for file in now}
    if changed := [file[0] for file in before if tuple(file) not in found]:
        raise SourceError(
            f"{changed[0]}: expected a file that stays as it is while it is read, found that it "
            f"has changed meanwhile; wait until it is complete, and add --overwrite"
        )


def check_splits(manifest: Manifest, config: PrepareConfig, working: WorkingDirectory) -> None:
    """Refuses a data set without documents, or without validation documents if some were asked."""
    n_documents = {name: split.n_documents for name, split in manifest.splits.items()}
    if min(n_documents.values()) == 0:
        working.give_up()
        raise none_in({"train": 0, "val": 0} | n_documents, config)
