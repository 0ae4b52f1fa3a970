"""The type of token ids in shards and in memory."""


def token_dtype(vocab_size: int) -> str:
    """uint16 for up to 65,536 entries, uint32 beyond, both little-endian."""
    return "<u2" if vocab_size <= 2**16 else "<u4"
