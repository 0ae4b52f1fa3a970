"""GPT-2's tokenizer as two libraries have it, and one of our own."""

import pytest
import tiktoken
from support.odd_texts import CORPUS, VOCAB_SIZE

from modeling_gpt2scratch.data.tokens.tokenizer import load_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def gpt2(gpt2_files):
    """GPT-2's tokenizer as we build it."""
    return load_tokenizer("gpt2")


@pytest.fixture(scope="module")
def openai(gpt2_files):
    """GPT-2's tokenizer as OpenAI's library has it."""
    return tiktoken.get_encoding("gpt2")


@pytest.fixture(scope="module")
def trained():
    """A tokenizer trained on a few sentences."""
    return train_tokenizer(CORPUS, VOCAB_SIZE)
