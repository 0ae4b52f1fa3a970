"""Downloads from a server that fails in every way: the file or one line, never other bytes."""

import re

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
from support.servers.faulty_server import corrupt, delay, drop, hang_up, serve, status, truncate

from modeling_gpt2scratch.data.loading import remote_files
from modeling_gpt2scratch.data.loading.cache import PARTIAL
from modeling_gpt2scratch.data.loading.remote_files import RemoteFiles
from modeling_gpt2scratch.data.loading.store import LocalStore
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
        files.download("manifest.json", tmp_path / "x", check=lambda path: None, max_bytes=9)


def test_a_full_disk_is_not_tried_again(data, tmp_path):
    files = RemoteFiles(f"file://{data}")

    def fill(path):
        raise OSError(28, "No space left on device")

    with pytest.raises(ShardError, match="No space left on device; make room, lower --data_cache"):
        files.download("manifest.json", tmp_path / "x", check=fill, max_bytes=9999)


@pytest.mark.parametrize("address", ["nowhere://x", "gdrive://x"])
def test_an_address_that_nothing_installed_knows_is_refused(tmp_path, address):
    with pytest.raises(ShardError, match=f"{address}: expected an address that fsspec can open"):
        RemoteFiles(address)
