"""Files that are fetched ahead of their turn."""

import os
import sys
import threading
from pathlib import Path

import pytest
from support.hub_data import REPOSITORY, hub_file
from support.processes import run_process
from support.servers import fake_hub

from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.data.sources.file_queue import FileQueue


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that this process uses."""
    with fake_hub.serve(REPOSITORY, {}) as served:
        served.use_here(monkeypatch, tmp_path / "home")
        yield served


class LocalFile:
    """A file that needs no download."""

    def __init__(self, path: Path):
        self.path = path

    def fetch(self, directory: Path) -> Path:
        return self.path


class GatedFile:
    """A file whose download waits for the test."""

    def __init__(self, name: str):
        self.name, self.started, self.may_end = name, threading.Event(), threading.Event()

    def fetch(self, directory: Path) -> Path:
        self.started.set()
        assert self.may_end.wait(60)
        return directory / self.name


def test_a_queue_gives_every_file_in_order_and_deletes_what_was_read(hub, tmp_path):
    contents = {f"{i}.jsonl": str(i).encode() for i in range(5)}
    hub.files |= contents
    local = tmp_path / "local.jsonl"
    local.write_bytes(b"local")
    sources = [hub_file(name, content) for name, content in contents.items()]
    files = FileQueue([*sources[:2], LocalFile(local), *sources[2:]], tmp_path / "downloads")
    read, n_there = [], []
    for path in files:
        n_there.append(len(list((tmp_path / "downloads").rglob("*.jsonl"))))
        read.append(path.read_bytes())
        files.release(path)
    assert read == [b"0", b"1", b"local", b"2", b"3", b"4"]
    assert max(n_there) <= 3  # one is read, two wait
    assert not list((tmp_path / "downloads").rglob("*.jsonl"))
    assert local.exists()


def test_a_queue_fetches_so_many_files_ahead_and_no_more(tmp_path):
    sources = [GatedFile(f"{i}") for i in range(5)]
    for source in sources:
        source.may_end.set()
    files = FileQueue(sources, tmp_path, ahead=2)
    assert next(files) == tmp_path / "0"
    assert sources[2].started.wait(60)
    assert not sources[3].started.wait(0.05)
    assert next(files) == tmp_path / "1"
    assert sources[3].started.wait(60)
    assert not sources[4].started.is_set()
    files.close()


def test_the_error_of_a_download_comes_when_its_file_would(tmp_path):
    (tmp_path / "a").write_bytes(b"a")

    class Missing:
        def fetch(self, directory):
            raise SourceError("missing: not there")

    files = FileQueue([LocalFile(tmp_path / "a"), Missing(), Missing()], tmp_path)
    assert next(files) == tmp_path / "a"
    with pytest.raises(SourceError, match="missing: not there"):
        next(files)
    assert list(files) == []


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "forgotten"])
def test_a_queue_that_is_no_longer_used_lets_its_thread_end(tmp_path, is_closed):
    sources = [GatedFile(f"{i}") for i in range(9)]
    files = FileQueue(sources, tmp_path)
    sources[0].may_end.set()
    next(files)
    assert sources[1].started.wait(60)
    (worker,) = [t for t in threading.enumerate() if "_fetch_all" in t.name]
    if is_closed:
        files.close()
        assert list(files) == []
    else:
        del files
    sources[1].may_end.set()
    worker.join(60)
    assert not worker.is_alive()
    assert not sources[2].started.is_set()


UNFINISHED = """
import sys, threading
from pathlib import Path
from modeling_gpt2scratch.data.sources.file_queue import FileQueue

class Endless:
    def fetch(self, directory):
        threading.Event().wait()

class Local(Endless):
    def fetch(self, directory):
        return directory

files = FileQueue([Local(), Endless()], Path(sys.argv[1]))
for path in files:
    break
print("read one")
"""


def test_the_interpreter_ends_while_a_download_hangs(tmp_path):
    finished = run_process(
        [sys.executable, "-c", UNFINISHED, str(tmp_path)],
        env=os.environ,
    )
    assert (finished.returncode, finished.stdout) == (0, "read one\n"), finished.stderr
