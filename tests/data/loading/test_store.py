"""Remote data: the tokens of the local directory, fetched when they are needed."""

import dataclasses
import hashlib
import json
import os
import re
import sys
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from support.counting_shards import N_SHARDS, SHARD_TOKENS, batches_of, cache_of, loader_of, opened
from support.paths import REPOSITORY
from support.processes import PATIENCE, run_process
from support.servers import fake_hub
from support.servers.faulty_server import delay, serve, status
from support.token_directories import edit_manifest

from modeling_gpt2scratch.data.loading import store as store_module
from modeling_gpt2scratch.data.loading.loader import TokenWindows
from modeling_gpt2scratch.data.loading.store import LocalStore, RemoteStore, check_shard
from modeling_gpt2scratch.data.shards.adoption import adopt
from modeling_gpt2scratch.data.shards.directory import load_own_tokenizer
from modeling_gpt2scratch.data.shards.format import ShardError
from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.data.shards.writer import SplitWriter
from modeling_gpt2scratch.data.tokens.tokenizer import load_tokenizer


@pytest.mark.parametrize("shuffle_shards", [0, 1, 2, 4])
def test_a_remote_directory_has_the_tokens_of_the_local_one(data, tmp_path, shuffle_shards):
    expected = batches_of(LocalStore(data), shuffle_shards=shuffle_shards)
    with serve(data) as server, opened(server.address, cache_of(tmp_path / "cache")) as store:
        found = batches_of(store, shuffle_shards=shuffle_shards)
    assert torch.equal(found, expected)
    assert all(server.requests[f"train_00000{number}.bin"] == 1 for number in range(N_SHARDS))


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_any_file_system_of_fsspec_will_do(data, tmp_path, scheme):
    root = f"memory://{tmp_path.name}" if scheme == "memory" else f"file://{tmp_path}/copy"
    file_system, path = fsspec.url_to_fs(root)
    file_system.makedirs(path)
    for file in data.iterdir():
        file_system.put_file(str(file), f"{path}/{file.name}")
    with opened(root, cache_of(tmp_path / "cache")) as store:
        assert torch.equal(batches_of(store), batches_of(LocalStore(data)))


@pytest.mark.slow
@pytest.mark.parametrize("revision", ["main", fake_hub.COMMIT])
def test_an_address_of_the_hub_is_read_by_its_own_library(data, tmp_path, revision):
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from modeling_gpt2scratch.data.loading.store import RemoteStore, ShardCache\n"
        "store = RemoteStore(sys.argv[1], ShardCache(Path(sys.argv[2]), limit_bytes=10**6))\n"
        "print(*(store.open(s).sum() for s in store.manifest.splits['train'].shards))\n"
    )
    files = {file.name: file.read_bytes() for file in data.iterdir()}
    with fake_hub.serve("someone/shards", files) as hub:
        finished = run_process(
            [
                sys.executable,
                "-c",
                program,
                f"hf://datasets/someone/shards@{revision}",
                tmp_path / "c",
            ],
            env=os.environ | hub.environment(tmp_path),
            cwd=REPOSITORY,
        )
        assert not hub.not_found
    assert finished.stdout.split() == [str(100 * 100 * n + 4950) for n in range(N_SHARDS)]


@pytest.mark.parametrize("name", ["../../evil", "0" * 63, "A" * 64])
def test_a_manifest_cannot_choose_names_of_files_in_the_cache(data, tmp_path, name):
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][1]["sha256"] = name
    (data / "manifest.json").write_text(json.dumps(manifest))
    message = "expected a sha256 for train_000001.bin, found"
    with serve(data) as server, pytest.raises(ShardError, match=message):
        RemoteStore(server.address, cache_of(tmp_path / "cache"))


def test_a_remote_directory_without_a_manifest_is_refused_by_its_address(data, tmp_path):
    (data / "manifest.json").write_text('{"format": "something else"}')
    with serve(data) as server, pytest.raises(ShardError) as caught:
        RemoteStore(server.address, cache_of(tmp_path / "cache"))
    assert str(caught.value).startswith(f"{server.address}/manifest.json: expected gpt2scratch-")


def test_a_pointer_in_place_of_a_shard_is_named(data):
    entry = Manifest.load(data).splits["train"].shards[0]
    path = data / entry.file
    n_bytes = path.stat().st_size
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ShardError, match=r"expected [\d,]+ bytes, found a Git-LFS pointer; run"):
        check_shard(path, entry=entry, n_bytes=n_bytes)


def test_a_changed_data_set_is_fetched_anew_and_an_unchanged_one_is_not(data, tmp_path):
    with serve(data) as server:
        for _ in range(2):
            with opened(server.address, cache_of(tmp_path / "cache")) as store:
                batches_of(store)
        assert server.requests["tokenizer.json"] == server.requests["train_000000.bin"] == 1
        assert server.requests["manifest.json"] == 2
        writer = SplitWriter(data, "train", shard_tokens=SHARD_TOKENS, vocab_size=2**16)
        writer.add(np.arange(1000, 1000 + N_SHARDS * SHARD_TOKENS), n_bytes=1)
        manifest = Manifest.load(data)
        dataclasses.replace(manifest, splits={"train": writer.close()}).save(data)
        with opened(server.address, cache_of(tmp_path / "cache")) as store:
            assert torch.equal(batches_of(store), batches_of(LocalStore(data)))
            assert batches_of(store).min() >= 1000
        assert server.requests["tokenizer.json"] == 2


def test_the_next_group_comes_while_this_one_is_read(data, tmp_path):
    with serve(data) as server, opened(server.address, cache_of(tmp_path / "cache")) as store:
        loader = loader_of(store, shuffle_shards=2)
        loader.batch(0, 0)
        first, second = (loader._orders[0].group_of_visit(visit) for visit in (0, 1))
        source = loader.sources[0]
        wanted = {*source.shards_of_group(first), *source.shards_of_group(second)}
        deadline = time.monotonic() + PATIENCE
        while len(list((tmp_path / "cache" / "shards").glob("*.bin"))) < len(wanted):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        requested = {int(name[6:12]) for name in server.requests if name.startswith("train_")}
        assert requested == wanted and len(wanted) < N_SHARDS


def test_a_shard_that_another_process_removed_is_fetched_again(data, tmp_path):
    with serve(data) as server, opened(server.address, cache_of(tmp_path / "cache")) as store:
        expected = batches_of(LocalStore(data))
        loader = loader_of(store)
        for step in range(40):
            assert torch.equal(loader.batch(step, 0)["input_ids"], expected[step])
            if step % 3 == 0:
                for shard in (tmp_path / "cache" / "shards").glob("*.bin"):
                    shard.unlink()


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_download_in_advance_that_failed_is_said_once_and_tried_again(
    data, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(store_module, "PAUSE_SECONDS", 0.01)
    with serve(data) as server:
        server.faults["train_000002.bin"] = [status(404)] * 2
        with opened(server.address, cache_of(tmp_path / "cache")) as store:
            entry = store.manifest.splits["train"].shards[2]
            store.want("me", [entry])
            wait_for(lambda: list((tmp_path / "cache" / "shards").glob("*.bin")))
            assert store.open(entry).tolist() == list(range(200, 300))
        assert server.requests["train_000002.bin"] == 3
        lines = [x for x in capfd.readouterr().err.splitlines() if x.startswith(server.address)]
        assert lines == [
            f"{server.address}/train_000002.bin: expected the file, found none; it will be "
            f"tried again when it is needed"
        ]


def test_a_shard_that_failed_in_advance_is_tried_again_when_it_is_needed(data, tmp_path):
    with serve(data) as server:
        server.faults["train_000002.bin"] = [status(404)]
        with opened(server.address, cache_of(tmp_path / "cache")) as store:
            entry = store.manifest.splits["train"].shards[2]
            store.want("me", [entry])
            wait_for(lambda: store._failed)
            assert store.open(entry).tolist() == list(range(200, 300))


def test_whoever_waits_for_what_is_not_wanted_any_more_is_told(data, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "DOWNLOADS", 0)
    with serve(data) as server, opened(server.address, cache_of(tmp_path / "cache")) as store:
        entry = store.manifest.splits["train"].shards[2]
        store.want("me", [entry])
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(store.open, entry)
            wait_for(lambda: store._awaited)
            store.want("me", [])
            with pytest.raises(CancelledError):
                waiting.result(PATIENCE)


def test_what_is_not_wanted_any_more_is_not_tried_again(data, tmp_path, monkeypatch):
    with serve(data) as server:
        server.faults["train_000002.bin"] = [status(404)]
        with opened(server.address, cache_of(tmp_path / "cache")) as store:
            store.want("me", [store.manifest.splits["train"].shards[2]])
            wait_for(lambda: store._failed)
            store.want("me", [])
            monkeypatch.setattr(store_module, "PAUSE_SECONDS", 0)
            wait_for(lambda: not store._failed)
        assert server.requests["train_000002.bin"] == 1


@pytest.mark.parametrize("local_rank", ["0", "1"])
def test_a_shard_that_is_slow_to_come_is_named_by_one_process_of_each_machine(
    data, tmp_path, monkeypatch, capfd, local_rank
):
    monkeypatch.setattr(store_module, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    with serve(data) as server:
        server.faults["train_000002.bin"] = [delay(1)]
        with opened(server.address, cache_of(tmp_path / "cache")) as store:
            store.open(store.manifest.splits["train"].shards[2])
        lines = [x for x in capfd.readouterr().err.splitlines() if x.startswith(server.address)]
    waited = r".*/train_000002\.bin: waited \d+ s for it so far; "
    pattern = waited + "(0|1,224) of 1,224 bytes have come"
    assert all(re.fullmatch(pattern, line) for line in lines)
    assert len(lines) >= 2 if local_rank == "0" else not lines


@pytest.fixture
def adopted(tmp_path, gpt2_files) -> Path:
    """Six .npy files of 100 tokens of GPT-2's, adopted."""
    directory = tmp_path / "adopted"
    directory.mkdir()
    for number in range(N_SHARDS):
        tokens = np.arange(number * SHARD_TOKENS, (number + 1) * SHARD_TOKENS)
        np.save(directory / f"train_{number}.npy", tokens.astype([np.uint16, np.int32][number % 2]))
    adopt(directory, tokenizer_name="gpt2")
    return directory


def test_other_programs_files_have_the_same_tokens_from_anywhere(data, adopted, tmp_path):
    expected = batches_of(LocalStore(data))
    assert torch.equal(batches_of(LocalStore(adopted)), expected)
    with serve(adopted) as server, opened(server.address, cache_of(tmp_path / "cache")) as store:
        assert torch.equal(batches_of(store), expected)
        # Its tokenizer is known by its name, because no files of one lie there.
        tokenizer = load_own_tokenizer(store.directory, store.manifest)
        assert tokenizer.eos_token_id == store.manifest.end_of_text_id == 50256


def test_a_tokenizer_beside_other_programs_files_comes_with_them(adopted, tmp_path):
    load_tokenizer("gpt2").save_pretrained(adopted)
    with serve(adopted) as server:
        with opened(server.address, cache_of(tmp_path / "cache")) as store:
            assert (store.directory / "tokenizer.json").is_file()
        # It goes with the next manifest, if that has none.
        (adopted / "tokenizer.json").unlink()
        edit_manifest(adopted, lambda m: m["arguments"].update(note="changed"))
        with opened(server.address, cache_of(tmp_path / "cache")) as store:
            assert not (store.directory / "tokenizer.json").exists()


def test_batches_of_wide_types_share_no_memory(adopted):
    batch = loader_of(LocalStore(adopted)).batch(0, 0)  # of two types, and so read as int64
    labels = batch["shift_labels"].clone()
    batch["input_ids"].zero_()
    assert torch.equal(batch["shift_labels"], labels)


def test_a_negative_id_is_refused_before_it_is_narrowed(adopted):
    path = adopted / "train_1.npy"
    np.save(path, np.arange(100, dtype=np.int32) - 50)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_manifest(adopted, lambda m: m["splits"]["train"]["shards"][1].update(sha256=sha256))
    windows = TokenWindows(adopted, "train", sequence_length=8)
    message = r"train_1\.npy: expected ids below 50257, found -50 at token 0"
    with pytest.raises(ShardError, match=message):
        windows.verify()
    with pytest.raises(ShardError, match=message):
        windows.read(np.array([12]))
