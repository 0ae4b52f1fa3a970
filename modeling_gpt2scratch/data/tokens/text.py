"""The one entrance for text, to the preparation of data and to the evaluation of models."""

import json
import re
from itertools import pairwise

# Of a text that libraries get whole: of longer ones they want a hundred bytes per character.
LONG_CHARACTERS = 1 << 18
BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)")
END_OF_TEXT = "<|endoftext|>"  # begins every document; in a .txt file, it parts them


def well_formed(text: str) -> str:
    """The text with unpaired surrogates, which JSON can smuggle in, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def cut_between_words(text: str, n_characters: int) -> list[str]:
    """A long text in pieces of about so many characters, all but the first with a space in front.

    GPT-2's pre-tokenization parts words there, so the pieces have the words of the text. A text
    without spaces stays whole.
    """
    cuts = [0]
    while found := BETWEEN_WORDS.search(text, cuts[-1] + n_characters):
        cuts.append(found.start())
    return [text[start:end] for start, end in pairwise([*cuts, len(text)])]


def parse_json(content: str) -> object:
    """The value of a JSON text, also of one with integers that Python refuses to read.

    Raises:
        ValueError: if it is none.
        RecursionError: if it is nested too deeply.
    """
    try:
        return json.loads(content)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(content, parse_int=_any_integer)


def _any_integer(digits: str) -> int | float:
    """The integer; above some 4,300 digits, which Python refuses to read, infinity."""
    try:
        return int(digits)
    except ValueError:
        return float(digits)
