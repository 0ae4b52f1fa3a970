"""Texts that tokenizers trip over, some to train one on, and their ids by our encoder."""

import numpy as np
import pytest
from support.paths import SHARED_DATA
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_gpt2scratch.data.tokens.encoder import DocumentEncoder
from modeling_gpt2scratch.data.tokens.tokenizer import tokenizer_spec

END_OF_TEXT = "<|endoftext|>"
TRICKY = [
    "",
    " ",
    "   three spaces, and two behind  ",
    "\ttab\n\n\nlines\r\n\r",
    "don't we'll THEY'VE it's 'sessions' ''",
    "1234567890 3.14159 1,000,000 x2y ½ Ⅷ ٣",
    "naïve café / naïve café",
    "狐と葡萄 여우와 포도 الثعلب والعنب",
    "🍇 👩‍👩‍👧 🇫🇷",
    "nul \x00 bell \x07 no-break\xa0space zero\u200bwidth \ufeffmark \ufffd",
    "İstanbul ſ ß ﬁ Å",
    "def f(x):\n        return x ** 2  # indented\n",
    "a" * 500 + " " * 500 + "?!" * 250,
    "<|endoftext|",
    "<|im_start|>",
]
CORPUS = [
    "the cat sat on the mat, and the dog sat on the cat.",
    "on the mat the cat and the dog sat and sat; the end of the dog was the cat",
    "a naïve café: “the mat” was on the dog!\n\nthe end",
] * 3
VOCAB_SIZE = 290  # few enough for so little text to fill


def real_text():
    """A book's worth of English, or the reason to skip."""
    path = SHARED_DATA / "wikitext2_raw" / "wiki.test.raw"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    return path.read_text(encoding="utf-8")[:300_000]


def encoded(name, tokenizer, documents):
    """The ids of each document, as lists."""
    encoder = DocumentEncoder(tokenizer_spec(name, tokenizer), tokenizer.eos_token_id)
    ids, lengths = encoder.encode(documents)
    return [own.tolist() for own in np.split(ids, np.cumsum(lengths)[:-1])]


def gappy_tokenizer():
    """258 entries, of which the last, of two letters, has the id 65573."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)}
    vocabulary |= {END_OF_TEXT: 256, "ab": 65573}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT)
