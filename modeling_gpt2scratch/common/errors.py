"""What is wrong with the input, for every part that reads it."""


class SourceError(ValueError):
    """Input that cannot be read; the message names the file, and the line where there is one."""
