import hashlib
import json
import math
import struct
import unicodedata

import numpy as np
import pytest
import torch
from support import evaluation as tiny
from support.token_directories import edit_manifest, write_ours
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer
from modeling_gpt2scratch.evaluation.tasks.samples import Selection
from modeling_gpt2scratch.evaluation.tasks.validation import (
    DocumentMaskTask,
    ValidationSplit,
    ValidationTask,
    bytes_of_tokens,
    read_split,
)

DOCUMENTS = [
    *tiny.CORPUS,
    "",  # an empty document
    f"the name {tiny.END_OF_TEXT} is text here",
    "bytes of four: 🐈, of two: é\n",
    *[" ".join(["the dog sat on the mat"] * n) for n in range(1, 8)],
]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tiny_tokenizer()


@pytest.fixture(scope="module")
def scorer(tokenizer):
    model = tiny.tiny_gpt2(tokenizer)
    return CausalScorer(model, tokenizer, batch_tokens=96)


@pytest.fixture(scope="module")
def stream(tokenizer):
    """The documents' ids, each after its end-of-text token."""
    encoded = tokenizer(DOCUMENTS, split_special_tokens=True)["input_ids"]
    return sum(([tokenizer.eos_token_id, *ids] for ids in encoded), [])


@pytest.fixture
def shards(tmp_path, stream, tokenizer):
    """Two shards, cut in the middle of a document."""
    return tiny.write_shards(tmp_path / "shards", [stream[:50], stream[50:]], tokenizer)


def load(directory, limit=None):
    return ValidationTask.load(Selection(place=str(directory), limit=limit))


def read(directory):
    return read_split(directory, Manifest.load(directory))


def test_the_same_tokenizer_gives_the_stream_of_the_shards(shards, stream, tokenizer):
    assert load(shards).encode(tokenizer, None).tolist() == stream


def test_a_task_knows_which_text_its_tokens_are(shards):
    assert load(shards).data_vocabulary == [*Manifest.load(shards).vocabulary]


def test_the_loss_is_that_of_a_training_loop(shards, stream, scorer):
    n_windows = (len(stream) - 1) // 32
    losses = []
    for index in range(n_windows):
        window = torch.tensor(stream[32 * index : 32 * index + 33])
        with torch.no_grad():
            logits = scorer.model(input_ids=window[None, :-1]).logits[0]
        losses.append(float(torch.nn.functional.cross_entropy(logits, window[1:])))
    result = load(shards).evaluate(scorer)
    loss, perplexity = result.estimates["loss"], result.estimates["perplexity"]
    assert result.n_samples == n_windows > 3
    assert loss.value == pytest.approx(np.mean(losses), rel=1e-5)
    assert loss.stderr == pytest.approx(np.std(losses, ddof=1) / math.sqrt(n_windows), rel=1e-4)
    assert perplexity.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
    assert perplexity.stderr == pytest.approx(perplexity.value * loss.stderr)
    np.testing.assert_allclose(result.samples["loss"] / 32, losses, rtol=1e-5)


@pytest.mark.parametrize("limit", [None, 2])
def test_masked_documents_see_themselves_alone(limit, shards, stream, scorer):
    windows = [stream[start : start + 33] for start in range(0, len(stream) - 32, 32)][:limit]
    losses = []
    for window in windows:
        nats, first = [], 0
        for end in range(1, 33):
            if end == 32 or window[end] == scorer.tokenizer.eos_token_id:
                nats += tiny.naive_nats(scorer.model, window[first : end + 1]).tolist()
                first = end
        assert len(nats) == 32
        losses.append(np.mean(nats))
    result = DocumentMaskTask.load(Selection(place=str(shards), limit=limit)).evaluate(scorer)
    assert result.n_samples == len(windows)
    np.testing.assert_allclose(result.samples["loss"] / 32, losses, rtol=1e-5)
    assert result.estimates["loss"].value == pytest.approx(np.mean(losses), rel=1e-5)
    unmasked = load(shards, limit).evaluate(scorer).estimates["loss"]
    assert unmasked.value != pytest.approx(np.mean(losses), rel=1e-3)


def test_an_added_token_has_the_bytes_of_its_text():
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.add_tokens(["œuvre"])
    index = tokenizer.convert_tokens_to_ids("œuvre")
    assert bytes_of_tokens(tokenizer)[index] == len("œuvre".encode()) == 6
    text = "the œuvre of the cat"
    (ids,) = tokenizer([text])["input_ids"]
    assert index in ids and bytes_of_tokens(tokenizer)[ids].sum() == len(text.encode())


def test_a_model_that_knows_nothing_has_the_numbers_of_a_uniform_guess(tmp_path, tokenizer):
    model = tiny.tiny_gpt2(tokenizer, n_positions=16)
    torch.nn.init.zeros_(model.transformer.wte.weight)  # tied to the head: every logit is 0
    # One window: 16 targets, of which 6 * 2 - 1 = 11 are text and 5 are end of text.
    stream = [0, 65, 66] * 6  # two single-byte tokens for each document
    assert bytes_of_tokens(tokenizer)[[65, 66]].tolist() == [1, 1]
    shards = tiny.write_shards(tmp_path, [stream], tokenizer)
    result = load(shards).evaluate(CausalScorer(model, tokenizer, batch_tokens=64))
    n_vocabulary = len(tokenizer)
    assert result.n_samples == 1
    assert result.details == {"window_tokens": 16, "n_target_tokens": 16, "n_target_bytes": 11}
    assert result.estimates["loss"].value == pytest.approx(math.log(n_vocabulary))
    assert result.estimates["loss"].stderr is None
    assert result.estimates["perplexity"].value == pytest.approx(n_vocabulary, rel=1e-5)
    assert result.estimates["bits_per_byte"].value == pytest.approx(math.log2(n_vocabulary))


def test_documents_without_text_have_a_loss_and_no_bits_per_byte(tmp_path, tokenizer, scorer):
    shards = tiny.write_shards(tmp_path, [[tokenizer.eos_token_id] * 40], tokenizer)
    result = load(shards).evaluate(scorer)
    assert set(result.estimates) == {"loss", "perplexity"}
    assert result.details["n_target_bytes"] == 0


def test_bits_per_byte_count_text_alone(shards, stream, scorer):
    targets, nats = [], []
    for start in range(0, len(stream) - 32, 32):
        window = stream[start : start + 33]
        targets += window[1:]
        nats += tiny.naive_nats(scorer.model, window).tolist()
    is_text = [target != scorer.tokenizer.eos_token_id for target in targets]
    assert not all(is_text)
    bits = sum(nat for nat, text in zip(nats, is_text, strict=True) if text) / math.log(2)
    tokens = scorer.tokenizer.convert_ids_to_tokens(targets)
    n_bytes = sum(len(token) for token, text in zip(tokens, is_text, strict=True) if text)
    result = load(shards).evaluate(scorer)
    assert result.details["n_target_bytes"] == n_bytes
    assert result.estimates["bits_per_byte"].value == pytest.approx(bits / n_bytes, rel=1e-5)


def test_a_model_with_another_tokenizer_reads_the_same_text(shards, stream):
    other = tiny.tiny_tokenizer(n_merges=0)
    ids = load(shards).encode(other, None)
    assert len(ids) > len(stream)
    n_bytes = sum(len(document.encode()) for document in DOCUMENTS)
    assert bytes_of_tokens(other)[ids[ids != other.eos_token_id]].sum() == n_bytes
    assert (ids == other.eos_token_id).sum() == len(DOCUMENTS)


def test_a_tokenizer_that_composes_accents_reads_the_text_so(tmp_path, tokenizer):
    text = "the cafe\u0301 and the cat"
    write_ours(tmp_path / "shards", tokenizer, val=[text], shard_tokens=1000)
    other = tiny.tiny_tokenizer(n_merges=0)
    other.backend_tokenizer.normalizer = normalizers.NFC()
    ids = load(tmp_path / "shards").encode(other, None)
    composed = unicodedata.normalize("NFC", text)
    assert bytes_of_tokens(other)[ids[1:]].sum() == len(composed.encode()) < len(text.encode())


def test_the_limit_scores_the_first_windows(shards, stream, scorer, monkeypatch):
    monkeypatch.setattr("modeling_gpt2scratch.evaluation.tasks.validation.DOCUMENTS_PER_CALL", 2)
    result = load(shards, limit=2).evaluate(scorer)
    losses = [
        float(tiny.naive_nats(scorer.model, stream[start : start + 33]).mean()) for start in (0, 32)
    ]
    assert result.n_samples == 2
    assert result.estimates["loss"].value == pytest.approx(np.mean(losses), rel=1e-5)
    assert len(load(shards, limit=2).encode(scorer.tokenizer, 65)) < len(stream)


def test_a_split_shorter_than_the_context_is_one_window(tmp_path, stream, scorer):
    shards = tiny.write_shards(tmp_path, [stream[:20]], scorer.tokenizer)
    result = load(shards).evaluate(scorer)
    assert (result.n_samples, result.details["window_tokens"]) == (1, 19)


def test_the_checksum_is_that_of_the_shard_files_in_order(shards):
    files = [(shards / f"val_00000{index}.bin").read_bytes() for index in range(2)]
    assert read(shards).sha256 == hashlib.sha256(b"".join(files)).hexdigest()


def test_a_tokenizer_that_is_not_byte_level_is_rejected(shards):
    words = Tokenizer(models.WordLevel({"?": 0, "the": 1, "end": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="end", unk_token="?")
    with pytest.raises(ValueError, match="expected byte-level tokens that add up to the 51 bytes"):
        load(shards).encode(tokenizer, None)


def test_a_tokenizer_without_an_eos_token_is_rejected(shards, tokenizer):
    backend = tokenizer.backend_tokenizer
    with pytest.raises(ValueError, match="expected a tokenizer with an eos token, found none"):
        load(shards).encode(PreTrainedTokenizerFast(tokenizer_object=backend), None)


def test_a_changed_byte_is_found_by_its_checksum(shards):
    path = shards / "val_000001.bin"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"val_000001\.bin: expected sha256 .*, found "):
        read(shards)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m["splits"].pop("val"), "expected a split 'val', found train"),
        (lambda m: m.update(end_of_text_id=9), "eos token is the manifest's 9, found 0"),
        (
            lambda m: m["splits"]["val"].update(n_tokens=0, shards=[]),
            "expected tokens in the split 'val', found none",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_is_rejected(shards, edit, message):
    edit_manifest(shards, edit)
    with pytest.raises(ValueError, match=message) as caught:
        load(shards)
    assert "\n" not in str(caught.value)


def test_ids_of_four_bytes_are_read(tmp_path):
    header = struct.pack("<256i", 20240801, 7, 4, 70_000, *[0] * 252)
    content = header + struct.pack("<4I", 69_999, 65_536, 7, 0)
    shard = {"file": "val.bin", "n_tokens": 4, "sha256": hashlib.sha256(content).hexdigest()}
    empty = {"n_tokens": 0, "n_documents": 0, "n_bytes": 0, "shards": []}
    manifest = {
        "format": "gpt2scratch-shards",
        "version": 1,
        "dtype": "<u4",
        "header_bytes": 1024,
        "vocab_size": 70_000,
        "end_of_text_id": 69_999,
        "tokenizer": {"name": "none", "fingerprint": ""},
        "arguments": {},
        "splits": {"train": empty, "val": empty | {"n_tokens": 4, "shards": [shard]}},
    }
    (tmp_path / "val.bin").write_bytes(content)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    split = read(tmp_path)
    assert split.token_ids.tolist() == [69_999, 65_536, 7, 0]
    assert [ids.tolist() for ids in split.documents()] == [[65_536, 7, 0]]
    edit_manifest(tmp_path, lambda m: m.update(vocab_size=69_999, end_of_text_id=0))
    with pytest.raises(ValueError, match="below 69999, found 4 ids .* below 70000"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("token_ids", "documents"),
    [
        # End of text is 0. Before each document, as prepare_data.py writes:
        ([0, 5, 6, 0, 7], [[5, 6], [7]]),
        ([0, 5, 6, 0], [[5, 6], []]),
        ([0, 0, 7], [[], [7]]),
        # After each document, as nanoGPT writes:
        ([5, 6, 0, 7, 0], [[5, 6], [7]]),
        ([5, 6, 0, 0], [[5, 6], []]),
        # A split cut from the middle of a stream, or without any end of text:
        ([5, 6, 0, 7], [[5, 6], [7]]),
        ([5, 6], [[5, 6]]),
    ],
)
def test_end_of_text_stands_before_documents_or_after_them(token_ids, documents):
    split = ValidationSplit(np.array(token_ids, dtype=np.int32), 0, "")
    assert [ids.tolist() for ids in split.documents()] == documents


def test_a_split_with_end_of_text_after_its_documents_has_the_same_text(tmp_path, tokenizer):
    ids = [tokenizer(document, split_special_tokens=True)["input_ids"] for document in DOCUMENTS]
    before = sum(([tokenizer.eos_token_id, *document] for document in ids), [])
    after = sum(([*document, tokenizer.eos_token_id] for document in ids), [])
    directories = [
        tiny.write_shards(tmp_path / name, [stream], tokenizer)
        for name, stream in (("before", before), ("after", after))
    ]
    assert load(directories[1]).encode(tokenizer, None).tolist() == before
    assert load(directories[0]).encode(tokenizer, None).tolist() == before
