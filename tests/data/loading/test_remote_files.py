"""Downloads from a server that fails in every way: the file or one line, never other bytes."""

import base64
import contextlib
import re
import threading
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from support.counting_shards import (
    N_SHARDS,
    SHARD_BYTES,
    SHARD_TOKENS,
    batches_of,
    cache_of,
    opened,
)
from support.servers.faulty_server import (
    corrupt,
    delay,
    drop,
    flood,
    hang_up,
    serve,
    status,
    truncate,
)

from modeling_gpt2scratch.common import addresses
from modeling_gpt2scratch.common.atomic_files import PARTIAL_SUFFIX
from modeling_gpt2scratch.data.loading import remote_files, store
from modeling_gpt2scratch.data.loading.remote_files import RemoteFiles
from modeling_gpt2scratch.data.loading.store import LocalStore, RemoteStore
from modeling_gpt2scratch.data.shards.format import ShardError


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
    assert not list((tmp_path / "cache" / "shards").glob(f"*{PARTIAL_SUFFIX}"))


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
    hint = "; the data set may have been changed since" if fault is corrupt else ""
    with serve(data) as server:
        server.faults["train_000002.bin"] = [fault] * 1000
        cache = cache_of(tmp_path / "cache")
        with opened(server.address, cache, retry_seconds=0.1) as store:
            end = f"tries, start again with --resume auto{hint}$"
            message = rf"train_000002\.bin: {reason}; gave up after \d+ {end}"
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
    # In advance, when the group begins that needs it, and when its first token is read.
    assert 1 <= server.requests["train_000000.bin"] <= 3


def test_a_missing_right_on_the_hub_comes_with_a_hint(tmp_path):
    files = RemoteFiles("hf://datasets/somebody/something")

    def refuse(*arguments):
        raise PermissionError("gated")

    files._attempt = refuse
    with pytest.raises(ShardError, match="set HF_TOKEN if the data set is private or gated"):
        files.download("manifest.json", tmp_path / "x", check=lambda path: None, max_bytes=9)


def test_a_file_of_the_hub_that_is_another_one_now_comes_with_a_hint(tmp_path, monkeypatch):
    files = RemoteFiles("hf://datasets/somebody/something", retry_seconds=0)
    monkeypatch.setattr(files, "_attempt", lambda name, path, check, max_bytes: check(path))
    (tmp_path / "x").write_bytes(b"new")
    entry = SimpleNamespace(sha256="0" * 64)
    check = partial(store.check_shard, entry=entry, n_bytes=3)
    message = r"may have been changed since: name the commit .* hf://datasets/OWNER/NAME@COMMIT$"
    with pytest.raises(ShardError, match=message):
        files.download("train_000000.bin", tmp_path / "x", check=check, max_bytes=3)


def test_a_full_disk_is_not_tried_again(data, tmp_path):
    files = RemoteFiles(f"file://{data}")

    def fill(path):
        raise OSError(28, "No space left on device")

    with pytest.raises(ShardError, match="No space left on device; make room, lower --data_cache"):
        files.download("manifest.json", tmp_path / "x", check=fill, max_bytes=9999)


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_flood_ends_at_the_size_of_the_file(data, tmp_path, is_announced):
    floods = [flood(300_000_000, is_announced=is_announced) for _ in range(3)]
    largest = 0

    def watch():
        nonlocal largest
        while not done.wait(0.001):
            for path in (tmp_path / "cache" / "shards").glob(f"*{PARTIAL_SUFFIX}"):
                with contextlib.suppress(FileNotFoundError):
                    largest = max(largest, path.stat().st_size)

    done = threading.Event()
    watcher = threading.Thread(target=watch, daemon=True)
    with serve(data) as server:
        server.faults["train_000000.bin"] = list(floods)
        with opened(server.address, cache_of(tmp_path / "cache")) as store:
            watcher.start()
            # It is asked again, and has the file at the fourth time.
            assert store.open(store.manifest.splits["train"].shards[0]).tolist()[:2] == [0, 1]
            done.set()
            watcher.join()
    assert server.requests["train_000000.bin"] == 4
    # What had come when the limit was passed, and what systems keep on the way.
    assert largest < 2**20 and all(fault.sent < 2**24 for fault in floods)


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json"])
def test_a_flood_in_place_of_a_description_ends_at_a_fixed_size(data, tmp_path, monkeypatch, name):
    monkeypatch.setattr(store, "MAX_METADATA_BYTES", 10_000)
    with serve(data) as server:
        server.faults[name] = [flood(300_000_000)] * 99
        message = rf"{name}: expected at most 10,000 bytes, found more; gave up after 3 tries"
        with pytest.raises(ShardError, match=message):
            RemoteStore(server.address, cache_of(tmp_path / "cache"), retry_seconds=0)


def test_other_file_systems_are_asked_for_the_size_before(data, tmp_path):
    with open(data / "train_000001.bin", "ab") as file:
        file.truncate(10_000_000)
    message = "expected at most 1,224 bytes, found 10,000,000; gave up after 3 tries"
    with (
        opened(f"file://{data}", cache_of(tmp_path / "cache"), retry_seconds=0) as store,
        pytest.raises(ShardError, match=message),
    ):
        store.open(store.manifest.splits["train"].shards[1])
    assert not list((tmp_path / "cache" / "shards").iterdir())


def test_credentials_and_signatures_reach_the_server_and_no_message(data, tmp_path, capfd):
    authorization = "Basic " + base64.b64encode(b"me:p@ss").decode()
    with serve(data) as server:
        server.authorization, server.query = authorization, "sig=a%2Fb"
        address = server.address.replace("://", "://me:p%40ss@") + "?sig=a%2Fb"
        server.faults["train_000001.bin"] = [drop, status(503)]
        with opened(address, cache_of(tmp_path / "cache")) as store:
            assert torch.equal(batches_of(store), batches_of(LocalStore(data)))
            assert store.name == server.address
        server.authorization = "Basic changed"
        with pytest.raises(ShardError) as caught:
            RemoteStore(address, cache_of(tmp_path / "other"))
    assert str(caught.value) == (
        f"{server.address}/manifest.json: expected the file, found HTTP status 401; check the "
        f"address and your credentials, which are never recorded: give them in the address again, "
        f"or keep them in ~/.netrc or the environment"
    )
    assert "next try in" in (shown := capfd.readouterr().err)
    assert "p@ss" not in shown and "p%40ss" not in shown and "a%2Fb" not in shown


def test_an_address_without_its_credentials_finds_them_in_netrc(data, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(addresses, "_secrets", {})  # of the tests before
    with serve(data) as server:
        server.authorization = "Basic " + base64.b64encode(b"me:secret").decode()
        with opened(server.address, cache_of(tmp_path / "cache")) as store:
            assert torch.equal(batches_of(store), batches_of(LocalStore(data)))


@pytest.mark.parametrize("address", ["nowhere://x", "gdrive://x"])
def test_an_address_that_nothing_installed_knows_is_refused(tmp_path, address):
    with pytest.raises(ShardError, match=f"{address}: expected an address that fsspec can open"):
        RemoteFiles(address)
