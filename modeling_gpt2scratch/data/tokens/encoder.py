"""Documents to token ids, in worker processes that load neither torch nor transformers."""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import tiktoken
from tokenizers import Tokenizer

from modeling_gpt2scratch.common.errors import named

from .ids import token_dtype, vocab_size_of
from .names import BYTES, GPT2
from .text import LONG_CHARACTERS, cut_between_words

DIGEST_BYTES = 16
# White space as Unicode and tiktoken have it; Python's `\s` has four characters more.
WHITE_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


class DocumentError(ValueError):
    """A document that cannot be encoded.

    Args:
        index: of the document among those that were to be encoded.
    """

    def __init__(self, index: int, reason: str):
        super().__init__(index, reason)
        self.index = index

    def __str__(self) -> str:
        return f"expected a document that the tokenizer can encode, found {self.args[1]}"


class DocumentEncoder:
    """Turns documents into ids, `<|endoftext|>` in front of each.

    Text that spells `<|endoftext|>` is encoded letter by letter: only the encoder sets document
    borders.

    Args:
        tokenizer_spec: "gpt2", which tiktoken encodes, twice as fast as the `tokenizers` library;
            "bytes", for which numpy does; or the JSON of a `tokenizers.Tokenizer`.
        end_of_text_id: of that tokenizer.

    Raises:
        ValueError: if the vocabulary has no such id.
    """

    def __init__(self, tokenizer_spec: str, end_of_text_id: int):
        self._end_of_text_id = end_of_text_id
        if tokenizer_spec == GPT2:
            self._gpt2 = tiktoken.get_encoding(GPT2)
            self._encode_each = partial(map, self._gpt2_ids)
            self._vocab_size = self._gpt2.n_vocab
        elif tokenizer_spec == BYTES:
            self._encode_each = partial(map, _byte_ids)
            self._vocab_size = 257
        else:
            self._backend = Tokenizer.from_str(tokenizer_spec)
            self._backend.encode_special_tokens = True
            self._backend.no_truncation()  # some tokenizers are saved with a length limit
            self._backend.no_padding()
            self._encode_each = self._backend_ids
            self._vocab_size = vocab_size_of(self._backend)
            self._can_cut = parts_words_as_gpt2(json.loads(tokenizer_spec))
        if not 0 <= end_of_text_id < self._vocab_size:
            raise ValueError(f"expected an id below {self._vocab_size}, found {end_of_text_id}")

    def encode(self, documents: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all documents one after another, and how many of them are each document's.

        Returns:
            ids: uint16, or uint32 for a vocabulary that needs it, of shape (sum of lengths,).
            lengths: int64, of shape (documents,); `<|endoftext|>` counts.
        """
        per_document = list(self._encode_each(documents))
        lengths = np.array([1 + len(ids) for ids in per_document], dtype=np.int64)
        ids = np.empty(int(lengths.sum()), dtype=token_dtype(self._vocab_size))
        start = 0
        for own in per_document:
            if own.max(initial=0) >= self._vocab_size:  # may not fit the type
                raise ValueError(f"expected ids below {self._vocab_size}, found {own.max()}")
            if (own == self._end_of_text_id).any():  # Unigram models take it for a word
                raise ValueError("expected text, found what the tokenizer takes for an end of text")
            ids[start] = self._end_of_text_id
            ids[start + 1 : start + 1 + len(own)] = own
            start += 1 + len(own)
        return ids, lengths

    def _backend_ids(self, documents: list[str]) -> list[np.ndarray]:
        """The ids of the `tokenizers` library, which takes a hundred bytes for each character."""
        if self._can_cut and any(len(document) > LONG_CHARACTERS for document in documents):
            return [self._ids_of_pieces(document) for document in documents]
        encodings = self._backend.encode_batch_fast(documents, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def _ids_of_pieces(self, document: str) -> np.ndarray:
        """The same ids, of a part of a long document at a time."""
        pieces = cut_between_words(document, LONG_CHARACTERS)
        encode = self._backend.encode
        ids = (encode(piece, add_special_tokens=False).ids for piece in pieces)
        return np.concatenate([np.array(own, dtype=np.uint32) for own in ids])

    def _gpt2_ids(self, document: str) -> np.ndarray:
        """tiktoken's ids, of a long document piece by piece."""
        pieces = [document] if len(document) < LONG_CHARACTERS else _pieces(document)
        ids = [self._gpt2.encode_to_numpy(piece, disallowed_special=()) for piece in pieces]
        return ids[0] if len(ids) == 1 else np.concatenate(ids)


def parts_words_as_gpt2(tokenizer: dict) -> bool:
    """Whether a tokenizer, as JSON values, takes words with the space before and nothing larger."""
    parts = tokenizer["pre_tokenizer"] or {}
    is_gpt2s = parts.get("type") == "ByteLevel" and parts.get("use_regex", True)
    has_larger = any(
        " " in token["content"] or token["lstrip"] or token["rstrip"]
        for token in tokenizer["added_tokens"]
    )
    is_plain = tokenizer["normalizer"] is None and not has_larger
    return is_gpt2s and is_plain and not parts.get("add_prefix_space")


@dataclass(frozen=True)
class EncodedDocuments:
    """Some documents in their order, as workers return them."""

    ids: np.ndarray  # of all documents, `<|endoftext|>` before each
    lengths: np.ndarray  # int64 (documents,), tokens of each
    n_bytes: np.ndarray  # int64 (documents,), UTF-8 bytes of each
    digests: list[bytes]  # of each document's text
    is_val: list[bool]  # whether each is held out for validation
    n_failed: int = 0  # documents that were left out because they cannot be encoded


def encode_documents(
    encoder: DocumentEncoder,
    documents: list[str],
    *,
    seed: int,
    val_fraction: float,
    n_train: int | None = None,
    skips_failures: bool = False,
) -> EncodedDocuments:
    """The documents, encoded, hashed and split.

    Args:
        val_fraction: share of the documents that are held out, by their text.
        n_train: if given, the documents behind so many are held out, and no others.
        skips_failures: whether documents that cannot be encoded are left out.

    Raises:
        DocumentError: at one that cannot be encoded, unless such documents are to be left out.
    """
    kept, failures = dict(enumerate(documents)), {}
    try:
        ids, lengths = encoder.encode(documents)
    except BaseException as error:  # a panic in Rust is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        failures = _failures(encoder, documents)
        if not (failures and skips_failures):
            index, reason = next(iter(failures.items()), (0, named(error)))
            raise DocumentError(index, reason) from None
        kept = {index: text for index, text in kept.items() if index not in failures}
        ids, lengths = encoder.encode(list(kept.values()))
    texts = [document.encode() for document in kept.values()]
    digests = [_digest(text, seed) for text in texts]
    if n_train is None:
        is_val = [is_held_out(digest, val_fraction) for digest in digests]
    else:
        is_val = [index >= n_train for index in kept]
    return EncodedDocuments(
        ids=ids,
        lengths=lengths,
        n_bytes=np.array([len(text) for text in texts], dtype=np.int64),
        digests=digests,
        is_val=is_val,
        n_failed=len(failures),
    )


def document_digest(document: str, seed: int) -> bytes:
    """16 bytes that depend on the text and the seed alone; copies of a document share them."""
    return _digest(document.encode(), seed)


def is_held_out(digest: bytes, val_fraction: float) -> bool:
    """Whether a document belongs to the validation split: decided by its text, not its place."""
    return int.from_bytes(digest[:8], "little") < val_fraction * 2**64


def use_one_thread() -> None:
    """Keeps the `tokenizers` library from starting a thread for each core in each worker."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _byte_ids(document: str) -> np.ndarray:
    """The values of the bytes."""
    return np.frombuffer(document.encode(), dtype=np.uint8)


def _pieces(document: str) -> list[str]:
    """The document, cut where GPT-2's pre-tokenization parts a long run of white space.

    A million before a word are more than tiktoken's regular expression can bear: it takes all but
    the last, which goes with the word, and remembers every step on the way.
    """
    runs = re.finditer(f"[{WHITE_SPACE}]{{{LONG_CHARACTERS},}}", document)
    # At the end of the text no word follows, and the run is one piece.
    cuts = [run.end() - 1 for run in runs if run.end() < len(document)]
    return [document[start:end] for start, end in pairwise([0, *cuts, len(document)])]


def _failures(encoder: DocumentEncoder, documents: list[str]) -> dict[int, str]:
    """Why documents cannot be encoded, by their index."""
    reasons = {}
    for index, document in enumerate(documents):
        try:
            encoder.encode([document])
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            reasons[index] = named(error)
    return reasons


def _digest(text: bytes, seed: int) -> bytes:
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES, key=str(seed).encode()).digest()
