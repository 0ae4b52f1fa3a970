"""Data sets of the Hub file by file: what they resolve to, and downloads through every fault."""

import contextlib
import hashlib
import math
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
from support.hub_data import CARD, FILES, REPOSITORY, hub_file, parquet
from support.servers import fake_hub
from support.servers.fake_hub_handler import commit_of

from modeling_gpt2scratch.common import hub_requests
from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.common.hub_requests import MAX_DAMAGED_DOWNLOADS
from modeling_gpt2scratch.common.retries import Retries
from modeling_gpt2scratch.data.sources.hub_files import (
    PRESETS,
    HubFile,
    list_files,
    remove_partial_downloads,
)

IMPATIENT = Retries(first_wait_seconds=0, longest_wait_seconds=0, give_up_after_seconds=30)


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """A Hub of these files, which this process uses."""
    with contextlib.ExitStack() as stack:

        def start(files: dict[str, bytes], **options) -> fake_hub.Hub:
            hub = stack.enter_context(fake_hub.serve(REPOSITORY, files, **options))
            hub.use_here(monkeypatch, tmp_path / "home")
            return hub

        yield start


def names_of(files: list[HubFile]) -> list[str]:
    return [file.name for file in files]


# Which files a data set has


def test_a_subset_is_what_the_data_set_card_says(serve):
    hub = serve(FILES)
    files = list_files(REPOSITORY, subset="sample-10BT")
    assert names_of(files) == ["sample/10BT/000.parquet", "sample/10BT/001.parquet"]
    assert names_of(list_files(REPOSITORY)) == ["data/2024/000.parquet"]
    content = FILES["sample/10BT/000.parquet"]
    assert (files[0].n_bytes, files[0].revision) == (len(content), fake_hub.COMMIT)
    assert files[0].sha256 == hashlib.sha256(content).hexdigest()
    assert not [line for line in hub.requests if re.match("GET .*parquet", line)]


def test_a_hub_that_accepts_and_never_answers_is_asked_again_and_given_up(serve, monkeypatch):
    monkeypatch.setattr(hub_requests, "SILENCE_SECONDS", 0.3)
    hub, never = serve(FILES), threading.Event()
    hub.fail("GET /api/datasets", never, times=math.inf)
    try:
        with pytest.raises(SourceError, match=r"ReadTimeout.*2 times; run the same command again"):
            list_files(REPOSITORY, retries=Retries(0.1, 0.1, give_up_after_seconds=0.1))
    finally:
        never.set()


def test_files_without_a_card_are_found_by_their_names(serve):
    serve({"data/train-0.jsonl": b'{"text": "a"}\n', "data/test-0.jsonl": b'{"text": "b"}\n'})
    (file,) = list_files(REPOSITORY)
    assert file.name == "data/train-0.jsonl"
    assert file.sha256 is None


def test_a_data_set_that_is_a_script_comes_from_the_conversion_to_parquet(serve, capsys):
    converted = {
        "plain_text/train/0001.parquet": parquet("b"),
        "plain_text/train/0000.parquet": parquet("a"),
        "plain_text/test/0000.parquet": parquet("c"),
    }
    script = {"README.md": b"# Fables", "fables.py": b"", "fables.zip": b"PK"}
    serve(script, revisions={"refs/convert/parquet": converted})
    files = list_files(REPOSITORY)
    assert names_of(files) == ["plain_text/train/0000.parquet", "plain_text/train/0001.parquet"]
    assert {file.revision for file in files} == {commit_of("refs/convert/parquet")}
    assert list_files(REPOSITORY, subset="plain_text") == files
    assert capsys.readouterr().err == ""


def test_an_incomplete_conversion_of_a_script_is_announced(serve, capsys):
    converted = {"default/partial-train/0000.parquet": parquet("a")}
    serve({"fables.py": b""}, revisions={"refs/convert/parquet": converted})
    assert names_of(list_files(REPOSITORY)) == list(converted)
    assert ": the Hub converted only the first part" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("converted", "expected"),
    [
        ({}, []),
        ({"default/train/0.parquet": parquet("a")}, ["default/train/0.parquet"]),
        ({"default/partial-train/0.parquet": parquet("a")}, []),
    ],
    ids=["not converted", "converted", "converted in part"],
)
def test_files_of_another_format_are_streamed_unless_all_were_converted(serve, converted, expected):
    revisions = {"refs/convert/parquet": converted} if converted else {}
    serve({"train.json": b'{"text": "a"}\n'}, revisions=revisions)
    assert names_of(list_files(REPOSITORY)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"subset": "sample-10bt"},
            "expected a subset of sample-10BT, sample-100BT, default, held-out; found sample-10bt",
        ),
        ({"subset": "held-out"}, "expected a split of test; found train"),
    ],
    ids=["subset", "split of a subset"],
)
def test_an_unknown_name_is_one_line_with_the_known_ones(serve, options, message):
    serve(FILES)
    with pytest.raises(SourceError) as caught:
        list_files(REPOSITORY, **options)
    assert str(caught.value) == f"{REPOSITORY}: {message}"


def test_a_data_set_of_several_subsets_without_a_default_wants_one(serve):
    card = CARD.replace("config_name: default", "config_name: whole")
    serve(FILES | {"README.md": card.encode()})
    with pytest.raises(SourceError, match="expected a subset of .*whole.*; found none given"):
        list_files(REPOSITORY)


def test_files_that_are_not_in_the_repository_are_left_to_streaming(serve):
    hub = serve({"a.jsonl": b'{"text": "a"}\n'})
    address = f"{hub.address}/datasets/{REPOSITORY}/resolve/main/a.jsonl"
    card = f"---\nconfigs:\n- config_name: default\n  data_files: {address}\n---\n"
    hub.files["README.md"] = card.encode()
    assert list_files(REPOSITORY) == []


def test_a_card_that_names_files_of_this_machine_is_refused(serve, tmp_path):
    (tmp_path / "diary.txt").write_text("a secret")
    card = f"---\nconfigs:\n- config_name: default\n  data_files: {tmp_path}/*.txt\n---\n"
    serve({"a.jsonl": b'{"text": "a"}\n', "README.md": card.encode()})
    with pytest.raises(SourceError, match=f"{REPOSITORY}: Data files don't belong to"):
        list_files(REPOSITORY)


def test_a_script_that_was_not_converted_is_one_line(serve):
    serve({"fables.py": b""})
    with pytest.raises(SourceError, match="expected data files, found a loading script") as caught:
        list_files(REPOSITORY)
    assert "\n" not in str(caught.value)


def test_a_data_set_without_data_is_one_line(serve):
    serve({"README.md": b"# Fables"})
    with pytest.raises(SourceError, match=f"{REPOSITORY}: expected a data set .* found") as caught:
        list_files(REPOSITORY)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500  # without the hundreds of endings that would do


@pytest.mark.parametrize(
    ("answer", "headers", "message"),
    [
        (401, {}, "the Hub answered 401 Unauthorized; it is not there or private; check the name"),
        (403, {"X-Error-Code": "GatedRepo"}, "the Hub answered 403 .* accept the conditions"),
        (404, {"X-Error-Code": "RepoNotFound"}, "the Hub answered 404 .*; check the name; if"),
    ],
    ids=["private", "gated", "unknown"],
)
def test_a_data_set_that_may_not_be_read_is_one_line(serve, answer, headers, message):
    hub = serve(FILES)
    hub.fail("GET", answer, times=float("inf"), headers=headers)
    with pytest.raises(SourceError, match=f"^{REPOSITORY}: {message}") as caught:
        list_files(REPOSITORY, retries=IMPATIENT)
    assert "\n" not in str(caught.value)
    assert len(hub.requests) == 1  # nothing that a later request could change


def test_a_gated_data_set_whose_metadata_is_public_is_one_line(serve):
    hub = serve(FILES)
    hub.fail("(GET|HEAD) .*/resolve/", 403, times=99, headers={"X-Error-Code": "GatedRepo"})
    with pytest.raises(SourceError, match="is a gated dataset .* HF_TOKEN$") as caught:
        list_files(REPOSITORY, retries=IMPATIENT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("answer", [429, 503, "drop"])
@pytest.mark.parametrize("request_", ["GET /api", "HEAD .*README", "POST .*/paths-info"])
def test_listing_survives_a_hub_that_fails_for_a_while(serve, answer, request_):
    hub = serve(FILES)
    expected = list_files(REPOSITORY, subset="sample-10BT")
    shutil.rmtree(Path(os.environ["HF_HOME"]))
    hub.fail(request_, answer, times=3)
    found = list_files(REPOSITORY, subset="sample-10BT", retries=IMPATIENT)
    assert found == expected
    assert hub.went_wrong


# Downloads


@pytest.mark.parametrize("n_faults", [1, 3])
@pytest.mark.parametrize(
    "answer", [408, 429, 500, 502, 503, 504, "drop", "truncate", "reset", "short", "corrupt"]
)
@pytest.mark.parametrize("name", ["sample/10BT/000.parquet", "data/train-0.jsonl"])
def test_a_download_survives_a_hub_that_fails_for_a_while(serve, tmp_path, name, answer, n_faults):
    content = bytes(range(256)) * 4
    hub = serve({name: content})
    file = hub_file(name, content)
    hub.fail(f"GET .*{name}", answer, times=n_faults)
    path = file.fetch(tmp_path / "downloads", retries=IMPATIENT)
    assert path.read_bytes() == content
    assert hub.went_wrong
    hub.requests.clear()
    assert file.fetch(tmp_path / "downloads") == path
    assert hub.requests == []  # an intact file is not asked for again


@pytest.mark.parametrize("answer", [429, 503, "drop"])
def test_a_download_survives_that_its_metadata_fail_for_a_while(serve, tmp_path, answer):
    hub = serve({"train.parquet": b"0123"})
    hub.fail("HEAD .*train.parquet", answer, times=9)
    path = hub_file("train.parquet", b"0123").fetch(tmp_path, retries=IMPATIENT)
    assert path.read_bytes() == b"0123"
    assert hub.went_wrong


def test_a_download_survives_a_connection_that_stalls(serve, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub = serve({"train.parquet": b"0123"})
    hub.fail("GET .*train.parquet", 0.5, times=2)
    path = hub_file("train.parquet", b"0123").fetch(tmp_path, retries=IMPATIENT)
    assert path.read_bytes() == b"0123"
    assert hub.went_wrong


def test_a_file_that_is_damaged_on_the_hub_ends_in_one_line_and_is_not_kept(serve, tmp_path):
    content = bytes(1000)
    hub = serve({"train.parquet": content})
    file = hub_file("train.parquet", content)
    hub.fail("GET .*train.parquet", "corrupt", times=float("inf"))
    with pytest.raises(SourceError) as caught:
        file.fetch(tmp_path / "downloads", retries=IMPATIENT)
    expected, found = (hashlib.sha256(text).hexdigest() for text in (content, b"\1" + content[1:]))
    assert str(caught.value) == (
        f"{REPOSITORY}/train.parquet: expected checksum {expected}, found {found}, "
        f"{MAX_DAMAGED_DOWNLOADS} times; the file may be damaged on the Hub"
    )
    assert not list((tmp_path / "downloads").rglob("train.parquet"))


def test_a_damaged_file_from_an_earlier_run_is_downloaded_again(serve, tmp_path):
    serve({"train.jsonl": b"0123"})
    file = hub_file("train.jsonl", b"0123")
    path = file.fetch(tmp_path)
    for damaged in (b"0124", b"012"):
        path.write_bytes(damaged)
        assert file.fetch(tmp_path).read_bytes() == b"0123"


def test_a_hub_that_does_not_come_back_ends_in_one_line(serve, tmp_path):
    hub = serve({"train.jsonl": b"0123"})
    hub.fail("(GET|HEAD)", 503, times=float("inf"))
    retries = Retries(0, 0, give_up_after_seconds=0)
    with pytest.raises(SourceError) as caught:
        hub_file("train.jsonl", b"0123").fetch(tmp_path, retries=retries)
    assert str(caught.value) == (
        f"{REPOSITORY}/train.jsonl: the Hub answered 503 Service Unavailable, 1 time; run the "
        f"same command again when the Hub can be reached"
    )


def test_each_new_try_is_one_line_and_a_rate_limit_is_waited_for(
    serve, tmp_path, monkeypatch, capsys
):
    waits = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    hub = serve(FILES)
    limit = {"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
    hub.fail("GET /api", 429, headers=limit)
    hub.fail("GET /api", 429, headers={"Retry-After": "7"})
    hub.fail("GET /api", 500, times=4)
    list_files(REPOSITORY, retries=Retries(longest_wait_seconds=20))
    assert waits == [56, 7, 4, 8, 16, 20]
    lines = capsys.readouterr().err.splitlines()
    hint = "; log in with `hf auth login` or set HF_TOKEN, which raises the limit"
    assert lines[0].startswith(
        f"{REPOSITORY}: the Hub answered 429 Too Many Requests; next try in 56 s"
    )
    assert lines[1] == (
        f"{REPOSITORY}: the Hub answered 429 Too Many Requests; next try in 7 s{hint}"
    )
    assert lines[2:] == [
        f"{REPOSITORY}: the Hub answered 500 Internal Server Error; next try in {seconds} s"
        for seconds in (4, 8, 16, 20)
    ]


def test_the_short_retries_of_the_library_hint_at_a_login_too(serve, tmp_path, caplog):
    hub = serve({"train.jsonl": b"0123"})
    hub.fail("GET .*train.jsonl", 429)
    hub_file("train.jsonl", b"0123").fetch(tmp_path)
    (line,) = [text for text in caplog.messages if "429" in text]
    assert line.endswith("log in with `hf auth login` or set HF_TOKEN, which raises the limit")


def test_two_repositories_with_files_of_the_same_name_do_not_meet(serve, tmp_path):
    serve({"train.jsonl": b"0123"})
    file = hub_file("train.jsonl", b"0123")
    assert file.fetch(tmp_path) == tmp_path / "aesop--fables" / "train.jsonl"


def test_what_killed_downloads_left_can_be_removed(serve, tmp_path):
    serve({"data/train.jsonl": b"0123"})
    path = hub_file("data/train.jsonl", b"0123").fetch(tmp_path)
    (folder,) = (tmp_path / "aesop--fables" / ".cache").rglob("download/data")
    (folder / "x.1234.incomplete").write_bytes(b"01")
    remove_partial_downloads(tmp_path)
    assert not list(tmp_path.rglob("*.incomplete"))
    assert path.read_bytes() == b"0123"


def test_offline_is_one_line(serve, tmp_path, monkeypatch):
    serve(FILES)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="found the variable HF_HUB_OFFLINE; unset it"):
        list_files(REPOSITORY)


# Presets


def test_a_preset_of_lines_begins_a_document_at_a_title_and_not_at_a_section():
    title = re.compile(PRESETS["wikitext-103"].document_start)
    assert title.search(" = Valkyria Chronicles III = \n")
    assert title.search(" = Q = ")
    for row in (" = = Plot = = \n", " = = = Style = = = \n", " a = b is text \n", "", " \n"):
        assert not title.search(row)


def test_the_presets_of_fineweb_name_its_samples():
    presets = {name: (preset.repository, preset.subset) for name, preset in PRESETS.items()}
    assert presets["fineweb-edu-10B"] == ("HuggingFaceFW/fineweb-edu", "sample-10BT")
    assert presets["fineweb-10B"] == ("HuggingFaceFW/fineweb", "sample-10BT")
    assert presets["fineweb-edu-100B"] == ("HuggingFaceFW/fineweb-edu", "sample-100BT")
