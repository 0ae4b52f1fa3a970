"""Remote data: the tokens of the local directory, fetched when they are needed."""

import dataclasses
import json
import os
import sys
import time

import fsspec
import numpy as np
import pytest
import torch
from support.counting_shards import N_SHARDS, SHARD_TOKENS, batches_of, cache_of, loader_of, opened
from support.paths import REPOSITORY
from support.processes import run_process
from support.servers import fake_hub
from support.servers.faulty_server import serve

from modeling_gpt2scratch.data.loading.store import LocalStore, RemoteStore
from modeling_gpt2scratch.data.shards.format import ShardError
from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.data.shards.writer import SplitWriter


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
def test_an_address_of_the_hub_is_read_by_its_own_library(data, tmp_path):
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
            [sys.executable, "-c", program, "hf://datasets/someone/shards@main", tmp_path / "c"],
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
        deadline = time.monotonic() + 20
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
