"""Names that tokenizers have on the command line; reading them loads next to nothing."""

from modeling_gpt2scratch.common.errors import MendableError

GPT2 = "gpt2"
BYTES = "bytes"
TRAINED_PREFIX = "bpe:"
KNOWN_NAMES = "gpt2, bytes, or a directory or Hub repository with a tokenizer"
KNOWN_NAMES_WITH_TEXT = KNOWN_NAMES.replace("bytes,", "bytes, bpe:N,")  # which trains on it
MAX_TRAINED_VOCAB_SIZE = 2**16  # what uint16 shards can hold


class TokenizerError(MendableError, ValueError):
    """A tokenizer that cannot be had or cannot be used here."""


def trained_vocab_size(name: str) -> int | None:
    """N of a tokenizer called "bpe:N", None for any other name.

    Raises:
        TokenizerError: if N is not a number that holds the 256 bytes and `<|endoftext|>`, and that
            shards can hold.
    """
    if not name.startswith(TRAINED_PREFIX):
        return None
    size = name.removeprefix(TRAINED_PREFIX)
    if not size.isdecimal() or not 257 <= int(size) <= MAX_TRAINED_VOCAB_SIZE:
        raise TokenizerError(
            f"{name}: expected bpe:N with N from 257 to {MAX_TRAINED_VOCAB_SIZE}, found {size!r}"
        )
    return int(size)
