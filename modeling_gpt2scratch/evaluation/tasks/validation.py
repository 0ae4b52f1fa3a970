"""Task `val`: loss, perplexity and bits per byte on the validation split of a shard directory.

Protocol `stream`: the documents, each after one end-of-text token, are one stream of tokens, cut
into windows as in training, so the loss is a training loop's validation loss. The documents are
decoded with the directory's tokenizer and encoded with the model's, so that models with different
tokenizers see the same text. Only bits per byte compares across tokenizers; loss and perplexity
are per token. Only models of one context length have the same windows.

Protocol `stream:document-mask`: the documents of a window do not see each other, as in training
with `--document_mask`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from modeling_gpt2scratch.data.shards.directory import (
    load_own_tokenizer,
    open_shard,
    unlisted,
    unlisted_files,
)
from modeling_gpt2scratch.data.shards.format import ShardError, check_token_ids
from modeling_gpt2scratch.data.shards.manifest import MANIFEST_NAME, Manifest
from modeling_gpt2scratch.data.tokens.ids import vocab_size_of

from .samples import SampleData, Selection
from .task import TaskResult, perplexity_estimate, ratio_estimate

if TYPE_CHECKING:  # torch comes with it, and a command line needs none
    from transformers import PreTrainedTokenizerBase

    from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer

DOCUMENTS_PER_CALL = 64


@dataclass(frozen=True)
class ValidationSplit:
    """The tokens of one split, and what is needed to read them as text.

    An `end_of_text_id` stands before each document, or, if `token_ids` begins with none, between
    two documents. `sha256` is that of the split's shard files one after the other:
    `cat val_*.bin | sha256sum`.
    """

    token_ids: np.ndarray  # int32
    end_of_text_id: int
    sha256: str

    def documents(self) -> list[np.ndarray]:
        """Token ids of each document, the end-of-text tokens left out."""
        bounds = [*np.flatnonzero(self.token_ids == self.end_of_text_id), len(self.token_ids)]
        if bounds[0] > 0:
            # The stream begins with a document. If it ends with an end-of-text token, as where each
            # document is followed by one, then no empty document comes after it.
            bounds.insert(0, -1)
            if bounds[-2] == len(self.token_ids) - 1:
                bounds.pop()
        return [
            self.token_ids[start + 1 : stop]
            for start, stop in zip(bounds[:-1], bounds[1:], strict=True)
        ]


class ShardDirectory(SampleData):
    """The directory itself, in place of a file in it."""

    @property
    def help(self) -> str:
        """What `argument` takes, for the command line."""
        return "a shard directory of prepare_data.py"

    def source(self, selection: Selection) -> str:
        """The directory that is named.

        Raises:
            ValueError: if none is.
        """
        if selection.place is None:
            raise ValueError(f"expected a shard directory as --{self.argument}, found none")
        return selection.place


@dataclass(frozen=True)
class ValidationTask:
    """Language modelling of a shard directory's validation split."""

    protocol: ClassVar[str] = "stream"
    version: ClassVar[int] = 1
    samples: ClassVar[str] = "windows"
    metrics: ClassVar[dict[str, bool]] = {
        "loss": False,
        "perplexity": False,
        "bits_per_byte": False,
    }
    per_token: ClassVar[tuple[str, ...]] = ("loss", "perplexity")
    data: ClassVar[SampleData] = ShardDirectory(
        argument="val_data", file="manifest.json", is_own=True
    )

    split: ValidationSplit
    tokenizer: PreTrainedTokenizerBase  # the one the split was encoded with
    limit: int | None

    @classmethod
    def load(cls, selection: Selection) -> ValidationTask:
        """Split `val` of a shard directory, and the first `selection.limit` windows of it."""
        directory = Path(cls.data.source(selection))
        manifest = Manifest.load(directory)
        split = read_split(directory, manifest)
        return cls(split, load_own_tokenizer(directory, manifest), selection.limit)

    @property
    def sha256(self) -> str:
        """Digest of the whole split, whatever the limit."""
        return self.split.sha256

    @property
    def data_vocabulary(self) -> list[int | str]:
        """What decides which text the split's tokens are."""
        from modeling_gpt2scratch.data.tokens.tokenizer import vocabulary_of  # with transformers

        return [*vocabulary_of(self.tokenizer)]

    def evaluate(self, scorer: CausalScorer) -> TaskResult:
        """Loss in nats per token, its exponential, and bits per byte of text.

        The loss counts end-of-text targets, as training does; bits per byte leaves out both their
        bits and their bytes. The standard errors take the windows as independent.
        """
        window_tokens = scorer.context_tokens
        n_needed = None if self.limit is None else self.limit * window_tokens + 1
        token_ids = self.encode(scorer.tokenizer, n_needed)
        windows = cut_windows(token_ids, window_tokens)[: self.limit]
        token_bytes = bytes_of_tokens(scorer.tokenizer)
        end_of_text_id = scorer.tokenizer.eos_token_id
        nats, text_nats, n_bytes = np.zeros((3, len(windows)))
        n_targets = np.array([len(window) - 1 for window in windows])
        parts = [self.parts_of(window, end_of_text_id) for window in windows]
        owners = np.repeat(np.arange(len(windows)), [len(own) for own in parts])
        rows = [part for own in parts for part in own]
        for index, row_nats in scorer.score_windows(rows, description="val"):
            targets, owner = rows[index][1:], owners[index]
            is_text = targets != end_of_text_id
            nats[owner] += row_nats.sum(dtype=np.float64)
            text_nats[owner] += row_nats[is_text].sum(dtype=np.float64)
            n_bytes[owner] += token_bytes[targets[is_text]].sum()
        loss = ratio_estimate(nats, n_targets)
        estimates = {"loss": loss, "perplexity": perplexity_estimate(loss)}
        if n_bytes.any():  # else all targets are ends of text
            estimates["bits_per_byte"] = ratio_estimate(text_nats / math.log(2), n_bytes)
        return TaskResult(
            n_samples=len(windows),
            estimates=estimates,
            details={
                "window_tokens": int(n_targets[0]),
                "n_target_tokens": int(n_targets.sum()),
                "n_target_bytes": int(n_bytes.sum()),
            },
            samples={"loss": nats, "perplexity": nats, "bits_per_byte": text_nats},
        )

    def parts_of(self, window: np.ndarray, end_of_text_id: int) -> list[np.ndarray]:
        """What the model sees of a window at a time, each part with the id after it as its last."""
        return [window]

    def encode(self, tokenizer: PreTrainedTokenizerBase, n_tokens: int | None) -> np.ndarray:
        """The split as a stream of `tokenizer`'s ids (int64), each document after its `eos` token.

        Args:
            tokenizer: of the model under test. With the split's own, the stream is the split.
            n_tokens: stop soon after so many ids; None for the whole split.

        Raises:
            ValueError: for a tokenizer without an `eos` token, or whose tokens do not add up to
                the bytes of the text as it normalizes it.
        """
        if tokenizer.eos_token_id is None:
            raise ValueError("expected a tokenizer with an eos token, found none")
        token_bytes = bytes_of_tokens(tokenizer)
        normalize = _normalization_of(tokenizer)
        pieces: list[np.ndarray] = []
        n_encoded = 0
        for text, ids in self._encode_documents(tokenizer):
            expected, found = len(normalize(text).encode()), int(token_bytes[ids].sum())
            if expected != found:
                raise ValueError(
                    f"{type(tokenizer).__name__}: expected byte-level tokens that add up to the "
                    f"{expected} bytes of a document, found {found}"
                )
            pieces += [np.array([tokenizer.eos_token_id]), ids]
            n_encoded += 1 + len(ids)
            if n_tokens is not None and n_encoded >= n_tokens:
                break
        return np.concatenate(pieces)

    def _encode_documents(
        self, tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Each document's text and ids; the name of a special token is text like any other."""
        documents = self.split.documents()
        for start in range(0, len(documents), DOCUMENTS_PER_CALL):
            texts = [
                self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
                for ids in documents[start : start + DOCUMENTS_PER_CALL]
            ]
            encoded = tokenizer(
                texts,
                add_special_tokens=False,
                split_special_tokens=True,
                return_attention_mask=False,
                verbose=False,
            )["input_ids"]
            for text, ids in zip(texts, encoded, strict=True):
                yield text, np.array(ids, dtype=np.int64)


class DocumentMaskTask(ValidationTask):
    """The same, where a token sees its own document alone."""

    protocol: ClassVar[str] = "stream:document-mask"

    def parts_of(self, window: np.ndarray, end_of_text_id: int) -> list[np.ndarray]:
        """A part for each document; the end-of-text token before it ends the part before, too."""
        begins = np.flatnonzero(window[:-1] == end_of_text_id)
        bounds = [0, *begins[begins > 0], len(window) - 1]
        return [window[a : b + 1] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


def bytes_of_tokens(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """UTF-8 bytes of each id of a byte-level vocabulary, int64 of shape (ids,).

    There a character stands for a byte, but for the tokens that were added: these are plain text.
    """
    tokens = tokenizer.convert_ids_to_tokens(list(range(vocab_size_of(tokenizer))))
    lengths = np.array([len(token or "") for token in tokens], dtype=np.int64)
    for index, token in tokenizer.added_tokens_decoder.items():
        lengths[index] = len(token.content.encode())
    return lengths


def read_split(directory: Path, manifest: Manifest) -> ValidationSplit:
    """Split `val` of a shard directory, every length and checksum of its manifest verified.

    Raises:
        ShardError: naming the file, the expected and the found.
    """
    path = directory / MANIFEST_NAME
    if "val" not in manifest.splits:
        raise ShardError(
            f"{path}: expected a split 'val', found {', '.join(manifest.splits)}; prepare the "
            f"data with a --val_fraction above 0"
        )
    split = manifest.splits["val"]
    if not split.shards:
        raise ShardError(f"{path}: expected tokens in the split 'val', found none")
    for file in unlisted_files(directory, manifest):
        raise ShardError(unlisted(file))
    digest = hashlib.sha256()
    pieces = []
    for entry in split.shards:
        shard = directory / entry.file
        pieces.append(open_shard(shard, entry, vocab_size=manifest.vocab_size))
        check_token_ids(shard, pieces[-1], vocab_size=manifest.vocab_size)
        content = shard.read_bytes()
        digest.update(content)
        if (found := hashlib.sha256(content).hexdigest()) != entry.sha256:
            raise ShardError(f"{shard}: expected sha256 {entry.sha256}, found {found}")
    token_ids = np.concatenate([piece.astype(np.int32) for piece in pieces])
    return ValidationSplit(token_ids, manifest.end_of_text_id, digest.hexdigest())


def cut_windows(token_ids: np.ndarray, window_tokens: int) -> list[np.ndarray]:
    """Views of `window_tokens + 1` ids that share one id with the next, the partial tail dropped.

    So each window has `window_tokens` inputs and as many targets, and no id is a target twice: a
    training loop's cut. A stream shorter than one window is one shorter window.

    Raises:
        ValueError: for a stream of fewer than 2 ids, which has no target.
    """
    if len(token_ids) < 2:
        raise ValueError(f"expected a stream of at least 2 tokens, found {len(token_ids)}")
    n_windows = (len(token_ids) - 1) // window_tokens
    if n_windows == 0:
        return [token_ids]
    starts = range(0, n_windows * window_tokens, window_tokens)
    return [token_ids[start : start + window_tokens + 1] for start in starts]


def _normalization_of(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], str]:
    """What a tokenizer does to a text before it looks at it, as some compose its accents (NFC)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    normalizer = getattr(backend, "normalizer", None)
    return normalizer.normalize_str if normalizer is not None else lambda text: text


TASKS: dict[str, type[ValidationTask]] = {
    "val": ValidationTask,
    "val:document-mask": DocumentMaskTask,
}
