"""Workers that meet a document which no tokenizer could encode: its file and row are named."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from modeling_gpt2scratch.data.tokens.workers import DocumentBatch, Encoding, WorkerError, encoded


@pytest.fixture
def spec():
    """A tokenizer of two words, which fails at any other."""
    tokenizer = Tokenizer(models.WordLevel({"ant": 0, "bee": 1, "<|endoftext|>": 2}))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer.to_str()


BATCHES = [
    DocumentBatch(["ant", "bee bee"], {"n": 2}, "a.jsonl", [1, 2]),
    DocumentBatch(["ant", "fly", "bee", "wasp"], {"n": 6}, "b.parquet", [3, 4, 6, 7]),
    DocumentBatch(["bee"], {"n": 7}, "b.parquet", [8]),
]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_document_that_cannot_be_encoded_is_named_by_file_and_row(spec, num_workers):
    encoding = Encoding(spec, end_of_text_id=2, seed=0, val_fraction=0)
    with (
        pytest.raises(WorkerError) as caught,
        encoded(iter(BATCHES), encoding, num_workers) as batches,
    ):
        first, batch = next(batches)
        assert (first.ids.tolist(), batch.position) == ([2, 0, 2, 1, 1], {"n": 2})
        list(batches)
    message = str(caught.value)
    assert message.startswith("b.parquet: row 4: expected a document that the tokenizer can encode")
    assert "\n" not in message


@pytest.mark.parametrize("num_workers", [1, 2])
def test_documents_that_cannot_be_encoded_are_left_out_and_counted_if_asked(spec, num_workers):
    encoding = Encoding(spec, 2, 0, 0, skips_failures=True)
    with encoded(iter(BATCHES), encoding, num_workers) as batches:
        found = list(batches)
    assert [own.n_failed for own, _ in found] == [0, 2, 0]
    assert [own.ids.tolist() for own, _ in found] == [[2, 0, 2, 1, 1], [2, 0, 2, 1], [2, 1]]
    assert [len(own.digests) for own, _ in found] == [2, 2, 1]
    assert [batch.position["n"] for _, batch in found] == [2, 6, 7]
