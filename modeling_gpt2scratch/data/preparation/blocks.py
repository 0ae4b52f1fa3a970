"""Encoded documents in blocks: shuffled, split, written, and safe from a kill once written.

    SplitStream -> batches -> workers -> blocks of some 50 million tokens -> SplitWriter

A block is complete when it holds `shuffle_buffer_tokens`, or `MAX_BLOCK_DOCUMENTS` short documents;
then its documents are permuted, written, and the progress saved. Memory holds one block and the
batches on their way, whatever the size of the input.
"""

from collections import Counter
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from modeling_gpt2scratch.common.console import progress_bar
from modeling_gpt2scratch.data.shards.writer import SplitWriter
from modeling_gpt2scratch.data.tokens.encoder import EncodedDocuments
from modeling_gpt2scratch.data.tokens.names import TokenizerError
from modeling_gpt2scratch.data.tokens.tokenizer import TOKENIZER_NAME
from modeling_gpt2scratch.data.tokens.workers import DocumentBatch, Encoding, encoded

from .held_out import SplitStream
from .progress import Progress, SeenDocuments, WorkingDirectory

MAX_BLOCK_DOCUMENTS = 1 << 19  # each takes some 400 bytes of memory beside its tokens


@dataclass(frozen=True)
class Plan:
    """How encoded documents become shards."""

    encoding: Encoding
    vocab_size: int
    shard_tokens: int
    has_val: bool
    block_tokens: int
    is_shuffled: bool
    is_deduplicated: bool
    max_tokens: int | None
    num_workers: int


def write_shards(
    stream: SplitStream, plan: Plan, working: WorkingDirectory, progress: Progress
) -> None:
    """Reads the stream to its end and completes all shards; `progress` says how far they are.

    Raises:
        SourceError: if the input is bad.
        WorkerError: if a worker process died.
        OSError: if the disk is full. What the progress speaks of is kept in all cases.
    """
    blocks = _Blocks(plan, working, progress)
    options = {"desc": "tokenizing", "unit": " tokens", "unit_scale": True}
    with (
        closing(blocks),
        progress_bar(**options, initial=blocks.n_tokens) as bar,
        encoded(stream, plan.encoding, plan.num_workers) as batches,
    ):
        position = progress.position
        for documents, batch in () if blocks.is_enough else batches:
            position = batch.position
            bar.update(blocks.add(documents, batch))
            if blocks.is_block_full:
                blocks.commit(position)
                stream.release(position)
            if blocks.is_enough:
                break
        blocks.commit(position, is_last=True)


class _Blocks:
    """The documents of the current block, and the shards of those before."""

    def __init__(self, plan: Plan, working: WorkingDirectory, progress: Progress):
        self._plan, self._working, self._progress = plan, working, progress
        self._writers = {
            split: SplitWriter(
                working.data,
                split,
                shard_tokens=plan.shard_tokens,
                vocab_size=plan.vocab_size,
                state=progress.splits.get(split),
            )
            for split in (("train", "val") if plan.has_val else ("train",))
        }
        self._seen = None
        if plan.is_deduplicated:
            self._seen = SeenDocuments(working.seen, n_blocks=progress.n_blocks)
        self.n_tokens = sum(state["n_tokens"] for state in progress.splits.values())
        self._counts = Counter(progress.counts)
        self._clear_block()

    @property
    def is_block_full(self) -> bool:
        has_tokens = self._n_in_block >= self._plan.block_tokens
        return has_tokens or len(self._block) >= MAX_BLOCK_DOCUMENTS

    @property
    def is_enough(self) -> bool:
        """Whether no more documents are wanted."""
        return self._plan.max_tokens is not None and self.n_tokens >= self._plan.max_tokens

    def add(self, documents: EncodedDocuments, batch: DocumentBatch) -> int:
        """Takes the documents of a batch into the block; returns the number of their tokens.

        Duplicates are left out, and so is what comes after the document that completes
        `max_tokens`.
        """
        n_before = self.n_tokens
        starts = np.cumsum(documents.lengths) - documents.lengths
        self._counts["too_short"] += batch.n_too_short
        if self._seen and batch.cut_digest:  # a copy of it comes twice, though its parts do not
            self._seen.is_new(batch.cut_digest, self._progress.n_blocks)
        if documents.n_failed:
            self._counts["not_tokenized"] += documents.n_failed
        for start, length, n_bytes, digest, is_val in zip(
            starts.tolist(),
            documents.lengths.tolist(),
            documents.n_bytes.tolist(),
            documents.digests,
            documents.is_val,
            strict=True,
        ):
            if self.is_enough:
                break
            if self._seen and not self._seen.is_new(digest, self._progress.n_blocks):
                self._counts["duplicates"] += 1
                continue
            self._block.append((documents.ids[start : start + length], n_bytes, is_val))
            self.n_tokens += length
        self._n_in_block += self.n_tokens - n_before
        return self.n_tokens - n_before

    def commit(self, position: dict | None, *, is_last: bool = False) -> None:
        """Writes the block and saves the progress; afterwards a kill loses nothing of it.

        Raises:
            TokenizerError: if all of the first block is nothing but borders of documents.
        """
        has_text = any(len(ids) > 1 for ids, _, _ in self._block)
        if self._block and not has_text and self._progress.n_blocks == 0:
            raise TokenizerError(
                f"{TOKENIZER_NAME}: expected ids for the text, found none in {len(self._block):,} "
                f"documents; name another --tokenizer"
            )
        self._write_block()
        if is_last:
            for writer in self._writers.values():
                writer.finish()
        if self._seen:
            self._seen.commit()
        self._progress.splits = {name: writer.state() for name, writer in self._writers.items()}
        if position and position["n_bad_rows"]:
            self._counts["bad_rows"] = position["n_bad_rows"]
        self._progress.counts = dict(self._counts)
        self._progress.n_blocks += 1
        self._progress.position = position
        self._working.save(self._progress)
        for writer in self._writers.values():
            writer.publish()
        if is_last:  # only now, for whoever reads it makes no more writers
            self._progress.is_finished = True
            self._working.save(self._progress)

    def close(self) -> None:
        """Closes all files, of which only an error has left any open but the table of digests."""
        for writer in self._writers.values():
            writer.abandon()
        if self._seen:
            self._seen.close()

    def _write_block(self) -> None:
        """Hands each document to the writer of its split, in the order of the shuffle."""
        block = self._block
        if self._plan.is_shuffled:
            entropy = np.random.SeedSequence((self._plan.encoding.seed, self._progress.n_blocks))
            keys = entropy.generate_state(len(block), np.uint64)
            block = [block[index] for index in np.argsort(keys, kind="stable")]
        by_split = {split: [] for split in self._writers}
        for document in block:
            by_split["val" if document[2] else "train"].append(document)
        for split, documents in by_split.items():
            if documents:
                self._writers[split].add(
                    np.concatenate([ids for ids, _, _ in documents]),
                    n_bytes=sum(n_bytes for _, n_bytes, _ in documents),
                    n_documents=len(documents),
                )
        self._clear_block()

    def _clear_block(self) -> None:
        # Ids, UTF-8 bytes, and whether it is held out.
        self._block: list[tuple[np.ndarray, int, bool]] = []
        self._n_in_block = 0
