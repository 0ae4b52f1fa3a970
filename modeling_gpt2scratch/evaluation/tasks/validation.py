"""Task `val`: loss, perplexity and bits per byte on the validation split of a shard directory.

Protocol `stream`: the documents, each after one end-of-text token, are one stream of tokens, cut
into windows as in training, so the loss is a training loop's validation loss. The documents are
decoded with the directory's tokenizer and encoded with the model's, so that models with different
tokenizers see the same text. Only bits per byte compares across tokenizers; loss and perplexity
are per token. Only models of one context length have the same windows.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeling_gpt2scratch.evaluation.scoring.scorer import (
    CausalScorer,
    TaskResult,
    cut_windows,
    perplexity_estimate,
    ratio_estimate,
)

if TYPE_CHECKING:
    from modeling_gpt2scratch.evaluation.compare import CompareConfig

HEADER_INTS = 256  # little-endian int32: magic, version, n_tokens, vocab_size, zeros
# Magic and version by the type of the tokens.
LAYOUTS = {"<u2": (20240520, 1), "<u4": (20240801, 7)}
FORMAT = {"format": "gpt2scratch-shards", "version": 1, "header_bytes": 1024}
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

    split: ValidationSplit
    tokenizer: PreTrainedTokenizerBase  # the one the split was encoded with
    limit: int | None

    @classmethod
    def from_config(cls, config: CompareConfig) -> ValidationTask:
        """Split `val` of `config.val_data`, and the first `config.limit` windows of it."""
        split = read_split(Path(config.val_data), "val")
        tokenizer = AutoTokenizer.from_pretrained(config.val_data)
        if tokenizer.eos_token_id != split.end_of_text_id:
            raise ValueError(
                f"{config.val_data}: expected a tokenizer whose eos token is the manifest's "
                f"{split.end_of_text_id}, found {tokenizer.eos_token_id}"
            )
        return cls(split, tokenizer, config.limit)

    @property
    def sha256(self) -> str:
        """Digest of the whole split, whatever the limit."""
        return self.split.sha256

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
        nats, text_nats, n_bytes = np.zeros((3, len(windows)))
        n_targets = np.array([len(window) - 1 for window in windows])
        for index, window_nats in scorer.score_windows(windows, description="val"):
            targets = windows[index][1:]
            is_text = targets != scorer.tokenizer.eos_token_id
            nats[index] = window_nats.sum(dtype=np.float64)
            text_nats[index] = window_nats[is_text].sum(dtype=np.float64)
            n_bytes[index] = token_bytes[targets[is_text]].sum()
        loss = ratio_estimate(nats, n_targets)
        return TaskResult(
            n_samples=len(windows),
            estimates={
                "loss": loss,
                "perplexity": perplexity_estimate(loss),
                "bits_per_byte": ratio_estimate(text_nats / math.log(2), n_bytes),
            },
            details={
                "window_tokens": int(n_targets[0]),
                "n_target_tokens": int(n_targets.sum()),
                "n_target_bytes": int(n_bytes.sum()),
            },
            samples={"loss": nats, "perplexity": nats, "bits_per_byte": text_nats},
        )

    def encode(self, tokenizer: PreTrainedTokenizerBase, n_tokens: int | None) -> np.ndarray:
        """The split as a stream of `tokenizer`'s ids (int64), each document after its `eos` token.

        Args:
            tokenizer: of the model under test. With the split's own, the stream is the split.
            n_tokens: stop soon after so many ids; None for the whole split.

        Raises:
            ValueError: for a tokenizer without an `eos` token, or whose tokens do not add up to
                the bytes of the text.
        """
        if tokenizer.eos_token_id is None:
            raise ValueError("expected a tokenizer with an eos token, found none")
        token_bytes = bytes_of_tokens(tokenizer)
        pieces: list[np.ndarray] = []
        n_encoded = 0
        for text, ids in self._encode_documents(tokenizer):
            expected, found = len(text.encode()), int(token_bytes[ids].sum())
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


def bytes_of_tokens(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """UTF-8 bytes of each id of a byte-level vocabulary, where a character stands for a byte."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return np.array([len(token or "") for token in tokens], dtype=np.int64)


def read_split(directory: Path, name: str) -> ValidationSplit:
    """Split `name` of a shard directory, every length and checksum of its manifest verified.

    Raises:
        ValueError: naming the file, the expected and the found.
        OSError: for a file that cannot be read.
    """
    path = directory / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        vocab_size, end_of_text_id = manifest["vocab_size"], manifest["end_of_text_id"]
        dtype = "<u2" if vocab_size <= 2**16 else "<u4"
        expected = FORMAT | {"dtype": dtype}
        found = {key: manifest[key] for key in expected}
        if found != expected:
            raise ValueError(f"expected {expected}, found {found}")
        split = manifest["splits"][name]
        shards = [(shard["file"], shard["n_tokens"], shard["sha256"]) for shard in split["shards"]]
        n_tokens = split["n_tokens"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected a {FORMAT['format']} manifest, missing {error}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    digest = hashlib.sha256()
    pieces = []
    for file, n_shard_tokens, sha256 in shards:
        content = (directory / file).read_bytes()
        digest.update(content)
        shard = (content, n_shard_tokens, sha256, vocab_size, dtype)
        pieces.append(_parse_shard(directory / file, *shard))
    token_ids = np.concatenate([np.empty(0, dtype=np.int32), *pieces])
    if len(token_ids) != n_tokens:
        raise ValueError(f"{path}: expected {n_tokens} tokens in {name}, found {len(token_ids)}")
    if len(token_ids) == 0:
        raise ValueError(f"{path}: expected tokens in {name}, found none")
    return ValidationSplit(token_ids, end_of_text_id, digest.hexdigest())


def _parse_shard(
    path: Path, content: bytes, n_tokens: int, sha256: str, vocab_size: int, dtype: str
) -> np.ndarray:
    """Token ids (int32) of one shard file."""
    header_bytes = 4 * HEADER_INTS
    n_bytes = header_bytes + np.dtype(dtype).itemsize * n_tokens
    if len(content) != n_bytes:
        raise ValueError(f"{path}: expected {n_bytes} bytes, found {len(content)}")
    if (found_sha256 := hashlib.sha256(content).hexdigest()) != sha256:
        raise ValueError(f"{path}: expected sha256 {sha256}, found {found_sha256}")
    expected_header = [*LAYOUTS[dtype], n_tokens, vocab_size]
    header = np.frombuffer(content, dtype="<i4", count=HEADER_INTS)[:4].tolist()
    # Programs that do not know the vocabulary leave its size 0.
    if header not in (expected_header, [*expected_header[:3], 0]):
        raise ValueError(f"{path}: expected a header {expected_header}, found {header}")
    token_ids = np.frombuffer(content, dtype=dtype, offset=header_bytes)
    if n_tokens and token_ids.max() >= vocab_size:
        raise ValueError(f"{path}: expected ids below {vocab_size}, found {token_ids.max()}")
    return token_ids.astype(np.int32)
