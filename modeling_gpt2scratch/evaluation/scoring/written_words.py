"""Words that a model wrote, compared with the ones that it should have written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from modeling_gpt2scratch.data.tokens.ids import vocab_size_of

from .encoding import encode_plain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The 127 words of the stop-word list that NLTK first came with, after Porter's.
STOP_WORDS = """
    i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she
    her hers herself it its itself they them their theirs themselves what which who whom this that
    these those am is are was were be been being have has had having do does did doing a an the and
    but if or because as until while of at by for with about against between into through during
    before after above below to from up down in out on off over under again further then once here
    there when where why how all any both each few more most other some such no nor not only own
    same so than too very s t can will just don should now
"""


def begins_with_words(text: str, words: str) -> bool:
    """Whether `text` begins with `words` and goes on with something that does not lengthen them.

    A letter or digit does, also after an apostrophe or a hyphen.
    """
    return re.match(re.escape(words) + r"(?!['’-]?\w)", text) is not None


def begins_with_stop_word(text: str) -> bool:
    """Whether the first word of `text` is a stop word after a space, in capitals or not."""
    return any(begins_with_words(text.lower(), f" {word}") for word in STOP_WORDS.split())


def written_texts(
    tokenizer: PreTrainedTokenizerBase, written: Sequence[Sequence[int]]
) -> list[str]:
    """The text of ids that were written after a word, with the space they may begin with.

    By themselves they would lose it: the tokenizers of Llama 1 and 2 drop the first space of what
    they decode. So a letter is decoded before them, and cut off.
    """
    (front,) = encode_plain(tokenizer, ["a"])
    front_text = tokenizer.decode(front, clean_up_tokenization_spaces=False)
    texts = tokenizer.batch_decode(
        [[*front, *ids] for ids in written], clean_up_tokenization_spaces=False
    )
    return [text.removeprefix(front_text) for text in texts]


def stop_word_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids whose text is a space and a stop word, in capitals or not."""
    stop_words = set(STOP_WORDS.split())
    texts = written_texts(tokenizer, np.arange(vocab_size_of(tokenizer))[:, None].tolist())
    return [
        index
        for index, text in enumerate(texts)
        if text.startswith(" ") and text[1:].lower() in stop_words
    ]
