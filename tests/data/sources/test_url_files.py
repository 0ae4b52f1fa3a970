"""A file of known content comes down once, whole and checked, and stays in the user's cache."""

import dataclasses
import hashlib

import pytest
from support.paths import SHARED_DATA
from support.servers.faulty_server import corrupt, drop, flood, serve, status, truncate

from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.common.retries import Retries
from modeling_gpt2scratch.data.preparation.configuration import PrepareConfig
from modeling_gpt2scratch.data.preparation.prepare import prepare
from modeling_gpt2scratch.data.sources import url_files
from modeling_gpt2scratch.data.sources.dataset_argument import describe_files, open_sources
from modeling_gpt2scratch.data.sources.url_files import URL_PRESETS, UrlFile

CONTENT = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 40
AT_ONCE = Retries(first_wait_seconds=0, longest_wait_seconds=0, give_up_after_seconds=60)
NAME = "plays.txt"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where the user's programs keep what can be made again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gpt2scratch"


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / NAME).write_bytes(CONTENT)
    with serve(tmp_path / "served") as server:
        yield server


def file_at(address, content=CONTENT):
    return UrlFile(NAME, f"{address}/{NAME}", len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize(
    "fault",
    [status(503), status(429), drop, corrupt, truncate, flood(10 * len(CONTENT))],
    ids=["503", "429", "drop", "corrupt", "truncate", "flood"],
)
def test_a_download_that_fails_is_tried_again_and_kept(cache, tmp_path, server, fault, capsys):
    server.faults[NAME] = [fault, fault]
    file = file_at(server.address)
    path = file.fetch(tmp_path, retries=AT_ONCE)
    assert (path, path.read_bytes()) == (cache / NAME, CONTENT)
    assert server.requests[NAME] == 3
    assert capsys.readouterr().err.count("; next try in 0 s") == 2
    assert file.fetch(tmp_path) == path
    assert server.requests[NAME] == 3
    assert [path.name for path in cache.iterdir()] == [NAME]


@pytest.mark.parametrize(
    ("faults", "n_requests", "found"),
    [
        ([status(404)], 1, "HTTP status 404"),
        ([corrupt] * 9, url_files.MAX_ATTEMPTS, "sha256 [0-9a-f]* in place of [0-9a-f]*"),
        ([truncate] * 9, url_files.MAX_ATTEMPTS, "1,220 bytes in place of 2,440"),
        ([flood(9999)] * 9, url_files.MAX_ATTEMPTS, "2,441 bytes or more in place of 2,440"),
    ],
    ids=["missing", "corrupt", "truncate", "flood"],
)
def test_a_download_that_does_not_come_says_which_file_to_put_where(
    cache, tmp_path, server, faults, n_requests, found
):
    server.faults[NAME] = faults
    file = file_at(server.address)
    message = (
        rf"^{file.url}: expected the file, found .*{found}; without a network, put it "
        rf"\(2,440 bytes, sha256 {file.sha256}\) at {cache / NAME}$"
    )
    with pytest.raises(SourceError, match=message):
        file.fetch(tmp_path, retries=AT_ONCE)
    assert server.requests[NAME] == n_requests
    assert not cache.exists()


def test_without_a_network_a_file_that_was_put_there_will_do(cache, tmp_path):
    file = file_at("http://127.0.0.1:9")  # where nobody listens
    with pytest.raises(SourceError, match=r"refused; without a network, put it .* at "):
        file.fetch(tmp_path, retries=dataclasses.replace(AT_ONCE, give_up_after_seconds=0))
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(CONTENT)
    assert file.fetch(tmp_path) == cache / NAME
    (cache / NAME).write_bytes(CONTENT[:-1])
    with pytest.raises(SourceError, match=rf"^{cache / NAME}: expected .* found another file"):
        file.fetch(tmp_path)


def test_shakespeare_is_a_preset(cache, tmp_path):
    path = SHARED_DATA / "tinyshakespeare.txt"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    preset = URL_PRESETS["shakespeare"]
    content = path.read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (preset.n_bytes, preset.sha256)
    assert preset.url.startswith("https://")
    cache.mkdir(parents=True)
    (cache / preset.name).write_bytes(content)
    manifest = prepare(
        PrepareConfig(
            dataset="shakespeare",
            tokenizer="bytes",
            val_fraction=0.1,
            output_dir=str(tmp_path / "out"),
        )
    )
    assert (manifest.splits["train"].n_bytes, manifest.splits["val"].n_bytes) == (1003854, 111539)
    assert manifest.sources[0]["name"] == "shakespeare"
    (described,) = describe_files(open_sources("shakespeare"))
    assert described == [preset.name, preset.n_bytes, preset.sha256]
    assert (cache / preset.name).is_file()  # it was no download of the preparation
