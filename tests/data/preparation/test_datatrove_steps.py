"""The shard writer as a step of datatrove's pipelines: what many tasks write is one data set."""

from collections import deque
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from support.paths import TIKTOKEN_CACHE

pytest.importorskip("datatrove", reason="needs the extra .[cluster], which installs datatrove")

import dill
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.readers import ParquetReader
from support.tiny_corpus import stream

from modeling_gpt2scratch.data.preparation import datatrove_steps
from modeling_gpt2scratch.data.preparation.configuration import PrepareConfig
from modeling_gpt2scratch.data.preparation.datatrove_steps import MergeManifests, ShardWriterStep
from modeling_gpt2scratch.data.preparation.prepare import prepare
from modeling_gpt2scratch.data.shards.format import ShardError
from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.data.shards.verification import problems_of
from modeling_gpt2scratch.data.tokens.encoder import document_digest, is_held_out
from modeling_gpt2scratch.data.tokens.tokenizer import load_tokenizer, train_tokenizer

SUBJECTS = ("the fox", "the crow", "a naïve café", "狐", "<|endoftext|>", "the 🐈")
TEXTS = [f"{SUBJECTS[i % 6]} saw {SUBJECTS[i % 5]}, {i} times\n" * (i % 4 + 1) for i in range(60)]
VAL_FRACTION = 0.3


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 300).save_pretrained(directory)
    return directory


@pytest.fixture
def files(tmp_path):
    """Three files of twenty documents: datatrove gives each file to one task."""
    directory = tmp_path / "files"
    directory.mkdir()
    for index in range(3):
        table = pyarrow.table({"text": TEXTS[20 * index : 20 * index + 20]})
        pyarrow.parquet.write_table(table, directory / f"{index}.parquet")
    return directory


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(datatrove_steps, "DOCUMENTS_PER_BATCH", 7)


def step(directory, tokenizer_dir, **changes):
    arguments = {"shard_tokens": 100, "val_fraction": VAL_FRACTION, "seed": 5} | changes
    return ShardWriterStep(directory, tokenizer=str(tokenizer_dir), **arguments)


def run(pipeline, logs, **options):
    """Runs a pipeline as a user does, in this process unless told otherwise."""
    options = {"workers": 1} | options
    LocalPipelineExecutor(pipeline, logging_dir=str(logs), **options).run()


def documents(texts):
    """What a reader hands on."""
    return (Document(text=text, id=str(index)) for index, text in enumerate(texts))


def texts_of(directory, split):
    """The documents of a split, decoded."""
    tokenizer = load_tokenizer(str(directory))
    ids = np.array(stream(directory, split))
    pieces = np.split(ids, np.flatnonzero(ids == tokenizer.eos_token_id))
    assert len(pieces[0]) == 0
    return [tokenizer.decode(piece[1:]) for piece in pieces[1:]]


def held_out(texts, *, is_val):
    """The documents of one split, in their order."""
    return [t for t in texts if is_held_out(document_digest(t, 5), VAL_FRACTION) == is_val]


def contents(directory):
    return {path.name: path.read_bytes() for path in Path(directory).glob("*.bin")}


def test_the_tasks_of_a_pipeline_make_one_data_set(tmp_path, files, tokenizer_dir):
    out = tmp_path / "out"
    writing = [ParquetReader(str(files)), step(out, tokenizer_dir, dataset="someone/fables")]
    run(writing, tmp_path / "logs", tasks=3)
    assert len(list(out.glob("manifest.part-*.json"))) == 3
    run([MergeManifests(out)], tmp_path / "merging")
    assert problems_of(out) == []
    assert not list(out.glob("manifest.part-*.json"))
    manifest = Manifest.load(out)
    assert [entry.file for entry in manifest.splits["train"].shards][:2] == [
        "train_00000_000000.bin",
        "train_00000_000001.bin",
    ]
    assert {entry.file[:11] for entry in manifest.splits["train"].shards} == {
        f"train_0000{rank}" for rank in range(3)
    }
    # The tasks have the files in their order, so the merged stream is that of the corpus.
    for split, is_val in (("train", False), ("val", True)):
        expected = held_out(TEXTS, is_val=is_val)
        assert len(expected) > 5
        assert texts_of(out, split) == expected
        assert manifest.splits[split].n_documents == len(expected)
        assert manifest.splits[split].n_bytes == sum(len(text.encode()) for text in expected)
    assert manifest.arguments["dataset"] == "someone/fables"


def test_one_task_writes_the_token_stream_of_its_documents(tmp_path, tokenizer_dir):
    list(step(tmp_path, tokenizer_dir, val_fraction=0).run(documents(TEXTS)))
    list(MergeManifests(tmp_path).run())
    tokenizer = load_tokenizer(str(tokenizer_dir))
    encoded = tokenizer(TEXTS, split_special_tokens=True)["input_ids"]
    expected = sum(([tokenizer.eos_token_id, *ids] for ids in encoded), [])
    assert stream(tmp_path, "train") == expected
    assert list(Manifest.load(tmp_path).splits) == ["train"]


def test_the_documents_of_each_split_are_those_of_prepare_data(tmp_path, files, tokenizer_dir):
    options = {"tokenizer": str(tokenizer_dir), "val_fraction": VAL_FRACTION, "seed": 5}
    prepare(
        PrepareConfig(
            dataset=str(files / "*.parquet"),
            output_dir=str(tmp_path / "prepared"),
            num_workers=1,
            **options,
        )
    )
    out = tmp_path / "out"
    pipeline = [ParquetReader(str(files)), step(out, tokenizer_dir), MergeManifests(out)]
    run(pipeline, tmp_path / "logs")
    # Sorted, since prepare_data.py may shuffle.
    for split in ("train", "val"):
        assert sorted(texts_of(out, split)) == sorted(texts_of(tmp_path / "prepared", split))
    prepared, written = (
        [(s.n_tokens, s.n_documents, s.n_bytes) for s in Manifest.load(d).splits.values()]
        for d in (tmp_path / "prepared", out)
    )
    assert written == prepared


def test_documents_go_on_to_the_next_step_unchanged(tmp_path, tokenizer_dir):
    passed = list(step(tmp_path, tokenizer_dir).run(documents(TEXTS)))
    assert [document.text for document in passed] == TEXTS


def test_gpt2_is_encoded_as_tiktoken_does(tmp_path, monkeypatch):
    cache = TIKTOKEN_CACHE
    if not cache.is_dir():
        pytest.skip(f"needs GPT-2's vocab.bpe and encoder.json in {cache}")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    list(ShardWriterStep(tmp_path, val_fraction=0).run(documents(["Hello", " world"])))
    list(MergeManifests(tmp_path).run())
    assert stream(tmp_path, "train") == [50256, 15496, 50256, 995]


class Killed(Exception):
    """Ends a task in the middle."""


def interrupted(texts):
    """Documents, and then the end of the task."""
    yield from documents(texts)
    raise Killed


def test_a_task_that_ends_in_the_middle_leaves_no_part_and_starts_over(tmp_path, tokenizer_dir):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with pytest.raises(Killed):
        # Another text first, and more of it: nothing of it may stay.
        list(step(killed, tokenizer_dir).run(interrupted(["something else"] * 200), 1, 2))
    assert list(killed.glob(".train_00001_*.partial"))
    assert not list(killed.glob("manifest.part-*"))
    for directory in (killed, whole):
        for rank in (0, 1):
            texts = TEXTS[30 * rank : 30 * rank + 30]
            list(step(directory, tokenizer_dir).run(documents(texts), rank, 2))
        list(MergeManifests(directory).run())
    assert contents(killed) == contents(whole)
    assert sorted(p.name for p in killed.iterdir()) == sorted(p.name for p in whole.iterdir())
    assert problems_of(killed) == []


def test_a_task_that_runs_again_takes_its_part_back_first(tmp_path, tokenizer_dir):
    list(step(tmp_path, tokenizer_dir).run(documents(TEXTS), 0, 2))
    list(step(tmp_path, tokenizer_dir).run(documents(TEXTS), 1, 2))
    others = {name: c for name, c in contents(tmp_path).items() if "_00001_" in name}
    with pytest.raises(Killed):
        list(step(tmp_path, tokenizer_dir).run(interrupted(TEXTS[:9]), 0, 2))
    assert [path.name for path in tmp_path.glob("manifest.part-*")] == ["manifest.part-00001.json"]
    assert contents(tmp_path) == others
    with pytest.raises(ShardError, match="expected the parts of 2 tasks, found none of task 0"):
        list(MergeManifests(tmp_path).run())


def test_datatrove_repeats_only_the_task_that_failed(tmp_path, files, tokenizer_dir):
    out, logs = tmp_path / "out", tmp_path / "logs"

    def break_once(data, rank, world_size):
        yield from data
        if rank == 1 and not (tmp_path / "broken").exists():
            (tmp_path / "broken").touch()
            raise Killed

    pipeline = [ParquetReader(str(files)), break_once, step(out, tokenizer_dir)]
    with pytest.raises(Killed):
        run(pipeline, logs, tasks=3)
    assert [path.name for path in out.glob("manifest.part-*")] == ["manifest.part-00000.json"]
    first = (out / "manifest.part-00000.json").stat().st_mtime_ns
    run(pipeline, logs, tasks=3)
    assert (out / "manifest.part-00000.json").stat().st_mtime_ns == first
    run([MergeManifests(out)], tmp_path / "merging")
    assert texts_of(out, "train") == held_out(TEXTS, is_val=False)


def test_a_task_without_documents_writes_an_empty_part(tmp_path, tokenizer_dir):
    list(step(tmp_path, tokenizer_dir).run(documents([]), 0, 2))
    list(step(tmp_path, tokenizer_dir).run(documents(TEXTS), 1, 2))
    list(MergeManifests(tmp_path).run())
    assert texts_of(tmp_path, "train") == held_out(TEXTS, is_val=False)


def test_a_data_set_without_validation_documents_is_refused(tmp_path, tokenizer_dir):
    list(step(tmp_path, tokenizer_dir, val_fraction=1e-9).run(documents(TEXTS)))
    with pytest.raises(ShardError, match="expected documents in split 'val', found none"):
        list(MergeManifests(tmp_path).run())


def test_short_documents_are_left_out(tmp_path, tokenizer_dir):
    texts = ["", "abc", "abcd", "狐狐狐狐", "ééé"]  # characters, not bytes
    passed = list(
        step(tmp_path, tokenizer_dir, min_characters=4, val_fraction=0).run(documents(texts))
    )
    assert len(passed) == 5
    list(MergeManifests(tmp_path).run())
    assert texts_of(tmp_path, "train") == ["abcd", "狐狐狐狐"]


def test_text_that_no_encoding_can_hold_is_mended(tmp_path, tokenizer_dir):
    texts = ["half a pair \ud83d here", "whole \ud83d\ude00 pair"]
    list(step(tmp_path, tokenizer_dir, val_fraction=0).run(documents(texts)))
    list(MergeManifests(tmp_path).run())
    assert texts_of(tmp_path, "train") == ["half a pair \ufffd here", "whole 😀 pair"]


def test_whoever_merges_may_stand_elsewhere(tmp_path, tokenizer_dir, monkeypatch):
    monkeypatch.chdir(tokenizer_dir.parent)
    list(step(tmp_path / "out", tokenizer_dir.name).run(documents(TEXTS)))
    monkeypatch.chdir(tmp_path)
    list(MergeManifests(tmp_path / "out").run())
    assert Manifest.load(tmp_path / "out").tokenizer["name"] == str(tokenizer_dir)


def test_a_data_set_that_is_complete_is_not_written_again(tmp_path, tokenizer_dir):
    list(step(tmp_path, tokenizer_dir).run(documents(TEXTS)))
    list(MergeManifests(tmp_path).run())
    before = contents(tmp_path)
    with pytest.raises(ShardError, match="the data set is complete, name another directory"):
        list(step(tmp_path, tokenizer_dir).run(documents(TEXTS)))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tokenizer": "bpe:300"}, "expected a tokenizer that exists, found 'bpe:300'; train one"),
        ({"shard_tokens": 0}, "expected 1 to 2147483647 shard_tokens, found 0"),
        ({"shard_tokens": 2**31}, "expected 1 to 2147483647 shard_tokens, found 2147483648"),
        ({"val_fraction": 1.0}, r"expected val_fraction in \[0, 1\), found 1.0"),
        ({"seed": -1}, "expected seed and min_characters of at least 0, found -1 and 0"),
        ({"min_characters": -1}, "expected seed and min_characters of at least 0, found 0 and -1"),
    ],
)
def test_an_argument_out_of_range_is_refused_before_any_task_starts(tmp_path, changes, expected):
    with pytest.raises(ValueError, match=expected):
        ShardWriterStep(tmp_path, **changes)


@pytest.mark.parametrize("kind", [ShardWriterStep, MergeManifests])
def test_an_address_is_no_directory(kind):
    for address in ("s3://bucket/data", Path("hf://datasets/user/data")):
        with pytest.raises(ValueError, match="expected a directory that all tasks share, found th"):
            kind(address)


def test_merging_in_several_tasks_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected MergeManifests in a pipeline with tasks=1"):
        list(MergeManifests(tmp_path).run(None, 0, 2))


def test_a_pipeline_for_slurm_runs_from_the_file_that_its_jobs_are_given(
    tmp_path, files, tokenizer_dir
):
    out = tmp_path / "out"
    slurm = {"time": "1:00:00", "partition": "cpu"}
    writing = SlurmPipelineExecutor(
        [ParquetReader(str(files)), step(out, tokenizer_dir)],
        tasks=1,
        logging_dir=str(tmp_path / "writing"),
        **slurm,
    )
    merging = SlurmPipelineExecutor(
        [MergeManifests(out)],
        tasks=1,
        depends=writing,
        logging_dir=str(tmp_path / "merging"),
        **slurm,
    )
    for executor in (writing, merging):
        executor.depends = None
        # What launch_job writes and a job's launch_pickled_pipeline reads.
        received = dill.loads(dill.dumps(executor, fmode=dill.CONTENTS_FMODE))
        data = None
        for part in received.pipeline:
            data = part(data, 0, received.world_size)
        deque(data, maxlen=0)
    assert texts_of(out, "train") == held_out(TEXTS, is_val=False)


@pytest.mark.gate
@pytest.mark.slow
def test_processes_side_by_side_write_what_one_does(tmp_path, files, tokenizer_dir):
    for name, options in (("one", {}), ("two", {"workers": 2})):
        out = tmp_path / name
        pipeline = [ParquetReader(str(files)), step(out, tokenizer_dir)]
        run(pipeline, tmp_path / f"logs_{name}", tasks=3, **options)
        run([MergeManifests(out)], tmp_path / f"merging_{name}")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert Manifest.load(tmp_path / "one") == Manifest.load(tmp_path / "two")
