"""The numbers of tokens: how many there can be, and the type that holds them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # workers need neither
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


def token_dtype(vocab_size: int) -> str:
    """uint16 for ids below 65,536, uint32 beyond, both little-endian."""
    return "<u2" if vocab_size <= 2**16 else "<u4"


def vocab_size_of(tokenizer: "PreTrainedTokenizerBase | Tokenizer") -> int:
    """The highest id plus one: as many rows has an embedding of these ids.

    That is more than the number of entries where ids are left out.
    """
    return max(tokenizer.get_vocab().values(), default=-1) + 1
