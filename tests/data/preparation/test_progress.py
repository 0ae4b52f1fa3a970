"""Preparations that are interrupted, at any moment and in any way, end in the same files."""

import json
import multiprocessing
import os
import random
import shutil
import sqlite3
import time
from functools import partial
from pathlib import Path

import pytest
from support.prepared_data import contents
from support.processes import PATIENCE
from support.tiny_corpus import fables, write_jsonl

from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.common.output_directory import OutputError, claimed, making
from modeling_gpt2scratch.data.preparation import progress
from modeling_gpt2scratch.data.preparation.prepare import prepare
from modeling_gpt2scratch.data.preparation.progress import (
    Progress,
    ProgressError,
    SeenDocuments,
    WorkingDirectory,
)
from modeling_gpt2scratch.data.shards.format import ShardError
from modeling_gpt2scratch.data.tokens import workers
from modeling_gpt2scratch.data.tokens.tokenizer import (
    save_tokenizer,
    train_tokenizer,
    vocabulary_of,
)

# Processes that begin with everything imported, so that killing twenty takes seconds.
forkserver = multiprocessing.get_context("forkserver")


forkserver.set_forkserver_preload(["modeling_gpt2scratch.data.preparation.prepare"])


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


@pytest.mark.parametrize("pattern", ["train_*.bin", ".train_*.bin.partial"])
def test_shards_that_are_gone_say_how_to_begin_anew(configure, tmp_path, monkeypatch, pattern):
    with monkeypatch.context() as patch:
        interrupt_after(patch, "save", 4)
        with pytest.raises(Interruption):
            prepare(configure())
    for path in WorkingDirectory(tmp_path / "out").data.glob(pattern):
        path.unlink()
    with pytest.raises(ShardError, match=r"No such file.*; prepare the data again with --overwr"):
        prepare(configure())


def killed_after_the_last_rename(config):
    """The manifest of what this makes, and the hidden directory that it has not removed yet."""
    made = prepare(config)
    working = WorkingDirectory(Path(config.output_dir))
    working.path.mkdir()
    working.save(Progress(config.recorded(), [], [*made.vocabulary], is_finished=True))
    return made, working


def test_progress_that_cannot_be_read_is_not_taken_for_none(configure, tmp_path):
    working = WorkingDirectory(tmp_path / "out")
    working.data.mkdir(parents=True)
    for text in ("{", "[]", "{}", "null", '{"sha256": ""}'):
        (working.path / "progress.json").write_text(text)
        match = "by this version, found .*; add --overwrite to begin"
        with pytest.raises(ProgressError, match=match):
            prepare(configure())
    assert working.data.exists()
    prepare(configure(overwrite=True))
    assert not working.path.exists()


def test_progress_or_a_tokenizer_that_was_changed_is_not_gone_on_from(
    configure, tmp_path, saved_tokenizer, monkeypatch
):
    with monkeypatch.context() as patch:
        interrupt_after(patch, "save", 4)
        with pytest.raises(Interruption):
            prepare(configure())
    working = WorkingDirectory(tmp_path / "out")
    path = working.path / "progress.json"
    saved = path.read_text()
    content = json.loads(saved)
    changes = [{"n_blocks": 1}, {"splits": {}}, {"position": None}]
    without = [{key: content[key] for key in content if key != left_out} for left_out in content]
    for changed in [content | change for change in changes] + without:
        path.write_text(json.dumps(changed))
        with pytest.raises(ProgressError, match="by this version, found"):
            prepare(configure())
    path.write_text(saved)
    save_tokenizer(train_tokenizer(fables(50, seed=3), 280), working.data)
    with pytest.raises(ProgressError, match="expected the tokenizer with which the preparation"):
        prepare(configure())


def test_other_commands_leave_an_unfinished_preparation_alone(configure, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, "save", 3)
    with pytest.raises(Interruption):
        prepare(configure(shuffle_buffer_tokens=100))
    working = WorkingDirectory(tmp_path / "out")
    unfinished = contents(working.data)
    with making(tmp_path / "out") as directory:
        (directory / "file").touch()
    assert contents(working.data) == unfinished and unfinished


def test_a_table_of_digests_that_cannot_grow_is_an_error_of_the_disk(tmp_path):
    seen = SeenDocuments(tmp_path / "seen.sqlite", n_blocks=0)
    (n_pages,) = seen._connection.execute("PRAGMA page_count").fetchone()
    seen._execute(f"PRAGMA max_page_count = {n_pages}")
    with pytest.raises(OSError, match="seen.sqlite: database or disk is full; is the disk full"):
        for number in range(1000):
            seen.is_new(number.to_bytes(16), 0)


@pytest.mark.gate
@pytest.mark.parametrize("split", ["documents", "tail"])
def test_a_preparation_killed_twenty_times_ends_in_the_same_files(configure, tmp_path, split):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(6):  # some 280 blocks, of which a run that is killed makes a few
        write_jsonl(corpus / f"{i}.jsonl", fables(2500, seed=i))
    small_blocks = partial(
        configure,
        dataset=str(corpus),
        split=split,
        deduplicate=True,
        shuffle_buffer_tokens=2000,
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
    give_up = time.monotonic() + PATIENCE
    while blocks_of(working) < n_blocks and process.is_alive():
        assert time.monotonic() < give_up, "no progress"
        time.sleep(0.001)


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


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_kill_after_the_last_rename_leaves_only_cleaning_up(configure, tmp_path, overwrite):
    made, working = killed_after_the_last_rename(configure(overwrite=overwrite))
    shutil.copytree(tmp_path / "out", old := tmp_path / ".out.old")
    assert prepare(configure(overwrite=overwrite)) == made
    assert not working.path.exists() and not old.exists()


def test_a_kill_before_the_hidden_directory_is_gone_leaves_complete_data(configure, tmp_path):
    made = prepare(configure())
    WorkingDirectory(tmp_path / "out").path.mkdir()
    assert prepare(configure()) == made


def test_a_kill_after_the_last_rename_does_not_hide_that_the_input_has_changed(configure, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", fables(300))
    killed_after_the_last_rename(configure(dataset=str(source)))
    write_jsonl(source, fables(400))
    with pytest.raises(OutputError, match="input has changed since"):
        prepare(configure(dataset=str(source)))


def test_data_that_were_deleted_before_all_was_cleaned_up_are_made_anew(configure, tmp_path):
    made, working = killed_after_the_last_rename(configure())
    shutil.rmtree(tmp_path / "out")
    assert prepare(configure()) == made and not working.path.exists()


def test_an_interrupted_mixture_ends_in_the_same_files(configure, corpus, tmp_path, monkeypatch):
    dataset = f"{corpus}/[0-3].jsonl:0.7,{corpus}/[45].jsonl:0.3"
    config = configure(dataset=dataset, max_tokens=40_000)
    prepare(configure(dataset=dataset, max_tokens=40_000, output_dir=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        interrupt_after(patch, "save", 4)
        with pytest.raises(Interruption):
            prepare(config)
    prepare(config)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_error_of_the_disk_says_that_the_same_command_goes_on(configure, tmp_path, monkeypatch):
    message = r"out: expected .* No space left.* tokens are safe: run the same command"
    with monkeypatch.context() as patch:
        interrupt_after(patch, "save", 4, OSError(28, "No space left on device"))
        with pytest.raises(OSError, match=message):
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
    configure, tmp_path, saved_tokenizer, monkeypatch
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


def test_a_tokenizer_that_has_changed_does_not_continue_what_was_begun(
    configure, tmp_path, saved_tokenizer, monkeypatch
):
    shutil.copytree(saved_tokenizer, own := tmp_path / "own")
    config = configure(tokenizer=str(own))
    with monkeypatch.context() as patch:
        interrupt_after(patch, "save", 4)
        with pytest.raises(Interruption):
            prepare(config)
    other = train_tokenizer(fables(50), 280)
    save_tokenizer(other, own)
    with pytest.raises(ProgressError, match=r"other input files \(.*own/tokenizer\.json"):
        prepare(config)
    begun = WorkingDirectory(tmp_path / "out")._load()
    more = [*begun.inputs, [f"{own}-more.jsonl", 1, 1]]
    assert "there are more now" in progress._first_difference(begun, begun.arguments, more)
    manifest = prepare(configure(tokenizer=str(own), overwrite=True))
    assert manifest.vocabulary == vocabulary_of(other)


def test_two_preparations_of_one_directory_do_not_meet(configure, tmp_path):
    with (
        claimed(tmp_path / "out"),
        pytest.raises(OutputError, match="found one under way"),
    ):
        prepare(configure())


def test_bad_rows_late_in_the_input_keep_what_is_finished(configure, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", fables(3000))
    good = source.read_bytes()
    source.write_bytes(good + b"{oops\n")
    with pytest.raises(SourceError, match=r"a\.jsonl:3001: expected one JSON object"):
        prepare(configure(dataset=str(source)))
    assert blocks_of(WorkingDirectory(tmp_path / "out")) > 3


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


@pytest.mark.gate
def test_workers_end_with_a_killed_parent(configure, tmp_path):
    process = forkserver.Process(target=prepare, args=(configure(num_workers=2),))
    process.start()
    wait_for_blocks(WorkingDirectory(tmp_path / "out"), process, 1)
    workers = children_of(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.join()
    give_up = time.monotonic() + PATIENCE
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < give_up, "a worker outlives its parent"
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


def test_a_worker_that_dies_ends_in_one_line(configure, monkeypatch, tmp_path):
    monkeypatch.setattr(workers, "_encode", _die)
    with pytest.raises(workers.WorkerError, match="a worker process died"):
        prepare(configure(num_workers=2))


def _die(documents):
    os._exit(1)
