"""Text to token shards: `python prepare_data.py --dataset docstrings --output_dir data/docstrings`.

Reads documents, tokenizes them, holds some out for validation and writes a directory of shards
with their tokenizer and a manifest. The directory appears under its name only when it is complete.
"""

import dataclasses
import hashlib
import itertools
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from modeling_gpt2scratch.atomic_files import new_directory, require_free
from modeling_gpt2scratch.command_line import argument, check_numbers, parse_config
from modeling_gpt2scratch.split_writer import SplitWriter
from modeling_gpt2scratch.text_sources import DOCSTRINGS, SourceError, open_source
from modeling_gpt2scratch.token_shards import (
    MANIFEST_NAME,
    MAX_SHARD_TOKENS,
    Manifest,
    ShardError,
)
from modeling_gpt2scratch.tokenization import (
    GPT2,
    DocumentEncoder,
    TokenizerError,
    fingerprint,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
    trained_vocab_size,
)

DOCUMENTS_PER_BATCH = 1024  # read, encoded and written together
DOCSTRINGS_TOKENIZER = "bpe:4096"  # a vocabulary that a small model can afford


@dataclass(frozen=True)
class PrepareConfig:
    """Every argument of this script."""

    output_dir: str = argument("directory to make")
    dataset: str = argument(
        "docstrings, a local file or glob (txt, jsonl[.gz|.zst|.xz], csv, parquet), or a Hub name",
        default=DOCSTRINGS,
    )
    subset: str | None = argument("configuration of a Hub data set: sample-10BT", default=None)
    text_column: str = argument("field that holds the document", default="text")
    tokenizer: str | None = argument(
        "gpt2, bpe:N to train one of N entries on this text, or a directory or Hub name; "
        f"without it {DOCSTRINGS_TOKENIZER} for docstrings, else gpt2",
        default=None,
    )
    shard_tokens: int = argument("tokens per shard", default=100_000_000)
    val_fraction: float = argument("share of the documents held out, 0 for none", default=0.01)
    num_workers: int = argument("processes or threads", default=os.cpu_count() or 1)
    limit_documents: int | None = argument("read at most so many documents", default=None)
    seed: int = argument("of the choice of validation documents", default=0)
    overwrite: bool = argument("replace an existing data directory", default=False)

    def __post_init__(self):
        positive = ("shard_tokens", "num_workers", "limit_documents")
        check_numbers(self, positive=positive, non_negative=("seed",))
        if self.shard_tokens > MAX_SHARD_TOKENS:
            raise ValueError(
                f"expected --shard_tokens of at most {MAX_SHARD_TOKENS}, found {self.shard_tokens}"
            )
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"expected --val_fraction in [0, 1), found {self.val_fraction}")
        if self.tokenizer is None:
            default = DOCSTRINGS_TOKENIZER if self.dataset == DOCSTRINGS else GPT2
            object.__setattr__(self, "tokenizer", default)
        trained_vocab_size(self.tokenizer)
        require_free(Path(self.output_dir), marker=MANIFEST_NAME, overwrite=self.overwrite)


def main() -> None:
    """Parses, prepares, and turns what is wrong with the input into one line and an exit code."""
    config = parse_config(PrepareConfig, description=__doc__)
    os.environ.setdefault("RAYON_NUM_THREADS", str(config.num_workers))
    try:
        manifest = prepare(config)
    except (SourceError, TokenizerError, ShardError, OSError) as error:
        sys.exit(f"prepare_data.py: error: {error}")
    for name, split in manifest.splits.items():
        print(
            f"{name}: {split.n_tokens:,} tokens, {split.n_documents:,} documents, "
            f"{len(split.shards)} shard{'s' * (len(split.shards) > 1)} in {config.output_dir}"
        )


def prepare(config: PrepareConfig) -> Manifest:
    """Makes the data directory and returns its manifest."""
    source = open_source(
        config.dataset,
        subset=config.subset,
        text_column=config.text_column,
        num_workers=config.num_workers,
    )
    tokenizer = _tokenizer_for(source, config)
    encoder = DocumentEncoder(config.tokenizer, tokenizer, config.num_workers)
    with new_directory(Path(config.output_dir)) as directory:
        writers = {
            name: SplitWriter(
                directory, name, shard_tokens=config.shard_tokens, vocab_size=len(tokenizer)
            )
            for name in (("train", "val") if config.val_fraction else ("train",))
        }
        write_documents(_limited(source, config), encoder, writers, config)
        splits = {name: writer.close() for name, writer in writers.items()}
        _check_splits(splits, config)
        save_tokenizer(tokenizer, directory)
        manifest = Manifest(
            vocab_size=len(tokenizer),
            end_of_text_id=tokenizer.eos_token_id,
            tokenizer={"name": config.tokenizer, "fingerprint": fingerprint(tokenizer)},
            splits=splits,
            arguments=dataclasses.asdict(config),
        )
        manifest.save(directory)
    return manifest


def write_documents(
    documents: Iterable[str],
    encoder: DocumentEncoder,
    writers: dict[str, SplitWriter],
    config: PrepareConfig,
) -> None:
    """Encodes the documents and hands each to the writer of its split."""
    iterator = iter(documents)
    with tqdm(unit=" tokens", unit_scale=True, desc="tokenizing", mininterval=1) as progress:
        while batch := list(itertools.islice(iterator, DOCUMENTS_PER_BATCH)):
            for document, tokens in zip(batch, encoder.encode(batch), strict=True):
                split = "val" if is_validation(document, config) else "train"
                writers[split].add(tokens, n_bytes=len(document.encode()))
                progress.update(len(tokens))


def is_validation(document: str, config: PrepareConfig) -> bool:
    """Whether the document is held out: by a hash of its text, so that copies stay together."""
    digest = hashlib.blake2b(
        document.encode(), digest_size=8, key=str(config.seed).encode()
    ).digest()
    return int.from_bytes(digest, "little") < config.val_fraction * 2**64


def _tokenizer_for(source: Iterable[str], config: PrepareConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that was asked for; a trained one sees the training documents only."""
    vocab_size = trained_vocab_size(config.tokenizer)
    if vocab_size is None:
        return load_tokenizer(config.tokenizer)
    training = (text for text in _limited(source, config) if not is_validation(text, config))
    return train_tokenizer(
        tqdm(training, desc=f"training a tokenizer of {vocab_size}", unit=" documents"), vocab_size
    )


def _limited(source: Iterable[str], config: PrepareConfig) -> Iterable[str]:
    """The first `limit_documents` of the source, or all."""
    return itertools.islice(source, config.limit_documents)


def _check_splits(splits: dict, config: PrepareConfig) -> None:
    """Refuses a data set without documents, or without validation documents if some were asked."""
    n_documents = sum(split.n_documents for split in splits.values())
    if n_documents == 0:
        raise SourceError(f"{config.dataset}: expected documents, found none")
    for name, split in splits.items():
        if split.n_documents == 0:
            raise SourceError(
                f"{config.dataset}: expected documents in both splits, found none of "
                f"{n_documents} in {name!r} at --val_fraction {config.val_fraction}; change it, "
                f"--seed, or give more documents (0 holds none out)"
            )


if __name__ == "__main__":
    main()
