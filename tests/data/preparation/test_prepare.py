"""Preparations that are interrupted, at any moment and in any way, end in the same files."""

import json
import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.tiny_corpus import fables, write_jsonl
from transformers import AutoTokenizer

from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.data.preparation import prepare as preparation
from modeling_gpt2scratch.data.preparation.configuration import PrepareConfig
from modeling_gpt2scratch.data.preparation.prepare import prepare
from modeling_gpt2scratch.data.preparation.progress import (
    ProgressError,
    SeenDocuments,
    WorkingDirectory,
)
from modeling_gpt2scratch.data.tokens import workers as worker_pool
from modeling_gpt2scratch.data.tokens.tokenizer import train_tokenizer

# Processes that begin with everything imported, so that killing twenty takes seconds.
forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload(["modeling_gpt2scratch.data.preparation.prepare"])


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    """A directory with a small tokenizer."""
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(fables(30), 300).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Six files of 500 different documents each."""
    directory = tmp_path_factory.mktemp("corpus")
    for i in range(6):
        write_jsonl(directory / f"{i}.jsonl", fables(500, seed=i))
    return directory


@pytest.fixture
def configure(corpus, tokenizer_dir, tmp_path):
    """A configuration over the corpus, with small blocks and shards."""

    def configure(**changes):
        arguments = {
            "dataset": str(corpus),
            "tokenizer": str(tokenizer_dir),
            "output_dir": str(tmp_path / "out"),
            "shard_tokens": 3000,
            "shuffle_buffer_tokens": 8000,
            "val_fraction": 0.1,
            "num_workers": 1,
        }
        return PrepareConfig(**arguments | changes)

    return configure


def contents(directory):
    """Everything in a data directory, byte by byte."""
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def documents_in(directory, split="train"):
    """The documents of a split in their order, end of text left out."""
    manifest = json.loads((Path(directory) / "manifest.json").read_text())
    files = [shard["file"] for shard in manifest["splits"][split]["shards"]]
    stream = np.concatenate([np.fromfile(Path(directory) / f, "<u2", offset=1024) for f in files])
    starts = np.flatnonzero(stream == manifest["end_of_text_id"])
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return tokenizer.batch_decode([ids[1:].tolist() for ids in np.split(stream, starts[1:])])


class Interruption(BaseException):
    """Stands for a kill: nothing catches it."""


def interrupt_after(monkeypatch, name, n_calls, error=Interruption):
    """Makes the n-th call of a method of the working directory raise."""
    original = getattr(WorkingDirectory, name)
    calls = []

    def method(self, *arguments):
        calls.append(name)
        if len(calls) == n_calls:
            raise error
        return original(self, *arguments)

    monkeypatch.setattr(WorkingDirectory, name, method)


@pytest.mark.slow
def test_a_preparation_killed_twenty_times_ends_in_the_same_files(configure, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(6):  # some 280 blocks, of which a run that is killed makes a few
        write_jsonl(corpus / f"{i}.jsonl", fables(2500, seed=i))
    small_blocks = partial(
        configure, dataset=str(corpus), deduplicate=True, shuffle_buffer_tokens=2000
    )
    expected = prepare(small_blocks(output_dir=str(tmp_path / "whole")))
    generator = random.Random(0)
    working = WorkingDirectory(tmp_path / "out")
    n_kills = 0
    while n_kills < 20:
        config = small_blocks(num_workers=generator.choice([1, 1, 2]))
        process = forkserver.Process(target=prepare, args=(config,))
        before = blocks_of(working)
        process.start()
        # At the beginning, between blocks or while one is being saved.
        wait_for_blocks(working, process, before + generator.choice([0, 1, 2]))
        time.sleep(generator.random() * 0.03)
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        n_kills += 1
        assert not (tmp_path / "out").exists()
    assert n_kills == 20, "the corpus is too small: the preparation was over"
    assert blocks_of(working) > 5, "no kill came after a part of the work"
    finished = {path: path.stat().st_mtime_ns for path in working.data.glob("*.bin")}
    assert finished

    manifest = prepare(small_blocks(num_workers=2))
    assert manifest == expected
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    # Shards that were finished before the last kill were not written again.
    for path, modified in finished.items():
        assert (tmp_path / "out" / path.name).stat().st_mtime_ns == modified
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "out", "whole"]


def blocks_of(working):
    """Blocks of the progress that is on the disk."""
    try:
        return json.loads((working.path / "progress.json").read_text())["n_blocks"]
    except FileNotFoundError:
        return 0


def wait_for_blocks(working, process, n_blocks):
    """Waits until the progress has so many blocks, or the process has ended."""
    give_up = time.monotonic() + 60
    while blocks_of(working) < n_blocks and process.is_alive():
        assert time.monotonic() < give_up, "no progress within a minute"
        time.sleep(0.001)


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(configure, tmp_path):
    process = forkserver.Process(target=prepare, args=(configure(num_workers=2),))
    process.start()
    wait_for_blocks(WorkingDirectory(tmp_path / "out"), process, 1)
    workers = children_of(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.join()
    give_up = time.monotonic() + 30
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < give_up, "a worker outlived its parent by half a minute"
        time.sleep(0.05)


def children_of(pid):
    """Process ids of the running children."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    if not path.exists():
        pytest.skip("needs Linux's list of a process's children")
    return [int(child) for child in path.read_text().split()]


def is_running(pid):
    """Whether there is a process of this id that is not only waiting to be buried."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_worker_loads_neither_torch_nor_transformers_nor_what_reads_files():
    program = "import sys, modeling_gpt2scratch.data.tokens.workers; print(*sys.modules)"
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(finished.stdout.split())
    assert "modeling_gpt2scratch.data.tokens.encoder" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "datasets", "pyarrow", "huggingface_hub"})


@pytest.mark.parametrize("num_workers", [2, 4])
def test_the_files_do_not_depend_on_the_number_of_workers(configure, tmp_path, num_workers):
    prepare(configure(output_dir=str(tmp_path / "one"), deduplicate=True))
    prepare(configure(deduplicate=True, num_workers=num_workers))
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


@pytest.mark.parametrize(
    ("method", "n_calls"),
    [("save", 1), ("save", 2), ("save", 5), ("publish", 1), ("remove", 1)],
)
def test_an_interruption_at_each_step_of_the_bookkeeping_loses_nothing(
    configure, tmp_path, monkeypatch, method, n_calls
):
    prepare(configure(output_dir=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        interrupt_after(patch, method, n_calls)
        with pytest.raises(Interruption):
            prepare(configure())
    prepare(configure())
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_an_error_of_the_disk_says_that_the_same_command_goes_on(configure, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, "save", 4, OSError(28, "No space left on device"))
        with pytest.raises(OSError, match=r"No space left.* tokens are safe: run the same command"):
            prepare(configure())
    assert blocks_of(WorkingDirectory(tmp_path / "out")) == 2
    prepare(configure(output_dir=str(tmp_path / "whole")))
    prepare(configure())
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_other_arguments_do_not_continue_what_was_begun(configure, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, "save", 4)
        with pytest.raises(Interruption):
            prepare(configure())
    with pytest.raises(ProgressError, match=r"found --seed 0 instead of 1; repeat the earlier"):
        prepare(configure(seed=1))
    prepare(configure(seed=1, overwrite=True))
    prepare(configure(seed=1, output_dir=str(tmp_path / "whole")))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_file_that_has_changed_does_not_continue_what_was_begun(
    configure, tmp_path, tokenizer_dir, monkeypatch
):
    source = write_jsonl(tmp_path / "a.jsonl", fables(2000))
    config = configure(dataset=str(source))
    with monkeypatch.context() as patch:
        interrupt_after(patch, "save", 4)
        with pytest.raises(Interruption):
            prepare(config)
    write_jsonl(source, fables(2000, seed=1))
    with pytest.raises(ProgressError, match=r"other input files \(.*a\.jsonl\)"):
        prepare(config)


def test_two_preparations_of_one_directory_do_not_meet(configure, tmp_path):
    with (
        WorkingDirectory(tmp_path / "out").locked(),
        pytest.raises(ProgressError, match="found one under way"),
    ):
        prepare(configure())


def test_a_worker_that_dies_ends_in_one_line(configure, monkeypatch, tmp_path):
    monkeypatch.setattr(worker_pool, "_encode", _die)
    with pytest.raises(worker_pool.WorkerError, match="a worker process died"):
        prepare(configure(num_workers=2))


def _die(documents):
    os._exit(1)


# What is in the shards


def test_documents_are_shuffled_across_files_and_inside_blocks(configure, tmp_path):
    prepare(configure(val_fraction=0, output_dir=str(tmp_path / "ordered"), shuffle=False))
    prepare(configure(val_fraction=0))
    ordered, shuffled = documents_in(tmp_path / "ordered"), documents_in(tmp_path / "out")
    assert ordered == [text for i in range(6) for text in fables(500, seed=i)]
    assert sorted(shuffled) == sorted(ordered)
    origin = {text: i for i, text in enumerate(ordered)}
    places = np.array([origin[text] for text in shuffled])
    assert (np.diff(places) == 1).mean() < 0.02
    # Four files are read in turn, so the first hundred documents come from more than one.
    assert len(set(places[:100] // 500)) > 1
    prepare(configure(val_fraction=0, seed=1, output_dir=str(tmp_path / "other")))
    assert documents_in(tmp_path / "other") != shuffled


def test_copies_are_left_out_and_counted(configure, tmp_path):
    distinct = fables(400)
    source = write_jsonl(tmp_path / "copies.jsonl", distinct * 2 + distinct[:7])
    manifest = prepare(configure(dataset=str(source), deduplicate=True, val_fraction=0))
    assert sorted(documents_in(tmp_path / "out")) == sorted(distinct)
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
    assert documents_in(tmp_path / "ordered") == distinct


def test_what_a_killed_run_has_seen_later_is_no_duplicate(tmp_path):
    path = tmp_path / "seen.sqlite"
    seen = SeenDocuments(path, n_blocks=0)
    assert [seen.is_new(digest, 0) for digest in (b"a", b"b", b"a")] == [True, True, False]
    assert seen.is_new(b"c", 1)
    seen.commit()
    seen.close()
    seen = SeenDocuments(path, n_blocks=1)
    assert [seen.is_new(digest, 1) for digest in (b"a", b"c")] == [False, True]
    seen.close()
    assert sqlite3.connect(path).execute("SELECT count(*) FROM seen").fetchone() == (2,)


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
    texts, n_tokens = documents_in(tmp_path / "out"), manifest.splits["train"].n_tokens
    assert documents_in(tmp_path / "everything")[: len(texts)] == texts
    assert 5000 <= n_tokens < 5000 + 200 < everything.splits["train"].n_tokens


def test_sources_keep_to_their_weights_until_one_ends(configure, tmp_path):
    many = write_jsonl(tmp_path / "many.jsonl", [f"many {text}" for text in fables(3000)])
    few = write_jsonl(tmp_path / "few.jsonl", [f"few {text}" for text in fables(300)])
    manifest = prepare(
        configure(dataset=f"{many}:0.75,{few}:0.25", val_fraction=0, shuffle_buffer_tokens=500)
    )
    texts = documents_in(tmp_path / "out")
    share = sum(len(t) for t in texts if t.startswith("few")) / sum(map(len, texts))
    assert share == pytest.approx(0.25, abs=0.01)
    assert sum(t.startswith("few") for t in texts) > 290
    assert [source["weight"] for source in manifest.sources] == [0.75, 0.25]


def test_weights_that_do_not_sum_to_one_are_refused(configure):
    with pytest.raises(ValueError, match=r"--dataset that sum to 1, found a sum of 0\.9"):
        configure(dataset="a.jsonl:0.7,b.jsonl:0.2")


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    configure, tmp_path, monkeypatch
):
    class Usage:
        free = 1000

    monkeypatch.setattr(preparation.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(OSError, match=r"expected about 0\.0 GB of free space.*ignore_free_space"):
        prepare(configure())
    assert list(tmp_path.iterdir()) == []
    prepare(configure(ignore_free_space=True))


def test_bad_rows_late_in_the_input_keep_what_is_finished(configure, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", fables(3000))
    good = source.read_bytes()
    source.write_bytes(good + b"{oops\n")
    with pytest.raises(SourceError, match=r"a\.jsonl:3001: expected one JSON object"):
        prepare(configure(dataset=str(source)))
    assert blocks_of(WorkingDirectory(tmp_path / "out")) > 3
