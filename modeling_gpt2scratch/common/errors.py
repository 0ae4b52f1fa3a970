"""Input that cannot be read, and any error in one line."""

MAX_MESSAGE_CHARACTERS = 300  # some libraries write pages


class SourceError(ValueError):
    """Input that cannot be read; the message names the file, and the line where there is one."""


def one_line(error: BaseException) -> str:
    """The message of an error, without line breaks and cut if long; without one, its class."""
    message = " ".join(str(error).split()) or type(error).__name__
    if len(message) <= MAX_MESSAGE_CHARACTERS:
        return message
    return f"{message[:MAX_MESSAGE_CHARACTERS]} ..."


def named(error: BaseException) -> str:
    """The class of an error and its message, in one line."""
    name = type(error).__name__
    return f"{name}: {one_line(error)}" if str(error) else name
