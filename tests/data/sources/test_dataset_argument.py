"""A source is local files, docstrings or a data set of the Hub, and can be read again."""

import gzip
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import fake_hub
from support.paths import REPOSITORY
from support.processes import run_process
from support.table_files import DOCUMENTS, jsonl, parquet_table, written

from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.data.sources import dataset_argument as dataset_argument
from modeling_gpt2scratch.data.sources.dataset_argument import Source, describe_files, open_sources
from modeling_gpt2scratch.data.sources.document_stream import DocumentStream
from modeling_gpt2scratch.data.sources.hub_files import HubFile


def stream_of(sources, directory, **keywords):
    """The batches of some sources."""
    options = {"seed": None, "downloads": directory / "downloads"} | keywords
    return DocumentStream(sources, **options)


def documents_in(batches):
    """The documents of the batches, one after another."""
    return [document for batch in batches for document in batch.documents]


def test_local_files_are_read_one_after_another_and_again(tmp_path):
    written(tmp_path / "2.jsonl", jsonl(DOCUMENTS[2:], column="story"))
    written(tmp_path / "1.parquet", parquet_table(DOCUMENTS[:2], column="story"))
    for dataset in (tmp_path, tmp_path / "*"):
        sources = open_sources(str(dataset), text_column="story")
        for _ in range(2):
            assert documents_in(stream_of(sources, tmp_path)) == DOCUMENTS


def test_one_bad_file_of_a_glob_is_refused_before_any_is_read(tmp_path):
    written(tmp_path / "1.jsonl", jsonl(DOCUMENTS))
    path = written(tmp_path / "2.pdf", b"")
    with pytest.raises(SourceError, match="2.pdf: expected a file ending in") as caught:
        open_sources(str(tmp_path / "*"))
    assert str(caught.value).startswith(f"{path}: ")


def test_a_name_that_leads_nowhere_is_compared_with_the_presets(tmp_path, monkeypatch):
    def list_files(repository, **keywords):
        raise SourceError(f"{repository}: the Hub answered 404 Not Found")

    monkeypatch.setattr(dataset_argument, "list_files", list_files)
    with pytest.raises(SourceError) as caught:
        open_sources("fineweb-edu-10b")
    assert str(caught.value) == (
        "fineweb-edu-10b: the Hub answered 404 Not Found; there is no file or folder of that name, "
        "either; did you mean fineweb-edu-10B?"
    )


def test_a_file_of_the_hub_is_the_same_after_a_commit_that_left_it_alone():
    def described(revision, sha256):
        file = HubFile("a.parquet", 10, "aesop/fables", revision=revision, sha256=sha256)
        return describe_files([Source("aesop/fables", [file])])

    assert described("1" * 40, "a" * 64) == described("2" * 40, "a" * 64)
    assert described("1" * 40, "a" * 64) != described("1" * 40, "b" * 64)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=7),
    weight=st.sampled_from([None, 0.5, 0.8]),
    seed=st.none() | st.integers(0, 5),
    batch_characters=st.integers(1, 30),
    limit=st.none() | st.integers(0, 40),
    stop=st.integers(0, 100),
)
def test_reading_goes_on_behind_any_batch(
    tmp_path_factory, sizes, weight, seed, batch_characters, limit, stop
):
    directory = tmp_path_factory.mktemp("sources")
    for folder in ("a", "b"):
        (directory / folder).mkdir()
        for i, size in enumerate(sizes):
            texts = [f"{folder}{i}{j}" for j in range(size)]
            written(directory / folder / f"{i}.jsonl", jsonl(texts))
    dataset = f"{directory}/a,{directory}/b"
    if weight is not None:
        dataset = f"{directory}/a:{weight},{directory}/b:{1 - weight}"
    sources = open_sources(dataset)
    options = {"seed": seed, "batch_characters": batch_characters, "limit_documents": limit}
    whole = list(stream_of(sources, directory, **options))
    documents = documents_in(whole)
    assert len(set(documents)) == len(documents)
    if weight is None:
        assert len(documents) == min(2 * sum(sizes), 1000 if limit is None else limit)

    stop = min(stop, len(whole) - 1)
    if stop >= 0:
        position = json.loads(json.dumps(whole[stop].position))
        rest = list(stream_of(sources, directory, position=position, **options))
        assert rest == whole[stop + 1 :]


def test_files_of_a_few_are_read_in_turn_when_there_is_a_seed(tmp_path):
    for i in range(5):
        written(tmp_path / f"{i}.jsonl", jsonl([f"{i}{j}" for j in range(6)]))
    sources = open_sources(str(tmp_path))
    batches = list(stream_of(sources, tmp_path, seed=0, batch_characters=4))
    files = [batch.documents[0][0] for batch in batches]
    # Four files at a time, two documents from each; the fifth file has to wait for its turn.
    assert len(set(files[:4])) == 4
    assert files[:4] == files[4:8]
    assert sorted(files) == sorted("01234" * 3)
    other = [b.documents[0][0] for b in stream_of(sources, tmp_path, seed=1, batch_characters=4)]
    assert other != files


# The Hub, in a fresh process: its address is read once, on import

READ = """
import json, pathlib, sys
from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.data.sources import dataset_argument
from modeling_gpt2scratch.data.sources.document_stream import DocumentStream
from modeling_gpt2scratch.data.sources.hub_files import HubFile
from modeling_gpt2scratch.data.sources.dataset_argument import Source, describe_files, open_sources
try:
    sources = open_sources(sys.argv[1], subset=json.loads(sys.argv[2]))
    downloads = pathlib.Path(sys.argv[3])
    streams = [DocumentStream(sources, seed=None, downloads=downloads) for _ in "12"]
    print(json.dumps([[d for batch in s for d in batch.documents] for s in streams]))
except SourceError as error:
    sys.exit(str(error))
"""


def read_from_hub(environment, name, subset=None):
    """What a fresh process finds, or the message it ends with."""
    downloads = Path(environment["HF_HOME"]) / "downloads"
    command = [sys.executable, "-c", READ, name, json.dumps(subset), str(downloads)]
    finished = run_process(command, env=os.environ | environment)
    if finished.returncode:
        return finished.stderr.splitlines()[-1]
    first, second = json.loads(finished.stdout)
    assert first == second
    return first


def prepare_from_hub(environment, name, output_dir):
    """The last line on stderr of prepare_data.py, which ends with exit code 1."""
    finished = run_process(
        [
            *(sys.executable, REPOSITORY / "prepare_data.py", "--dataset", name),
            *("--tokenizer", "bpe:300", "--output_dir", output_dir),
        ],
        env=os.environ | environment,
    )
    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
    lines = [line for line in finished.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert not output_dir.exists()
    return lines[0]


def test_a_data_set_of_the_hub_is_read(tmp_path):
    files = {"data/train-00000-of-00001.parquet": parquet_table([*DOCUMENTS, ""])}
    with fake_hub.serve("aesop/fables", files) as hub:
        found = read_from_hub(hub.environment(tmp_path), "aesop/fables")
    assert found == DOCUMENTS, hub.not_found


def test_a_configuration_of_a_data_set_of_the_hub_is_read(tmp_path):
    card = """---
configs:
- config_name: long
  data_files: long/*.jsonl
- config_name: short
  data_files: short/*.jsonl
---
"""
    files = {
        "README.md": card.encode(),
        "long/a.jsonl": jsonl(["not asked for"]),
        "short/a.jsonl": jsonl(DOCUMENTS[:2]),
        "short/b.jsonl": jsonl(DOCUMENTS[2:]),
    }
    with fake_hub.serve("aesop/fables", files) as hub:
        found = read_from_hub(hub.environment(tmp_path), "aesop/fables", subset="short")
    assert found == DOCUMENTS, hub.not_found


def test_a_data_set_of_the_hub_cannot_be_had_offline_and_this_is_said_in_one_line(tmp_path):
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    message = read_from_hub(environment, "aesop/fables")
    assert message == (
        "aesop/fables: expected to reach the Hub, found the variable HF_HUB_OFFLINE; unset it; "
        "there is no file or folder of that name, either"
    )


def test_a_damaged_file_of_the_hub_is_said_in_one_line(tmp_path):
    files = {"train.jsonl.gz": gzip.compress(jsonl(DOCUMENTS))[:-20]}
    with fake_hub.serve("aesop/fables", files) as hub:
        message = read_from_hub(hub.environment(tmp_path), "aesop/fables")
    assert message.startswith("aesop/fables/train.jsonl.gz: cannot be read: ")
    assert "ended before the end-of-stream marker" in message


@pytest.mark.slow
def test_a_data_set_of_the_hub_without_the_column_ends_in_one_line(tmp_path):
    with fake_hub.serve("aesop/fables", {"train.jsonl": jsonl(DOCUMENTS, "story")}) as hub:
        line = prepare_from_hub(hub.environment(tmp_path), "aesop/fables", tmp_path / "out")
    assert line == (
        "prepare_data.py: error: aesop/fables/train.jsonl:1: expected text in column 'text', "
        "found columns ['id', 'story']; see --text_column"
    )


@pytest.mark.slow
def test_a_data_set_that_the_hub_does_not_know_ends_in_one_line(tmp_path):
    with fake_hub.serve("aesop/fables", {"train.jsonl": jsonl(DOCUMENTS)}) as hub:
        line = prepare_from_hub(hub.environment(tmp_path), "aesop/fabels", tmp_path / "out")
    assert line == (
        "prepare_data.py: error: aesop/fabels: the Hub answered 404 Not Found; check the name; if "
        "the data set is private, log in with `hf auth login` or set HF_TOKEN; there is no file or "
        "folder of that name, either"
    )
