"""The cache of shards: its limit, who leaves first, and processes that share it."""

import contextlib
import errno
import multiprocessing
import os
import shutil
import threading

import pytest
import torch
from filelock import FileLock
from support.counting_shards import N_SHARDS, SHARD_BYTES, batches_of, cache_of, opened
from support.processes import PATIENCE
from support.servers.faulty_server import delay, serve

from modeling_gpt2scratch.common.atomic_files import PARTIAL_SUFFIX
from modeling_gpt2scratch.data.loading import cache as cache_module
from modeling_gpt2scratch.data.loading import store as store_module
from modeling_gpt2scratch.data.loading.cache import CacheClosedError, ShardCache
from modeling_gpt2scratch.data.loading.store import LocalStore
from modeling_gpt2scratch.data.shards.format import ShardError


def test_the_cache_keeps_its_limit_and_what_the_next_groups_need(data, tmp_path):
    # Groups of 2 shards reach into a third; the next group may need three others.
    limit = 6 * SHARD_BYTES
    shards = tmp_path / "cache" / "shards"
    largest, done = 0, threading.Event()

    def watch():
        nonlocal largest
        while not done.is_set():
            with contextlib.suppress(FileNotFoundError):
                largest = max(largest, sum(file.stat().st_size for file in shards.iterdir()))

    with serve(data) as server:
        cache = ShardCache(tmp_path / "cache", limit_bytes=5 * SHARD_BYTES)
        (shards / f"{'0' * 64}.bin").write_bytes(bytes(SHARD_BYTES))  # of another data set
        os.utime(shards / f"{'0' * 64}.bin", (1, 1))
        with opened(server.address, cache) as store:
            watcher = threading.Thread(target=watch, daemon=True)
            watcher.start()
            found = batches_of(store)
            done.set()
            watcher.join()
    assert torch.equal(found, batches_of(LocalStore(data)))
    assert 3 * SHARD_BYTES <= largest <= limit
    assert not (shards / f"{'0' * 64}.bin").exists()


def test_least_recently_used_shards_leave_first_and_kept_ones_never(tmp_path):
    cache = ShardCache(tmp_path, limit_bytes=300)

    def get(name):
        return cache.get(name, 100, download=lambda path: path.write_bytes(bytes(100)))

    for number, name in enumerate("abc"):
        os.utime(get(name), (number, number))
    get("a")  # used just now
    cache.keep("me", ["b"])
    get("d")
    assert {path.stem for path in (tmp_path / "shards").iterdir()} == {"a", "b", "d"}
    cache.keep("me", [])
    get("e")
    assert {path.stem for path in (tmp_path / "shards").iterdir()} == {"a", "d", "e"}


@pytest.mark.parametrize("name", ["x", "a"])
def test_what_a_killed_download_left_takes_no_room(tmp_path, name):
    cache = ShardCache(tmp_path, limit_bytes=300)
    (tmp_path / "shards" / f"{name}.250{PARTIAL_SUFFIX}").write_bytes(bytes(90))
    (tmp_path / "shards" / ".DS_Store").write_bytes(b"not ours")
    cache.get("a", 100, download=lambda path: path.write_bytes(bytes(100)))
    assert {path.name for path in (tmp_path / "shards").iterdir()} == {"a.bin", ".DS_Store"}


def test_who_waits_for_a_lock_is_freed_when_the_cache_closes(tmp_path):
    cache, other = ShardCache(tmp_path, limit_bytes=300), ShardCache(tmp_path, limit_bytes=300)
    closing = threading.Timer(0.1, cache.closed.set)
    with other.lock("a"):
        closing.start()
        with pytest.raises(CacheClosedError):
            cache.get("a", 100, download=lambda path: None)


def test_a_cache_of_another_user_says_which_flag_chooses_one(tmp_path, monkeypatch):
    def acquire(self, **options):
        raise PermissionError(errno.EACCES, "Permission denied", self.lock_file)

    monkeypatch.setattr(FileLock, "acquire", acquire)
    cache = ShardCache(tmp_path, limit_bytes=300)
    with pytest.raises(OSError, match=r"a\.lock: .* denied; choose another --data_cache"):
        cache.get("a", 100, download=lambda path: None)


def test_a_download_under_way_has_its_place_in_the_cache(tmp_path):
    cache = ShardCache(tmp_path, limit_bytes=300)
    (tmp_path / "shards" / "a.bin").write_bytes(bytes(100))
    (tmp_path / "shards" / f"x.200{PARTIAL_SUFFIX}").touch()
    with cache.lock("x"):  # somebody downloads 200 bytes
        thread = threading.Thread(
            target=cache.get, args=("b", 100), kwargs={"download": lambda p: p.write_bytes(b"")}
        )
        thread.start()
        thread.join()
    assert [path.name for path in (tmp_path / "shards").glob("*.bin")] == ["b.bin"]


def test_who_finds_no_room_says_so_and_goes_on_when_there_is(tmp_path, capfd):
    cache = ShardCache(tmp_path, limit_bytes=300)
    (tmp_path / "shards" / "a.bin").write_bytes(bytes(250))
    cache.keep("me", ["a"])
    freeing = threading.Timer(0.5, cache.keep, ("me", []))
    freeing.start()
    cache.get("b", 100, download=lambda path: path.write_bytes(bytes(100)))
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["b.bin"]
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and "waiting for 100 bytes" in lines[0]


@pytest.mark.parametrize("verify", [False, True])
def test_damage_in_the_cache_is_found_by_the_next_process(data, tmp_path, verify):
    expected = batches_of(LocalStore(data))
    with serve(data) as server:
        with opened(server.address, cache_of(tmp_path / "cache")) as store:
            batches_of(store)
        for shard in (tmp_path / "cache" / "shards").iterdir():
            content = bytearray(shard.read_bytes())
            content[-1] ^= 1
            shard.write_bytes(content)
        with opened(server.address, cache_of(tmp_path / "cache"), verify=verify) as store:
            assert torch.equal(batches_of(store), expected)
    assert server.requests["train_000000.bin"] == 2


def test_a_process_reads_a_shard_for_its_checksum_once(data, tmp_path, monkeypatch):
    checked = []

    def count(path, *, entry, n_bytes):
        checked.append(entry.file)

    with serve(data) as server:
        with opened(server.address, cache_of(tmp_path / "cache")) as store:
            batches_of(store)
        monkeypatch.setattr(store_module, "check_shard", count)
        with opened(server.address, cache_of(tmp_path / "cache")) as store:
            batches_of(store, n_steps=100)
    assert sorted(checked) == [f"train_00000{number}.bin" for number in range(N_SHARDS)]


def test_a_shard_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    flushed = []

    def flush(path):
        flushed.append((path.read_bytes(), (tmp_path / "shards" / "a.bin").exists()))

    monkeypatch.setattr(cache_module, "fsync", flush)
    cache = ShardCache(tmp_path, limit_bytes=300)
    cache.get("a", 100, download=lambda path: path.write_bytes(bytes(100)))
    assert flushed == [(bytes(100), False)]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_takes_the_oldest_shards_before_the_run(tmp_path, code):
    cache, shards = ShardCache(tmp_path, limit_bytes=10**6), tmp_path / "shards"

    def download(path):
        path.write_bytes(bytes(50))  # what came until then
        if len(list(shards.glob("*.bin"))) > n_fitting:
            try:
                raise OSError(code, os.strerror(code))
            except OSError as error:
                raise ShardError("no room") from error
        path.write_bytes(bytes(100))

    for number, name in enumerate("abcd"):
        path = cache.get(name, 100, download=lambda path: path.write_bytes(bytes(100)))
        os.utime(path, (number, number))
    cache.keep("me", ["a", "d"])
    n_fitting = 3
    cache.get("e", 100, download=download)
    assert {path.name for path in shards.iterdir()} == {f"{name}.bin" for name in "acde"}
    n_fitting = 2
    cache.keep("me", ["a", "d", "e"])
    with pytest.raises(ShardError, match="no room"):
        cache.get("f", 100, download=download)
    assert {path.name for path in shards.iterdir()} == {f"{name}.bin" for name in "ade"}


@pytest.mark.parametrize("is_under_way", [False, True])
def test_a_cache_that_was_deleted_is_made_again(tmp_path, is_under_way):
    cache = ShardCache(tmp_path / "cache", limit_bytes=300)
    times = iter([is_under_way, False])

    def download(path):
        if next(times):
            shutil.rmtree(tmp_path / "cache")
        path.write_bytes(bytes(100))

    if not is_under_way:
        shutil.rmtree(tmp_path / "cache")
    assert cache.get("a", 100, download=download).read_bytes() == bytes(100)


def read_everything(address, cache, queue):
    with opened(address, cache_of(cache)) as store:
        queue.put(batches_of(store).sum().item())


@pytest.mark.slow
def test_two_processes_download_each_shard_once(data, tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with serve(data) as server:
        for number in range(N_SHARDS):
            server.faults[f"train_00000{number}.bin"] = [delay(0.2)]
        processes = [
            context.Process(target=read_everything, args=(server.address, tmp_path / "c", queue))
            for _ in range(2)
        ]
        for process in processes:
            process.start()
        sums = [queue.get(timeout=PATIENCE) for _ in processes]
        for process in processes:
            process.join()
    assert sums == [batches_of(LocalStore(data)).sum().item()] * 2
    for number in range(N_SHARDS):
        assert server.requests[f"train_00000{number}.bin"] == 1
