"""Which documents the shards hold, in which split, and in which order."""

import json

import numpy as np
import pytest
from support.prepared_data import contents, documents_of, manifest_of
from support.tiny_corpus import fables, write_jsonl

from modeling_gpt2scratch.data.preparation.prepare import prepare


def test_every_document_is_in_exactly_one_split_and_in_the_order_of_the_input(tmp_path, prepared):
    documents = fables(300)
    dataset = write_jsonl(tmp_path / "fables.jsonl", documents)
    flags = ("--val_fraction", "0.2", "--shard_tokens", "999", "--no_shuffle")
    out = prepared(tmp_path / "out", dataset, *flags)
    train, val = documents_of(out, "train"), documents_of(out, "val")
    held_out = set(val)
    assert val == [text for text in documents if text in held_out]
    assert train == [text for text in documents if text not in held_out]
    # 60 expected with a standard deviation of 7.
    assert 30 < len(val) < 90


def test_copies_of_a_document_stay_on_one_side(tmp_path, prepared):
    distinct = fables(60)
    dataset = write_jsonl(tmp_path / "fables.jsonl", distinct * 3)
    out = prepared(tmp_path / "out", dataset, "--val_fraction", "0.3")
    train, val = documents_of(out, "train"), documents_of(out, "val")
    assert len(train) + len(val) == 180
    assert set(train).isdisjoint(val)
    assert set(train) | set(val) == set(distinct)
    assert {train.count(text) for text in train} == {val.count(text) for text in val} == {3}


def test_a_document_stays_held_out_when_others_are_added(tmp_path, prepared):
    old, new = fables(150), fables(150, seed=1)
    flags = ("--val_fraction", "0.2", "--num_workers")
    before = prepared(tmp_path / "1", write_jsonl(tmp_path / "1.jsonl", old), *flags, "1")
    mixed = write_jsonl(tmp_path / "2.jsonl", [*new[:70], *reversed(old), *new[70:]])
    after = prepared(tmp_path / "2", mixed, *flags, "3")
    held_out = set(documents_of(after, "val"))
    assert held_out & set(old) == set(documents_of(before, "val"))
    assert held_out & set(new)


def test_another_seed_holds_out_other_documents(tmp_path, prepared):
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(200))
    flags = ("--val_fraction", "0.2", "--seed")
    first, second = (
        set(documents_of(prepared(tmp_path / seed, dataset, *flags, seed), "val"))
        for seed in ("0", "1")
    )
    # About a fifth of each is in the other.
    assert len(first & second) < len(first) / 2


def test_a_larger_share_holds_out_the_same_documents_and_more(tmp_path, prepared):
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(200))
    small, large = (
        set(documents_of(prepared(tmp_path / share, dataset, "--val_fraction", share), "val"))
        for share in ("0.1", "0.3")
    )
    assert small < large


def test_nothing_is_held_out_when_the_share_is_zero(tmp_path, prepared):
    documents = fables(20)
    dataset = write_jsonl(tmp_path / "fables.jsonl", documents)
    out = prepared(tmp_path / "out", dataset, "--val_fraction", "0", "--no_shuffle")
    assert list(manifest_of(out)["splits"]) == ["train"]
    assert documents_of(out, "train") == documents


@pytest.mark.parametrize("num_workers", [2, 4])
def test_the_files_do_not_depend_on_the_number_of_workers(configure, tmp_path, num_workers):
    prepare(configure(output_dir=str(tmp_path / "one"), deduplicate=True))
    prepare(configure(deduplicate=True, num_workers=num_workers))
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


def test_documents_are_shuffled_across_files_and_inside_blocks(configure, tmp_path):
    prepare(configure(val_fraction=0, output_dir=str(tmp_path / "ordered"), shuffle=False))
    prepare(configure(val_fraction=0))
    ordered, shuffled = (
        documents_of(tmp_path / "ordered", "train"),
        documents_of(tmp_path / "out", "train"),
    )
    assert ordered == [text for i in range(6) for text in fables(500, seed=i)]
    assert sorted(shuffled) == sorted(ordered)
    origin = {text: i for i, text in enumerate(ordered)}
    places = np.array([origin[text] for text in shuffled])
    assert (np.diff(places) == 1).mean() < 0.02
    # Four files are read in turn, so the first hundred documents come from more than one.
    assert len(set(places[:100] // 500)) > 1
    prepare(configure(val_fraction=0, seed=1, output_dir=str(tmp_path / "other")))
    assert documents_of(tmp_path / "other", "train") != shuffled


def test_copies_are_left_out_and_counted(configure, tmp_path):
    distinct = fables(400)
    source = write_jsonl(tmp_path / "copies.jsonl", distinct * 2 + distinct[:7])
    manifest = prepare(configure(dataset=str(source), deduplicate=True, val_fraction=0))
    assert sorted(documents_of(tmp_path / "out", "train")) == sorted(distinct)
    assert manifest.left_out["duplicates"] == 407
    # The first copy stays.
    manifest = prepare(
        configure(
            dataset=str(source),
            deduplicate=True,
            val_fraction=0,
            shuffle=False,
            output_dir=str(tmp_path / "ordered"),
        )
    )
    assert documents_of(tmp_path / "ordered", "train") == distinct


def test_short_documents_and_rows_that_fail_a_condition_are_left_out(configure, tmp_path):
    rows = [{"text": text, "score": i % 5} for i, text in enumerate(["ant " * 30, "bee"] * 50)]
    source = tmp_path / "scored.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = prepare(
        configure(dataset=str(source), where=["score >= 3"], min_characters=50, val_fraction=0)
    )
    # Of 100 rows, 40 score 3 or 4, and every other one of them is long.
    assert manifest.splits["train"].n_documents == 20
    assert manifest.left_out == {"too_short": 20}
    assert manifest.arguments["where"] == ["score >= 3"]


def test_the_shards_stop_at_the_document_that_completes_max_tokens(configure, tmp_path):
    everything = prepare(
        configure(shuffle=False, val_fraction=0, output_dir=str(tmp_path / "everything"))
    )
    manifest = prepare(configure(shuffle=False, val_fraction=0, max_tokens=5000))
    texts, n_tokens = documents_of(tmp_path / "out", "train"), manifest.splits["train"].n_tokens
    assert documents_of(tmp_path / "everything", "train")[: len(texts)] == texts
    assert 5000 <= n_tokens < 5000 + 200 < everything.splits["train"].n_tokens
