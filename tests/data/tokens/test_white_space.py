"""Long runs of white space: tiktoken's ids are those of `tokenizers`, however long a run is."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import TIKTOKEN_CACHE

from modeling_gpt2scratch.data.tokens import encoder as encoders
from modeling_gpt2scratch.data.tokens.encoder import DocumentEncoder
from modeling_gpt2scratch.data.tokens.tokenizer import load_tokenizer

END_OF_TEXT_ID = 50256
# All that Unicode calls white space, and what only Python or nobody does.
WHITE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
NEARLY_WHITE = "\x1c\x1d\x1e\x1f\u200b\u180e\ufeff"
WORDS = ["a", "word", "'s", "don't", "12", "1.5", "?!", "é", "狐", "🍇", "_", "<|endoftext|>", "\0"]


@pytest.fixture(scope="module")
def encoded():
    """The ids of a text by tiktoken in pieces, and by the `tokenizers` library in one."""
    if not TIKTOKEN_CACHE.is_dir():
        pytest.skip(f"needs {TIKTOKEN_CACHE}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN_CACHE))
        backend = load_tokenizer("gpt2").backend_tokenizer
        tiktoken_encoder = DocumentEncoder("gpt2", END_OF_TEXT_ID)
    tokenizers_encoder = DocumentEncoder(backend.to_str(), END_OF_TEXT_ID)

    def encode(text):
        ids, _ = tiktoken_encoder.encode([text])
        expected, _ = tokenizers_encoder.encode([text])
        return ids, expected

    return encode


white_space = st.text(WHITE, max_size=30) | st.builds(
    lambda character, n: character * n, st.sampled_from(WHITE), st.integers(1, 40)
)
pieces = white_space | st.sampled_from(WORDS) | st.text(NEARLY_WHITE, max_size=3) | st.text()


@pytest.mark.parametrize("shortest", [1, 2, 3, 10])
@given(text=st.lists(pieces, max_size=12).map("".join))
@settings(max_examples=400)
def test_a_text_cut_at_its_white_space_has_the_ids_of_the_whole(encoded, shortest, text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoders, "LONG_CHARACTERS", shortest)  # of a text, and of a run
        pieces = encoders._pieces(text)
        ids, expected = encoded(text)
    assert ids.tolist() == expected.tolist()
    runs = re.findall(f"[{WHITE}]{{{shortest},}}(?=[^{WHITE}])", text)
    assert len(pieces) == 1 + len(runs) and "".join(pieces) == text


@pytest.mark.parametrize(
    "text",
    [
        "a" + " " * 1_000_000 + "b",
        "a" + "\n" * 1_000_001,
        " \t" * 700_000 + "b" + "\u3000" * 1_100_000 + "c",
    ],
    ids=["between words", "at the end", "several"],
)
def test_a_run_of_a_million_is_encoded(encoded, text):
    ids, expected = encoded(text)
    assert np.array_equal(ids, expected)


def test_an_ordinary_text_is_not_searched(encoded, monkeypatch):
    def pieces(document):
        raise AssertionError("searched")

    monkeypatch.setattr(encoders, "_pieces", pieces)
    ids, expected = encoded("a  b " * 10_000)
    assert ids.tolist() == expected.tolist()
