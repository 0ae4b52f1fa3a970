"""What `--dataset` names: local files, docstrings or a data set of the Hub, read twice."""

import gzip
import json
import os
import sys
from contextlib import closing
from pathlib import Path

import pytest
from support.paths import REPOSITORY
from support.processes import run_process
from support.servers import fake_hub
from support.table_files import DOCUMENTS, jsonl, parquet_table, written

from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.data.sources import dataset_argument
from modeling_gpt2scratch.data.sources.dataset_argument import Source, describe_files, open_sources
from modeling_gpt2scratch.data.sources.document_stream import DocumentStream
from modeling_gpt2scratch.data.sources.hub_files import HubFile


def test_local_files_are_read_one_after_another_and_again(tmp_path):
    written(tmp_path / "2.jsonl", jsonl(DOCUMENTS[2:], column="story"))
    written(tmp_path / "1.parquet", parquet_table(DOCUMENTS[:2], column="story"))
    for dataset in (tmp_path, tmp_path / "*"):
        sources = open_sources(str(dataset), text_column="story")
        for _ in range(2):
            stream = DocumentStream(sources, seed=None, downloads=tmp_path / "downloads")
            assert [text for batch in stream for text in batch.documents] == DOCUMENTS


def test_one_bad_file_of_a_glob_is_refused_before_any_is_read(tmp_path):
    written(tmp_path / "1.jsonl", jsonl(DOCUMENTS))
    path = written(tmp_path / "2.pdf", b"")
    with pytest.raises(SourceError, match="2.pdf: expected a file ending in") as caught:
        open_sources(str(tmp_path / "*"))
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("letter", ["\n", "\r", "\t\n", "\x1b", "\u2028", "\x85"])
def test_a_name_that_no_manifest_could_hold_is_refused(tmp_path, letter):
    path = written(tmp_path / f"two{letter}lines.txt", b"text")
    for dataset in (path, tmp_path / f"two{letter}*"):
        with pytest.raises(SourceError, match="expected --dataset with names of printable char"):
            open_sources(str(dataset))


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


@pytest.mark.parametrize("name", ["docstrings", "shakespeare", "openwebtext"])
def test_a_name_that_means_a_corpus_and_a_path_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.txt").write_text("text")
    with pytest.raises(SourceError, match=f"found {name}, .* write ./{name} for the path"):
        open_sources(name)
    assert len(open_sources(f"./{name}")[0].files) == 1
    (tmp_path / name / "manifest.json").write_text("{}")  # now it is data that were prepared here
    monkeypatch.setattr(
        dataset_argument, "list_files", lambda *_, **__: [HubFile("a", 1, "b", revision="0")]
    )
    assert len(open_sources(name)) == 1


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("https://huggingface.co/datasets/user/name", "; write user/name"),
        ("https://huggingface.co/datasets/user/name/tree/main", "; write user/name"),
        ("hf://datasets/user/name@main", "; write user/name"),
        ("https://huggingface.co/datasets/user/name?row=3", "; write user/name"),
        ("https://huggingface.co/datasets/squad/tree/main", "; download the file and name it"),
        ("https://www.kaggle.com/datasets/joe/stories", "; download the file and name it"),
        ("https://example.com/a.jsonl", "; download the file and name it"),
        ("user/name@v1", "found revision 'v1'; write user/name, or download the revision with"),
        ("user/name/sub@v1", "write user/name/sub, or download the revision with `hf download us"),
    ],
)
def test_an_address_or_a_revision_is_refused_with_what_to_write(name, hint):
    with pytest.raises(SourceError) as caught:
        open_sources(name)
    message = str(caught.value)
    assert message.startswith("expected --dataset with ") and hint in message
    assert "@v1" in name or message.endswith(hint)


def test_a_subset_that_no_source_takes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        dataset_argument,
        "list_files",
        lambda repository, **keywords: [HubFile("a", 10, repository, revision="0", sha256="1")],
    )
    (tmp_path / "a.txt").write_text("text")
    own = str(tmp_path / "a.txt")
    for dataset in ("docstrings", "shakespeare", "fineweb-edu-10B", "user/name/other", own):
        with pytest.raises(SourceError, match="expected --subset for .*, found sample-100BT"):
            open_sources(dataset, subset="sample-100BT")
    for dataset in ("user/name", "user/name/sample-100BT", f"{own},user/name"):
        assert open_sources(dataset, subset="sample-100BT")[-1].subset == "sample-100BT"


def test_a_column_that_no_source_has_is_refused(tmp_path):
    with pytest.raises(SourceError, match="expected --text_column for files or a data set .*found"):
        open_sources("docstrings", text_column="body")
    (tmp_path / "a.jsonl").write_text('{"body": "text"}\n')
    sources = open_sources(f"docstrings,{tmp_path / 'a.jsonl'}", text_column="body")
    assert [source.text_column for source in sources] == ["text", "body"]


def test_a_streamed_data_set_is_read_at_one_commit(monkeypatch):
    heads = iter(("a" * 40, "b" * 40))
    monkeypatch.setattr(dataset_argument, "list_files", lambda *_, **__: [])
    monkeypatch.setattr(dataset_argument, "commit_of", lambda *_: next(heads))
    (first,) = open_sources("user/name")
    ((name, n_bytes, version),) = describe_files([first])
    assert (name, n_bytes, version) == ("user/name", 0, "a" * 40)
    # Who goes on reads at that commit, and of earlier versions at none.
    for begun in (version, None):
        (again,) = open_sources("user/name", revisions={"user/name": begun})
        assert again.revision == begun and again.files[0].revision == begun
    assert open_sources("user/name")[0].revision == "b" * 40


def test_a_file_of_the_hub_is_read_for_one_part_only(monkeypatch):
    files = [HubFile("en/a.parquet", 10, "user/name", revision="0", sha256="1")]
    monkeypatch.setattr(dataset_argument, "list_files", lambda *_, **__: files)
    with pytest.raises(SourceError, match=r"found .*en/a\.parquet.* in two of its parts"):
        open_sources("user/name/all:0.5,user/name/en:0.5")


def test_a_file_of_the_hub_is_the_same_after_a_commit_that_left_it_alone():
    def described(revision, sha256):
        file = HubFile("a.parquet", 10, "aesop/fables", revision=revision, sha256=sha256)
        return describe_files([Source("aesop/fables", [file])])

    assert described("1" * 40, "a" * 64) == described("2" * 40, "a" * 64)
    assert described("1" * 40, "a" * 64) != described("1" * 40, "b" * 64)


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


@pytest.mark.gate
def test_a_data_set_of_the_hub_without_the_column_ends_in_one_line(tmp_path):
    with fake_hub.serve("aesop/fables", {"train.jsonl": jsonl(DOCUMENTS, "story")}) as hub:
        line = prepare_from_hub(hub.environment(tmp_path), "aesop/fables", tmp_path / "out")
    assert line == (
        "prepare_data.py: error: aesop/fables/train.jsonl:1: expected text in column 'text', "
        "found columns ['id', 'story']; see --text_column"
    )


@pytest.mark.gate
def test_a_data_set_that_the_hub_does_not_know_ends_in_one_line(tmp_path):
    with fake_hub.serve("aesop/fables", {"train.jsonl": jsonl(DOCUMENTS)}) as hub:
        line = prepare_from_hub(hub.environment(tmp_path), "aesop/fabels", tmp_path / "out")
    assert line == (
        "prepare_data.py: error: aesop/fabels: the Hub answered 404 Not Found; check the name; if "
        "the data set is private, log in with `hf auth login` or set HF_TOKEN; there is no file or "
        "folder of that name, either"
    )


def test_a_file_that_is_reached_twice_is_read_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "deep" / "er").mkdir(parents=True)
    for name in ("a.txt", "deep/er/b.txt"):
        (tmp_path / "own" / name).write_text("text")
    (tmp_path / "own" / "latest.txt").symlink_to("a.txt")
    for pattern in ("own", "own/**/**/*.txt"):
        (source,) = open_sources(pattern)
        assert [file.name for file in source.files] == ["own/a.txt", "own/deep/er/b.txt"]
    for parts in ("own,own/*.txt", "own/latest.txt:0.5,own/*.txt:0.5"):
        with pytest.raises(SourceError, match="each file once, found .*/a.txt in two of its parts"):
            open_sources(parts)


@pytest.mark.parametrize("pattern", ["", "/**/*.txt*"])
def test_a_file_beside_its_compressed_form_is_refused(tmp_path, pattern):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"text"))
    with pytest.raises(SourceError, match="a.txt.gz: expected each text once, found .*a.txt besid"):
        open_sources(f"{tmp_path}{pattern}")
    (source,) = open_sources(f"{tmp_path}/*.gz")
    assert len(source.files) == 1


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("~/nowhere/*.txt", f"; write {os.path.expanduser('~')}/nowhere/*.txt"),
        ("nowhere/*.{txt,jsonl}", "; a glob has no {a,b}: write both, with a comma between them"),
    ],
)
def test_what_only_a_shell_expands_is_said(pattern, hint):
    with pytest.raises(SourceError) as caught:
        open_sources(pattern)
    assert str(caught.value).endswith(f"found nothing there{hint}")


def test_endings_may_be_capitals(tmp_path):
    (tmp_path / "A.TXT").write_text("first")
    (tmp_path / "B.Jsonl.GZ").write_bytes(gzip.compress(b'{"text": "second"}'))
    (tmp_path / "C.PARQUET").write_bytes(parquet_table(["third"]))
    sources = open_sources(str(tmp_path))
    with closing(DocumentStream(sources, seed=None, downloads=tmp_path)) as stream:
        assert [text for batch in stream for text in batch.documents] == [
            "first",
            "second",
            "third",
        ]
