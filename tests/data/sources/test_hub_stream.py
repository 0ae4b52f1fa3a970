"""Data sets of the Hub that have to be streamed, and processes that end afterwards."""

import json
import os
import sys

import pytest
from support.hub_data import parquet
from support.processes import run_process
from support.servers import fake_hub

from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.data.sources.hub_stream import HubStream
from modeling_gpt2scratch.data.sources.rows import BadRows

REPOSITORY = "aesop/fables"
TEXTS = [f"fable {i}" for i in range(6)]
READ = """
import sys
from modeling_gpt2scratch.data.sources.hub_stream import HubStream
stop_after = int(sys.argv[1])
for n_rows, text in HubStream("aesop/fables", None, "text").documents():
    if n_rows == stop_after:
        break
print(n_rows)
"""


def jsonl(*texts: str | None) -> bytes:
    return "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts).encode()


@pytest.fixture
def read(monkeypatch, tmp_path):
    """What is streamed from a Hub of these files."""

    def read_from(files: dict[str, bytes], **options) -> list[tuple[int, str]]:
        with fake_hub.serve(REPOSITORY, files) as hub:
            hub.use_here(monkeypatch, tmp_path)
            return list(HubStream(REPOSITORY, None, "text").documents(**options))

    return read_from


def test_rows_are_counted_and_can_be_skipped(read):
    # `.json` is a format that only the library reads.
    files = {"train/0.json": jsonl(*TEXTS[:3], ""), "train/1.json": jsonl(*TEXTS[3:])}
    everything = read(files)
    assert everything == list(zip([1, 2, 3, 5, 6, 7], TEXTS, strict=True))
    assert read(files, skip_rows=3) == everything[3:]
    assert read(files, skip_rows=7) == []


def test_a_local_directory_of_the_same_name_is_not_read(read, tmp_path, monkeypatch):
    (tmp_path / REPOSITORY).mkdir(parents=True)
    (tmp_path / REPOSITORY / "train.json").write_bytes(jsonl("another text"))
    monkeypatch.chdir(tmp_path)
    assert read({"train/0.json": jsonl(*TEXTS[:2])}) == [(1, TEXTS[0]), (2, TEXTS[1])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"story": "a"}\n', "row 1: expected text in column 'text', found columns ['story']"),
        (jsonl("a", None), "row 2: expected text in column 'text', found null; --where"),
        (b"[", "expected a data set of the Hub that can be read, found "),
    ],
    ids=["no column", "null", "damaged"],
)
def test_what_cannot_be_read_is_one_line(read, content, message):
    with pytest.raises(SourceError) as caught:
        read({"train.json": content})
    assert str(caught.value).startswith(f"{REPOSITORY}: {message}")
    assert "\n" not in str(caught.value)


def test_rows_without_text_are_left_out_and_counted(read):
    files = {"train/0.json": jsonl("a", None, "b"), "train/1.json": jsonl(None, "c")}
    bad_rows = BadRows("skip")
    assert read(files, bad_rows=bad_rows) == [(1, "a"), (3, "b"), (5, "c")]
    assert bad_rows.count == 2


@pytest.mark.gate
@pytest.mark.parametrize("stop_after", [0, 1], ids=["read to the end", "left in the middle"])
@pytest.mark.parametrize(
    "files",
    [
        {f"train/{i}.parquet": parquet(*TEXTS * 500) for i in range(4)},
        {f"train/{i}.json": jsonl(*TEXTS * 500) for i in range(4)},
    ],
    ids=["parquet", "json"],
)
def test_the_process_ends_after_streaming(tmp_path, files, stop_after):
    with fake_hub.serve(REPOSITORY, files) as hub:
        finished = run_process(
            [sys.executable, "-c", READ, str(stop_after)],
            env=os.environ | hub.environment(tmp_path),
        )
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) == (stop_after or 4 * 500 * len(TEXTS))
