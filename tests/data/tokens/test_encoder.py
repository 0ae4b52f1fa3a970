"""Documents become the ids that they should, and text cannot forge a document border."""

import copy
import json
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.odd_texts import END_OF_TEXT, TRICKY, encoded, gappy_tokenizer, real_text
from tokenizers import AddedToken, Tokenizer, models

from modeling_gpt2scratch.data.tokens import encoder as encoders
from modeling_gpt2scratch.data.tokens import tokenizer as tokenizers
from modeling_gpt2scratch.data.tokens.encoder import (
    DocumentEncoder,
    DocumentError,
    encode_documents,
    parts_words_as_gpt2,
)
from modeling_gpt2scratch.data.tokens.ids import vocab_size_of
from modeling_gpt2scratch.data.tokens.text import cut_between_words
from modeling_gpt2scratch.data.tokens.tokenizer import (
    fingerprint,
    load_tokenizer,
    manifest_entries,
    tokenizer_spec,
    train_tokenizer,
)


def test_every_document_begins_with_end_of_text(gpt2):
    expected = [[50256, 15496], [50256], [50256, 995]]  # "Hello", "", " world"
    for name in ("gpt2", "a directory"):
        assert encoded(name, gpt2, ["Hello", "", " world"]) == expected


def test_both_ways_to_encode_give_the_same_ids(gpt2):
    documents = [*TRICKY, real_text()[:50_000], END_OF_TEXT, f"a {END_OF_TEXT}{END_OF_TEXT}\n"]
    with_tiktoken = encoded("gpt2", gpt2, documents)
    assert with_tiktoken == encoded("a directory", gpt2, documents)
    assert [gpt2.decode(ids[1:]) for ids in with_tiktoken] == documents


@pytest.mark.parametrize("name", ["gpt2", "a directory"])
def test_text_that_spells_end_of_text_is_encoded_letter_by_letter(gpt2, name):
    (ids,) = encoded(name, gpt2, [f"one{END_OF_TEXT}two"])
    assert ids[0] == 50256
    assert 50256 not in ids[1:]
    assert [gpt2.decode([token]) for token in ids[1:]] == [
        *("one", "<", "|", "end", "of", "text", "|", ">", "two")
    ]


def test_text_that_spells_end_of_text_is_no_border_for_a_trained_tokenizer_either(trained):
    document = f"the {END_OF_TEXT} mat {END_OF_TEXT}"
    (ids,) = encoded("bpe:290", trained, [document])
    assert ids.count(trained.eos_token_id) == 1
    assert ids[0] == trained.eos_token_id
    assert trained.decode(ids[1:]) == document


def test_encoding_leaves_the_tokenizer_as_it_was(trained):
    encoded("bpe:290", trained, [END_OF_TEXT])
    assert trained.backend_tokenizer.encode(END_OF_TEXT).ids == [trained.eos_token_id]


def test_documents_come_back_in_their_order_as_one_array(trained):
    documents = ["mat " * n for n in (300, 0, 2, 1000, 1)]
    encoder = DocumentEncoder(tokenizer_spec("bpe:290", trained), trained.eos_token_id)
    ids, lengths = encoder.encode(documents)
    assert (ids.dtype, lengths.dtype, len(ids)) == (np.uint16, np.int64, lengths.sum())
    arrays = np.split(ids, np.cumsum(lengths)[:-1])
    assert [trained.decode(own[1:]) for own in arrays] == documents
    ids, lengths = encoder.encode([])
    assert (len(ids), len(lengths)) == (0, 0)


LETTERS = st.text("ab 'stil\n\t.,é1ж中²\xa0\x1c\x85\u200b", max_size=40) | st.sampled_from(TRICKY)


@given(text=st.lists(LETTERS, max_size=8).map(" ".join), longest=st.integers(1, 9))
@settings(max_examples=60)
def test_a_text_cut_between_words_has_the_ids_of_the_whole(trained, text, longest):
    assert parts_words_as_gpt2(json.loads(trained.backend_tokenizer.to_str()))
    expected = encoded("bpe:290", trained, [text, "b"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoders, "LONG_CHARACTERS", longest)
        assert encoded("bpe:290", trained, [text, "b"]) == expected
        patch.setattr(tokenizers, "LONG_CHARACTERS", longest)
        again = train_tokenizer([f"the cat sat {text}"], 270)
    assert fingerprint(again) == fingerprint(train_tokenizer([f"the cat sat {text}"], 270))
    pieces = cut_between_words(text, longest)
    assert "".join(pieces) == text
    assert all(re.match(r" \S", piece) for piece in pieces[1:])


def test_a_tokenizer_whose_tokens_hold_spaces_gets_no_pieces(trained, monkeypatch):
    monkeypatch.setattr(encoders, "LONG_CHARACTERS", 2)
    for added in ("a cat", AddedToken("cat", rstrip=True, normalized=False)):
        other = copy.deepcopy(trained)
        other.add_tokens([added])
        assert not parts_words_as_gpt2(json.loads(other.backend_tokenizer.to_str()))
        (ids,) = encoded("own", other, ["such a cat sat"])
        assert ids[1:] == other.backend_tokenizer.encode("such a cat sat").ids


def test_a_large_vocabulary_gets_32_bits(trained):
    trained = copy.deepcopy(trained)
    trained.add_tokens([f"entry {i}" for i in range(2**16)])
    encoder = DocumentEncoder(tokenizer_spec("many", trained), trained.eos_token_id)
    ids, _ = encoder.encode(["entry 65535"])
    assert ids.dtype == np.uint32
    assert ids[-1] == len(trained) - 1 > 2**16


def test_a_tokenizer_that_was_saved_while_it_truncates_still_encodes_whole_documents(
    trained, tmp_path
):
    trained.save_pretrained(tmp_path)
    saved = load_tokenizer(str(tmp_path))
    saved("the cat", truncation=True, max_length=2)
    saved.save_pretrained(tmp_path)
    document = "the cat sat on the mat, and the dog sat on the cat."
    assert encoded("a directory", load_tokenizer(str(tmp_path)), [document]) == encoded(
        "bpe:290", trained, [document]
    )


def test_the_type_of_ids_is_that_of_the_highest_and_not_of_their_number():
    tokenizer = gappy_tokenizer()
    assert len(tokenizer) == 258
    assert vocab_size_of(tokenizer) == manifest_entries("", tokenizer)["vocab_size"] == 65574
    encoder = DocumentEncoder(tokenizer_spec("gappy", tokenizer), tokenizer.eos_token_id)
    ids, _ = encoder.encode(["ab b"])
    assert ids.dtype == np.uint32
    assert ids[:2].tolist() == [256, 65573]
    assert tokenizer.decode(ids[1:].tolist()) == "ab b"


def test_an_end_of_text_that_the_vocabulary_has_not_is_refused():
    with pytest.raises(ValueError, match="expected an id below 65574, found 65574"):
        DocumentEncoder(tokenizer_spec("gappy", gappy_tokenizer()), 65574)


# Bytes


@pytest.fixture(scope="module")
def saved_bytes(tmp_path_factory):
    """The tokenizer of bytes, saved and loaded again."""
    directory = tmp_path_factory.mktemp("bytes")
    load_tokenizer("bytes").save_pretrained(directory)
    return load_tokenizer(str(directory))


def test_the_tokenizer_of_bytes_has_their_values_and_the_end_of_text(saved_bytes):
    assert (len(saved_bytes), saved_bytes.eos_token, saved_bytes.eos_token_id) == (
        *(257, END_OF_TEXT),
        256,
    )
    assert fingerprint(saved_bytes) == fingerprint(load_tokenizer("bytes"))
    assert saved_bytes("Aé狐\n")["input_ids"] == list("Aé狐\n".encode())
    # All 256, those that no text has among them.
    table = saved_bytes.backend_tokenizer.decoder
    for byte, token in enumerate(saved_bytes.convert_ids_to_tokens(range(256))):
        assert table.decode([token]) == bytes([byte]).decode(errors="replace")


@settings(max_examples=200, deadline=None)
@given(text=st.text())
@example(text=END_OF_TEXT)
@example(text="".join(TRICKY))
@example(text="".join(map(chr, range(0x250))))
@example(text=bytes(range(256)).decode(errors="replace"))
def test_the_saved_tokenizer_of_bytes_gives_the_ids_of_the_table(saved_bytes, text):
    ((first, *ids),) = encoded("bytes", saved_bytes, [text])
    assert (first, ids) == (256, list(text.encode()))
    assert ids == saved_bytes(text, split_special_tokens=True)["input_ids"]
    assert ids == encoded("a directory", saved_bytes, [text])[0][1:]
    assert saved_bytes.decode(ids) == text


def test_a_word_that_a_unigram_model_takes_for_the_end_of_text_is_refused():
    letters = [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz<>/ "]
    backend = Tokenizer(models.Unigram([("</s>", 0.0), ("<unk>", 0.0), *letters], unk_id=1))
    backend.add_special_tokens(["</s>"])
    encoder = DocumentEncoder(backend.to_str(), end_of_text_id=0)
    assert encoder.encode(["old"])[1].tolist() == [4]
    with pytest.raises(ValueError, match="expected text, found what .* an end of text"):
        encoder.encode(["old </s>new"])
    with pytest.raises(DocumentError, match="an end of text"):
        encode_documents(encoder, ["old", "old </s>new"], seed=0, val_fraction=0)
