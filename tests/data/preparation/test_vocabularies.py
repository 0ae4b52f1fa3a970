"""A tokenizer whose ids have gaps: shards, readers and the model go by its highest id."""

import numpy as np
import pytest
from support.odd_texts import END_OF_TEXT, gappy_tokenizer
from support.tiny_corpus import stream, write_jsonl
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from modeling_gpt2scratch.data.preparation.configuration import PrepareConfig
from modeling_gpt2scratch.data.preparation.prepare import prepare
from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.data.shards.verification import problems_of
from modeling_gpt2scratch.data.tokens.names import TokenizerError
from modeling_gpt2scratch.data.tokens.tokenizer import load_tokenizer
from modeling_gpt2scratch.evaluation.tasks.samples import Selection
from modeling_gpt2scratch.evaluation.tasks.validation import ValidationTask, bytes_of_tokens
from modeling_gpt2scratch.training.configuration import TrainConfig
from modeling_gpt2scratch.training.data import TrainingData
from modeling_gpt2scratch.training.model import make_model

TEXTS = [f"{i} ab abba é {END_OF_TEXT}" for i in range(60)]
HIGHEST = 65573


def texts_of(directory, split):
    """The documents of a split, decoded by the tokenizer beside them."""
    tokenizer = load_tokenizer(str(directory))
    ids = np.array(stream(directory, split))
    pieces = np.split(ids, np.flatnonzero(ids == tokenizer.eos_token_id))
    return [tokenizer.decode(piece[1:].tolist()) for piece in pieces[1:]]


def with_prepare(tmp_path, tokenizer):
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    out = tmp_path / "out"
    options = {"tokenizer": str(tokenizer), "val_fraction": 0.3, "num_workers": 1}
    prepare(PrepareConfig(dataset=str(source), output_dir=str(out), **options))
    return out


def test_a_tokenizer_that_makes_nothing_of_the_text_is_refused(tmp_path):
    backend = Tokenizer(models.BPE({END_OF_TEXT: 0, "c": 1, "a": 2, "t": 3}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END_OF_TEXT)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    write_jsonl(tmp_path / "a.jsonl", ["dog", "\n", "bird"])
    options = {"tokenizer": str(tmp_path / "tokenizer"), "val_fraction": 0, "num_workers": 1}
    options |= {"dataset": str(tmp_path / "a.jsonl"), "output_dir": str(tmp_path / "out")}
    with pytest.raises(TokenizerError, match="expected ids for the text, found none in 3 doc"):
        prepare(PrepareConfig(**options))
    write_jsonl(tmp_path / "a.jsonl", ["dog", "cat", "bird"])
    manifest = prepare(PrepareConfig(**options))
    assert manifest.splits["train"].n_tokens == 3 + 3


def with_datatrove(tmp_path, tokenizer):
    pytest.importorskip("datatrove", reason="needs the extra .[cluster], which installs datatrove")
    from datatrove.data import Document

    from modeling_gpt2scratch.data.preparation.datatrove_steps import (
        MergeManifests,
        ShardWriterStep,
    )

    out = tmp_path / "out"
    step = ShardWriterStep(out, tokenizer=str(tokenizer), val_fraction=0.3)
    list(step.run(Document(text=text, id=str(i)) for i, text in enumerate(TEXTS)))
    list(MergeManifests(out).run())
    return out


@pytest.mark.parametrize("write", [with_prepare, with_datatrove])
def test_shards_hold_the_highest_id_and_verification_and_decoding_agree(tmp_path, write):
    gappy_tokenizer().save_pretrained(tmp_path / "tokenizer")
    out = write(tmp_path, tmp_path / "tokenizer")
    assert Manifest.load(out).vocab_size == HIGHEST + 1
    assert Manifest.load(out).content()["dtype"] == "<u4"
    assert max(stream(out, "train")) == max(stream(out, "val")) == HIGHEST
    assert sorted(texts_of(out, "train") + texts_of(out, "val")) == sorted(TEXTS)
    assert problems_of(out) == []
    # So does the model, and the evaluation counts the bytes of each.
    config = TrainConfig(
        data=str(out),
        output_dir=str(tmp_path / "run"),
        n_layer=1,
        n_head=1,
        n_embd=2,
        n_positions=8,
    )
    data = TrainingData(config)
    model = make_model(config, manifest=data.manifest, tokenizer=data.tokenizer())
    assert model.config.vocab_size == model.lm_head.out_features == HIGHEST + 1
    tokenizer = load_tokenizer(str(out))
    assert bytes_of_tokens(tokenizer)[[HIGHEST, 300]].tolist() == [2, 0]
    task = ValidationTask.load(Selection(place=str(out)))
    assert task.encode(tokenizer, None).tolist() == stream(out, "val")
