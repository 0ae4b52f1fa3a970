"""Remote data through a cache: the local tokens or none, whatever the server and others do."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import re
import sys
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from support import fake_hub
from support.faulty_server import corrupt, delay, drop, hang_up, serve, status, truncate
from support.paths import REPOSITORY
from support.processes import PATIENCE, run_process

from modeling_gpt2scratch.data.loading import remote_files
from modeling_gpt2scratch.data.loading.cache import PARTIAL, Closed, ShardCache
from modeling_gpt2scratch.data.loading.loader import ShardLoader, TokenWindows
from modeling_gpt2scratch.data.loading.prefetcher import Prefetcher, StreamError
from modeling_gpt2scratch.data.loading.remote_files import RemoteFiles
from modeling_gpt2scratch.data.loading.store import LocalStore, RemoteStore
from modeling_gpt2scratch.data.shards.format import HEADER_BYTES, ShardError
from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.data.shards.writer import SplitWriter

SHARD_TOKENS = 100
SHARD_BYTES = HEADER_BYTES + 2 * SHARD_TOKENS
N_SHARDS = 6
SEQUENCE_LENGTH = 8


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(remote_files, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(remote_files, "LONGEST_PAUSE_SECONDS", 0.02)


@pytest.fixture
def data(tmp_path) -> Path:
    """A data directory of six shards of 100 tokens and tokenizer files."""
    directory = tmp_path / "data"
    directory.mkdir()
    writer = SplitWriter(directory, "train", shard_tokens=SHARD_TOKENS, vocab_size=2**16)
    writer.add(np.arange(N_SHARDS * SHARD_TOKENS), n_bytes=1)
    Manifest(
        vocab_size=2**16,
        end_of_text_id=0,
        tokenizer={"name": "none", "fingerprint": ""},
        splits={"train": writer.close()},
        arguments={},
    ).save(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_text("{}")
    return directory


def cache_of(directory, n_shards=100):
    return ShardCache(directory, limit_bytes=n_shards * SHARD_BYTES)


@contextlib.contextmanager
def opened(address, cache, **options):
    """A store that is closed afterwards."""
    try:
        yield RemoteStore(address, cache, **options)
    finally:
        cache.closed.set()


def loader_of(store, shuffle_shards=2):
    windows = TokenWindows(
        store, "train", sequence_length=SEQUENCE_LENGTH, shuffle_shards=shuffle_shards
    )
    return ShardLoader(windows, rows_per_step=5, micro_batch_size=5, seed=3)


def batches_of(store, n_steps=40, **options):
    """Inputs of the first steps: 200 rows of 74 windows, so beyond two epochs."""
    loader = loader_of(store, **options)
    return torch.stack([loader.batch(step, 0)["input_ids"] for step in range(n_steps)])


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


def test_every_fault_is_survived_with_a_message(data, tmp_path, capfd):
    with serve(data) as server:
        server.faults["manifest.json"] = [status(503), truncate]
        server.faults["tokenizer.json"] = [hang_up]
        server.faults["train_000000.bin"] = [status(429), status(500), status(503)]
        server.faults["train_000001.bin"] = [drop, drop, hang_up]
        server.faults["train_000002.bin"] = [truncate, corrupt]
        server.faults["train_000003.bin"] = [corrupt, drop, status(502), truncate]
        server.faults["train_000004.bin"] = [delay(0.3)]
        with opened(server.address, cache_of(tmp_path / "cache")) as store:
            assert torch.equal(batches_of(store), batches_of(LocalStore(data)))
        # Whatever else goes to stderr meanwhile is no message about these files.
        lines = [x for x in capfd.readouterr().err.splitlines() if x.startswith(server.address)]
        assert not any(server.faults.values())
    prefix = f"{server.address}/train_00000"
    for expected in (
        f"{server.address}/manifest.json: expected the file, found HTTP status 503; next try in",
        f"{server.address}/manifest.json: expected JSON, found",
        f"{prefix}0.bin: expected the file, found HTTP status 429; next try in",
        f"{prefix}1.bin: expected the file, found ClientPayloadError",
        f"{prefix}2.bin: expected {SHARD_BYTES:,} bytes, found {SHARD_BYTES // 2:,}; next try",
        f"{prefix}2.bin: expected sha256 ",
    ):
        assert any(line.startswith(expected) for line in lines), (expected, lines)
    # aiohttp may ask again by itself when a connection closes without an answer, which is twice.
    assert 11 <= len(lines) <= 13 and all(
        re.search(r"; next try in \d+ s$", line) for line in lines
    )
    assert not list((tmp_path / "cache" / "shards").glob(f"*{PARTIAL}"))


def test_a_silent_server_is_left_and_asked_again(data, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(remote_files, "SILENCE_SECONDS", 0.2)
    with serve(data) as server:
        server.faults["train_000000.bin"] = [delay(5)]
        with opened(server.address, cache_of(tmp_path / "cache")) as store:
            entry = store.manifest.splits["train"].shards[0]
            assert store.open(entry).tolist() == list(range(SHARD_TOKENS))
    assert "train_000000.bin: expected the file, found no answer in time" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (corrupt, r"expected sha256 \w+\.\.\., found \w+\.\.\."),
        (truncate, "expected 1,224 bytes, found 612"),
        (status(500), "expected the file, found HTTP status 500"),
    ],
)
def test_a_source_that_stays_bad_ends_in_one_line_and_no_token(data, tmp_path, fault, reason):
    with serve(data) as server:
        server.faults["train_000002.bin"] = [fault] * 1000
        cache = cache_of(tmp_path / "cache")
        with opened(server.address, cache, retry_seconds=0.1) as store:
            message = rf"train_000002\.bin: {reason}; gave up after \d+ tries, start again with"
            with pytest.raises(ShardError, match=message) as caught:
                batches_of(store)
            assert "\n" not in str(caught.value)
    assert server.requests["train_000002.bin"] >= 3
    assert len(list((tmp_path / "cache" / "shards").iterdir())) <= N_SHARDS - 1


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (401, "found HTTP status 401; check the address and your credentials"),
        (403, "found HTTP status 403; check the address and your credentials"),
        (404, "expected the file, found none; check the address"),
        (410, "found HTTP status 410; check"),
    ],
)
def test_what_another_try_cannot_mend_is_not_tried_again(data, tmp_path, code, reason):
    with serve(data) as server:
        server.faults["train_000000.bin"] = [status(code)] * 9
        message = rf"train_000000\.bin: .*{reason}"
        with (
            opened(server.address, cache_of(tmp_path / "cache")) as store,
            pytest.raises(ShardError, match=message),
        ):
            batches_of(store)
    # Once in advance, and once more when the group begins that needs it.
    assert 1 <= server.requests["train_000000.bin"] <= 2


def test_a_missing_right_on_the_hub_comes_with_a_hint(tmp_path):
    files = RemoteFiles("hf://datasets/somebody/something")

    def refuse(*arguments):
        raise PermissionError("gated")

    files._attempt = refuse
    with pytest.raises(ShardError, match="set HF_TOKEN if the data set is private or gated"):
        files.download("manifest.json", tmp_path / "x", check=lambda path: None)


def test_a_full_disk_is_not_tried_again(data, tmp_path):
    files = RemoteFiles(f"file://{data}")

    def fill(path):
        raise OSError(28, "No space left on device")

    with pytest.raises(ShardError, match="No space left on device; make room, lower --data_cache"):
        files.download("manifest.json", tmp_path / "x", check=fill)


@pytest.mark.parametrize("address", ["nowhere://x", "gdrive://x"])
def test_an_address_that_nothing_installed_knows_is_refused(tmp_path, address):
    with pytest.raises(ShardError, match=f"{address}: expected an address that fsspec can open"):
        RemoteFiles(address)


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
            watcher = threading.Thread(target=watch)
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
    (tmp_path / "shards" / f"{name}.250{PARTIAL}").write_bytes(bytes(90))
    (tmp_path / "shards" / ".DS_Store").write_bytes(b"not ours")
    cache.get("a", 100, download=lambda path: path.write_bytes(bytes(100)))
    assert {path.name for path in (tmp_path / "shards").iterdir()} == {"a.bin", ".DS_Store"}


def test_who_waits_for_a_lock_is_freed_when_the_cache_closes(tmp_path):
    cache, other = ShardCache(tmp_path, limit_bytes=300), ShardCache(tmp_path, limit_bytes=300)
    closing = threading.Timer(0.1, cache.closed.set)
    with other.lock("a"):
        closing.start()
        with pytest.raises(Closed):
            cache.get("a", 100, download=lambda path: None)


def test_a_download_under_way_has_its_place_in_the_cache(tmp_path):
    cache = ShardCache(tmp_path, limit_bytes=300)
    (tmp_path / "shards" / "a.bin").write_bytes(bytes(100))
    (tmp_path / "shards" / f"x.200{PARTIAL}").touch()
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
    assert len(lines) == 1 and "waiting for room for 100 bytes" in lines[0]


def test_damage_in_the_cache_is_found_by_a_full_verification(data, tmp_path):
    expected = batches_of(LocalStore(data))
    with serve(data) as server:
        with opened(server.address, cache_of(tmp_path / "cache")) as store:
            batches_of(store)
        for shard in (tmp_path / "cache" / "shards").iterdir():
            content = bytearray(shard.read_bytes())
            content[-1] ^= 1
            shard.write_bytes(content)
        with opened(server.address, cache_of(tmp_path / "cache"), verify=True) as store:
            assert torch.equal(batches_of(store), expected)
    assert server.requests["train_000000.bin"] == 2


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


def test_a_prefetcher_yields_the_batches_from_its_step_on(data):
    loader = loader_of(LocalStore(data))
    with Prefetcher(loader, start_step=7) as batches:
        for step in range(7, 40):
            found = next(batches)
            assert torch.equal(found["input_ids"], loader.batch(step, 0)["input_ids"])
    assert not batches._thread.is_alive()


def test_a_prefetcher_counts_the_seconds_of_waiting_and_passes_errors_on(data, tmp_path):
    source, order = (loader := loader_of(LocalStore(data))).sources[0], loader._orders[0]
    first, last = (source.shards_of_group(order.group_of_visit(visit)) for visit in (0, 2))
    bad = next(number for number in last if number not in first)
    with serve(data) as server:
        for number in range(N_SHARDS):
            server.faults[f"train_00000{number}.bin"] = [delay(0.3)]
        server.faults[f"train_00000{bad}.bin"] = [status(403)] * 9
        with (
            opened(server.address, cache_of(tmp_path / "cache")) as store,
            Prefetcher(loader_of(store)) as batches,
        ):
            next(batches)
            assert 0 < batches.waited_seconds < 20
            with pytest.raises(StreamError, match=rf"train_00000{bad}\.bin: .* status 403"):
                for _ in range(40):
                    next(batches)
            with pytest.raises(StreamError):  # and so for whoever asks again
                next(batches)
