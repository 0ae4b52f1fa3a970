"""What a text may hold, before it is encoded."""

END_OF_TEXT = "<|endoftext|>"  # begins every document; in a .txt file, it parts them


def well_formed(text: str) -> str:
    """The text with unpaired surrogates, which JSON can smuggle in, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
