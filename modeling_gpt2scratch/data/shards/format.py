"""Token shards: the files of token ids that a data set consists of.

A shard is a header of 256 little-endian int32 and then its tokens, little-endian:

    header[0] = 20240520   magic       header[2] = tokens in this file
    header[1] = 1          version     header[3] = vocabulary size, 0 if unknown

Tokens are uint16; a vocabulary of more than 65,536 entries takes uint32, magic 20240801, version 7.
The first three words and the token types are llm.c's, so llm.c and modded-nanogpt read our shards.
A document may run from one shard into the next: a split is one long stream of tokens in which
`<|endoftext|>` stands before each document. `manifest.py` says which shards make a data set.
"""

from pathlib import Path

import numpy as np

from modeling_gpt2scratch.common.errors import MendableError
from modeling_gpt2scratch.data.tokens.ids import token_dtype

# Magic and version by the type of the tokens: those of llm.c for GPT-2 and for Llama 3.
LAYOUTS = {"<u2": (20240520, 1), "<u4": (20240801, 7)}
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
SUFFIXES = (".bin", ".npy")  # of our files of tokens, and of those of other programs
MAX_SHARD_TOKENS = 2**31 - 1  # what the header can say


class ShardError(MendableError, ValueError):
    """A shard or manifest that must not be trained on; the message names the file and the fault."""


def shard_header(n_tokens: int, vocab_size: int) -> np.ndarray:
    """The first 1,024 bytes of a shard, as 256 little-endian int32."""
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:4] = *LAYOUTS[token_dtype(vocab_size)], n_tokens, vocab_size
    return header


def check_token_ids(path: Path, tokens: np.ndarray, *, vocab_size: int) -> None:
    """Reads a whole shard once and refuses ids that the model has no embedding for.

    Raises:
        ShardError: at the first id that is not below `vocab_size`.
    """
    if (position := first_stranger(tokens, vocab_size)) is not None:
        raise ShardError(
            f"{path}: expected ids below {vocab_size}, found {tokens[position]} at token "
            f"{position}; prepare the data again"
        )


def first_stranger(tokens: np.ndarray, vocab_size: int) -> int | None:
    """The flat index of the first that is not from 0 to `vocab_size` - 1, None if all are."""
    is_signed = tokens.dtype.kind == "i"  # as other programs' types may be
    if tokens.max(initial=0) < vocab_size and not (is_signed and tokens.min(initial=0) < 0):
        return None
    return int(np.argmax((tokens >= vocab_size) | (tokens < 0)))
