"""Preparation on many machines: shards of ours as the last step of a datatrove pipeline.

datatrove, which made FineWeb, brings readers, filters, deduplication, and executors for one
machine, Slurm and Ray; `pip install -e .[cluster]` installs it. Every task writes shards of its own
and then says so in a file; when all have, they are merged:

    from datatrove.executor import SlurmPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from modeling_gpt2scratch.data.preparation import datatrove_steps as ours

    slurm = dict(time="10:00:00", partition="cpu")
    fineweb = "hf://datasets/HuggingFaceFW/fineweb/sample/100BT"
    writing = SlurmPipelineExecutor(
        [ParquetReader(fineweb), ours.ShardWriterStep("/shared/fineweb", tokenizer="gpt2")],
        tasks=200, logging_dir="/shared/logs/writing", **slurm,
    )
    SlurmPipelineExecutor(
        [ours.MergeManifests("/shared/fineweb")],
        tasks=1, depends=writing, logging_dir="/shared/logs/merging", **slurm,
    ).run()

The output directory lies on a file system that all tasks share. A task that fails or is killed
leaves no such file; started again, by the same command, it removes what it had written and begins
anew. `gpt2scratch shards merge DIR` merges as well.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from modeling_gpt2scratch.data.shards.format import MAX_SHARD_TOKENS, ShardError
from modeling_gpt2scratch.data.shards.manifest import MANIFEST_NAME, Manifest
from modeling_gpt2scratch.data.shards.merging import Part, merge_parts, part_name
from modeling_gpt2scratch.data.shards.writer import SplitWriter
from modeling_gpt2scratch.data.tokens.encoder import DocumentEncoder, encode_documents
from modeling_gpt2scratch.data.tokens.ids import vocab_size_of
from modeling_gpt2scratch.data.tokens.names import TRAINED_PREFIX
from modeling_gpt2scratch.data.tokens.text import well_formed
from modeling_gpt2scratch.data.tokens.tokenizer import (
    absolute_name,
    load_tokenizer,
    manifest_entries,
    tokenizer_spec,
)

DOCUMENTS_PER_BATCH = 1024  # encoded and written together


class ShardWriterStep(PipelineStep):
    """Tokenizes documents and writes them as shards of this task; passes the documents on.

    Which documents are held out depends on their text, on `seed` and on `val_fraction`, as in
    `prepare_data.py`: not on the tasks.

    Args:
        output_dir: directory of all tasks.
        tokenizer: "gpt2", or a directory or Hub repository with a tokenizer.
        shard_tokens: tokens per shard; the last one of each task is shorter.
        val_fraction: share of the documents held out, 0 for none.
        seed: of the choice of validation documents.
        min_characters: shorter documents are left out.
        dataset: name of the data in the manifest and in model cards.

    Raises:
        ValueError: for an argument out of its range.
    """

    name = "GPT-2 token shards"
    type = "🔢 - TOKENIZER"

    def __init__(
        self,
        output_dir: str | Path,
        tokenizer: str = "gpt2",
        shard_tokens: int = 100_000_000,
        val_fraction: float = 0.01,
        seed: int = 0,
        min_characters: int = 0,
        dataset: str = "a datatrove pipeline",
    ):
        super().__init__()
        if not 0 < shard_tokens <= MAX_SHARD_TOKENS:
            raise ValueError(f"expected 1 to {MAX_SHARD_TOKENS} shard_tokens, found {shard_tokens}")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"expected val_fraction in [0, 1), found {val_fraction}")
        if seed < 0 or min_characters < 0:
            raise ValueError(
                f"expected seed and min_characters of at least 0, found {seed} and {min_characters}"
            )
        if tokenizer.startswith(TRAINED_PREFIX):
            raise ValueError(
                f"expected a tokenizer that exists, found {tokenizer!r}; train one on a part of "
                f"the text with prepare_data.py and name its output directory"
            )
        self.output_dir = _directory(output_dir)
        self.arguments = {
            "dataset": dataset,
            "tokenizer": absolute_name(tokenizer),  # who merges may stand elsewhere
            "shard_tokens": shard_tokens,
            "val_fraction": val_fraction,
            "seed": seed,
            "min_characters": min_characters,
        }

    def run(
        self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        """Writes the documents of one task; its part manifest follows after the last.

        Args:
            data: the documents; lone surrogates in their text become U+FFFD.
            world_size: number of tasks.

        Raises:
            ShardError: if the directory is merged already.
            TokenizerError: if the tokenizer cannot be had.
        """
        name = self.arguments["tokenizer"]
        tokenizer = load_tokenizer(name)
        encoder = DocumentEncoder(tokenizer_spec(name, tokenizer), tokenizer.eos_token_id)
        self._start_over(rank)
        writers = {
            split: SplitWriter(
                self.output_dir,
                f"{split}_{rank:05d}",
                shard_tokens=self.arguments["shard_tokens"],
                vocab_size=vocab_size_of(tokenizer),
            )
            for split in self._splits()
        }
        documents = iter(data or ())
        while batch := list(itertools.islice(documents, DOCUMENTS_PER_BATCH)):
            with self.track_time(unit="batch"):
                self._write(batch, encoder, writers)
            yield from batch
        manifest = Manifest(
            **manifest_entries(name, tokenizer),
            splits={split: writer.close() for split, writer in writers.items()},
            arguments=self.arguments,
            held_out={"split": "documents"} if self.arguments["val_fraction"] else {},
        )
        Part(manifest, rank, world_size).save(self.output_dir)

    def _splits(self) -> tuple[str, ...]:
        return ("train", "val") if self.arguments["val_fraction"] else ("train",)

    def _start_over(self, rank: int) -> None:
        """Removes what an earlier run of this task left, its part manifest first."""
        if (self.output_dir / MANIFEST_NAME).exists():
            raise ShardError(
                f"{self.output_dir}: expected a directory without {MANIFEST_NAME}, found one; the "
                f"data set is complete, name another directory"
            )
        self.output_dir.mkdir(parents=True, exist_ok=True)
        (self.output_dir / part_name(rank)).unlink(missing_ok=True)
        for split in ("train", "val"):
            for pattern in (f"{split}_{rank:05d}_*.bin", f".{split}_{rank:05d}_*.bin.partial"):
                for file in self.output_dir.glob(pattern):
                    file.unlink()

    def _write(
        self, batch: list[Document], encoder: DocumentEncoder, writers: dict[str, SplitWriter]
    ) -> None:
        """Encodes a batch and appends each of its documents to its split."""
        texts = [well_formed(document.text) for document in batch]
        least = max(1, self.arguments["min_characters"])
        texts = [text for text in texts if len(text) >= least]
        if dropped := len(batch) - len(texts):
            self.stat_update("dropped", value=dropped)
        if not texts:
            return
        split_by = {name: self.arguments[name] for name in ("seed", "val_fraction")}
        encoded = encode_documents(encoder, texts, **split_by)
        is_val = np.array(encoded.is_val)
        for split, writer in writers.items():
            chosen = is_val if split == "val" else ~is_val
            n_documents = int(chosen.sum())
            if n_documents:
                tokens = encoded.ids[np.repeat(chosen, encoded.lengths)]
                n_bytes = int(encoded.n_bytes[chosen].sum())
                writer.add(tokens, n_bytes=n_bytes, n_documents=n_documents)
                self.stat_update(f"{split}_tokens", value=len(tokens), unit="batch")
                self.stat_update(f"{split}_documents", value=n_documents, unit="batch")


class MergeManifests(PipelineStep):
    """Makes one data set of what the tasks of `ShardWriterStep` wrote, as the one task of its own.

    Args:
        output_dir: directory of all tasks.
    """

    name = "merge of shard manifests"
    type = "🔢 - TOKENIZER"

    def __init__(self, output_dir: str | Path):
        super().__init__()
        self.output_dir = _directory(output_dir)

    def run(
        self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        """Merges after the last document; see `merge_parts` for what is refused.

        Raises:
            ValueError: if there are several tasks.
        """
        if world_size != 1:
            raise ValueError(
                f"expected MergeManifests in a pipeline with tasks=1, found {world_size}"
            )
        yield from data or ()
        merge_parts(self.output_dir)


def _directory(place: str | Path) -> Path:
    """A directory that all tasks share.

    Raises:
        ValueError: for an address such as s3://bucket, which would become a folder of that name.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", str(place)):
        raise ValueError(f"expected a directory that all tasks share, found the address {place}")
    return Path(place)
