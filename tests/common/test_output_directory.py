"""Which directory a command may make, replace or add to, and which is left alone."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from modeling_gpt2scratch.common import output_directory as outputs
from modeling_gpt2scratch.common.output_directory import (
    Marker,
    OutputError,
    claimed,
    making,
    output_directory,
    require_free,
    writable_directory,
)

MARKER = Marker("manifest.json", "test-data", version=2)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A directory of the user's, beside the current one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def fill(directory: Path, **files) -> Path:
    """A directory with these files."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(
            content if isinstance(content, str) else json.dumps(content)
        )
    return directory


def refusal(path, **options) -> str:
    with pytest.raises(OutputError) as error:
        output_directory(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_new_directory_and_an_empty_one_may_be_made(place):
    assert output_directory(place / "a" / "b", marker=MARKER) == place / "a" / "b"
    assert output_directory("../new") == Path("../new")  # as it was given
    assert not (place / "a").exists()
    (place / "empty").mkdir()
    assert output_directory(place / "empty") == place / "empty"


def test_what_a_killed_process_left_of_the_same_directory_counts_for_nothing(place):
    fill(place / "run", run__lock="", **{"__status__json__partial": ""})
    (place / "run" / ".checkpoint-3.partial").mkdir()
    (place / "run" / ".partial").mkdir()
    output_directory(place / "run", marker=MARKER)
    # The days of work of another preparation are more than nothing.
    fill(place / "data" / ".fineweb.preparing", progress__json="{}")
    assert "found other content" in refusal(place / "data", marker=MARKER, overwrite=True)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"format": "test-data", "version": 2}, None),
        ({"format": "test-data", "version": 1}, None),
        ({"format": "test-data", "version": 3}, "a manifest.json of version 3, which this"),
        ({"format": "test-data", "version": True}, "a manifest.json of version True"),
        ({"format": "test-data", "version": "2"}, "a manifest.json of version '2'"),
        ({"format": "test-data"}, "a manifest.json of another program"),
        ({"format": "web-extension", "version": 2}, "a manifest.json of another kind"),
        ({}, "a manifest.json of another program"),
        ([], "a manifest.json of another program"),
        ("{", "a manifest.json of another program"),
        ("[" * 100_000, "a manifest.json of another program"),
    ],
)
def test_a_directory_is_ours_only_if_its_marker_says_so(place, content, found):
    out = fill(place / "out", manifest__json=content)
    if found is None:
        assert output_directory(out, marker=MARKER, overwrite=True) == out
        assert "found manifest.json in" in refusal(out, marker=MARKER)
        assert refusal(out, marker=MARKER).endswith("add --overwrite")
        return
    for overwrite in (False, True):
        line = refusal(out, marker=MARKER, overwrite=overwrite)
        assert f"expected {out} to be new or to hold manifest.json, found {found}" in line


def test_a_link_is_replaced_by_nothing_but_its_target(place):
    target = fill(place / "disk" / "data", manifest__json=MARKER.content())
    link = place / "link"
    link.symlink_to(target)
    assert output_directory(link, marker=MARKER, overwrite=True) == target
    (place / "way").symlink_to(place / "disk")
    assert output_directory(place / "way" / "new") == place / "disk" / "new"
    with making(output_directory(place / "way" / "new")) as directory:
        (directory / "file").touch()
    assert (place / "disk" / "new" / "file").exists() and (place / "way").is_symlink()


def test_a_path_that_leads_to_no_directory_is_one_line(place):
    (place / "file").write_text("mine")
    (place / "dangling").symlink_to(place / "nowhere")
    (place / "circle").symlink_to(place / "circle")
    for path, found in {
        place / "file": f"found a file: {place / 'file'}",
        place / "file" / "a" / "b": f"found a file: {place / 'file'}",
        place / "dangling": "found a broken link",
        place / "dangling" / "a": "found a broken link",
        place / "circle": "found ",
        place / ("x" * 300): "File name too long",
        f"{place}/a\0b": "null byte",
        f"{place}/\ud800": "surrogates not allowed",
        "~": "whose ~ the shell did not expand; write ",
        "~/runs/a": f"write {Path.home()}/runs/a",
        "": "apart from the current one",
        ".": "apart from the current one",
        "..": "apart from the current one",
        "../here": "apart from the current one",
        place: "apart from the current one",
        "/": "apart from the current one",
    }.items():
        assert found in refusal(path, marker=MARKER, overwrite=True), path
    assert (place / "file").read_text() == "mine"
    assert sorted(path.name for path in place.iterdir()) == ["circle", "dangling", "file", "here"]


def test_a_current_directory_that_was_deleted_is_one_line(place):
    os.rmdir(place / "here")
    assert "No such file or directory" in refusal("out")
    assert "No such file or directory" in refusal(place / "out")


def test_a_mount_point_can_be_written_to_and_not_replaced(place, monkeypatch):
    (place / "disk").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda self: self == place / "disk")
    assert "found a mount point" in refusal(place / "disk")
    assert output_directory(place / "disk", is_renamed=False) == place / "disk"
    output_directory(place / "disk" / "data")


def test_a_place_without_the_right_to_write_is_one_line(place, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", refuse)
        expected = f"made and written to, found Permission denied: {place}; choose another"
        assert expected in refusal(place / "out" / "a")
        expected = "that can be written to, found Permission denied: .*; choose another XDG_"
        with pytest.raises(OutputError, match=expected):
            writable_directory(place / "out", flag="XDG_CACHE_HOME")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: path != place / "old")
        (place / "old").mkdir()
        assert "found a directory without permission to write" in refusal(place / "old")
        patch.setattr(os, "access", lambda path, mode: path != place)
        assert f"without permission to write: {place};" in refusal(place / "old")
        assert output_directory(place / "old", is_renamed=False) == place / "old"
    assert not (place / "out").exists()


def test_what_is_read_and_what_is_written_are_apart(place):
    out = fill(place / "out", manifest__json=MARKER.content())
    corpus = fill(out / "corpus", text__txt="mine")
    options = {"marker": MARKER, "overwrite": True}
    (place / "link").symlink_to(corpus)
    for path in (corpus, corpus / "text.txt", place / "link", "../out/corpus", out):
        for kind in ("inputs", "kept"):
            assert f"found {path} in {out}" in refusal(out, **options, **{kind: [path]})
    inside = corpus / "made"
    assert f"found {inside} in {corpus}" in refusal(inside, inputs=[corpus])
    assert output_directory(inside, kept=[corpus]) == inside
    assert output_directory(inside, inputs=[corpus / "text.txt"]) == inside
    # Names of nothing here may be those of the Hub.
    output_directory(place / "gpt2", inputs=["../gpt2", None, "a" * 300], kept=[None])


def test_what_is_read_is_found_under_another_name_as_well(place, monkeypatch):
    out = fill(place / "out", manifest__json=MARKER.content())
    fill(out / "corpus", text__txt="mine")
    same = place / "same"  # stands for a second mount of the directory
    same.symlink_to(out)
    monkeypatch.setattr(Path, "resolve", lambda self, strict=False: Path(os.path.abspath(self)))
    line = refusal(out, marker=MARKER, overwrite=True, inputs=[same / "corpus"])
    assert f"found {same / 'corpus'} in {out}" in line


def test_a_cache_of_downloads_is_not_deleted(place, monkeypatch):
    out = fill(place / "out", manifest__json=MARKER.content())
    fill(out / "cache")
    monkeypatch.setenv("HF_HOME", str(out / "cache"))
    assert "out/cache in" in refusal(out, marker=MARKER, overwrite=True)


def test_a_directory_is_made_by_one_command_at_a_time(place):
    program = "import sys; from modeling_gpt2scratch.common.output_directory import making\n"
    program += "from pathlib import Path\nwith making(Path(sys.argv[1])): print('made')"
    command = [sys.executable, "-c", program, str(place / "out")]
    with claimed(place / "out"):
        second = subprocess.run(command, capture_output=True, text=True)
        assert second.returncode == 1
        assert second.stderr.splitlines()[-1].endswith(
            f"expected no other command that makes {place / 'out'}, found one under way; wait for "
            f"it, or choose another"
        )
    assert subprocess.run(command, capture_output=True, text=True).stdout == "made\n"
    assert sorted(path.name for path in place.iterdir()) == ["here", "out"]


def test_a_place_that_was_taken_meanwhile_is_not_replaced(place):
    out = place / "out"
    with pytest.raises(OutputError, match="found other content"), making(out, marker=MARKER):
        fill(out, thesis__txt="years of work")
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    with pytest.raises(OutputError, match="name a new directory"):
        require_free(out, marker=None, overwrite=False)


@pytest.mark.parametrize(
    ("name", "marker", "kind"),
    [
        ("run/a", Marker("train_config.json", "gpt2scratch-run"), "run"),
        ("data", Marker("manifest.json", "gpt2scratch-adopted-shards", 9), "data directory"),
        ("a/b/c", Marker("results.json", "gpt2scratch-comparison", 2), "comparison"),
        ("llm.c", outputs.CONVERTED_SHARDS, "conversion"),
        (".fineweb.preparing", None, "preparation"),
    ],
)
def test_what_holds_another_output_of_ours_is_not_replaced(place, name, marker, kind):
    out = fill(place / "out", manifest__json=MARKER.content())
    inner = fill(out / name, **{"checkpoint-1": "the work of days"})
    assert (marker is None) or output_directory(out, marker=MARKER, overwrite=True) == out
    if marker:
        (inner / marker.name).write_text(json.dumps(marker.content()))
    line = refusal(out, marker=MARKER, overwrite=True)
    assert line == f"expected no other {kind} in {out}, found {inner}; choose another --output_dir"
    # It may also come while a command that was accepted is at work.
    with pytest.raises(OutputError, match=f"found {inner}"):
        outputs.require_alone(out)
    rule = {"marker": MARKER, "overwrite": True}
    with pytest.raises(OutputError, match=f"found {inner}"), making(out, **rule):
        pass
    assert (inner / "checkpoint-1").exists() and MARKER.difference(out) is None


def test_a_run_that_begins_within_another_directory_is_not_deleted_with_it(place):
    from filelock import FileLock

    out = fill(place / "out", manifest__json=MARKER.content())
    (out / "run").mkdir()
    with FileLock(out / "run" / outputs.LOCK_NAME):
        assert f"expected no other run in {out}" in refusal(out, marker=MARKER, overwrite=True)
    assert output_directory(out, marker=MARKER, overwrite=True) == out


def test_every_marker_is_known_to_who_replaces_directories():
    from modeling_gpt2scratch.data.shards.manifest import DATA_MARKER
    from modeling_gpt2scratch.evaluation.results.results_json import MARKER as COMPARISON
    from modeling_gpt2scratch.training.configuration import RUN_MARKER

    ours = (DATA_MARKER, COMPARISON, RUN_MARKER, outputs.CONVERTED_MODEL, outputs.CONVERTED_SHARDS)
    assert {marker.name for marker in ours} == {*outputs.KINDS}
    assert all(marker.format.startswith(outputs.OWN_FORMATS) for marker in ours)


def test_a_directory_to_add_to_may_hold_anything_and_be_the_current_one(place):
    assert writable_directory(".", flag="--output_dir") == Path(".")
    assert writable_directory(place / "a" / "b", flag="--output_dir").is_dir()
    (place / "link").symlink_to(place / "a")
    assert writable_directory(place / "link", flag="--output_dir") == place / "a"
    (place / "file").touch()
    with pytest.raises(OutputError, match="that can be written to, found a file: "):
        writable_directory(place / "file" / "x", flag="--output_dir")
    writable_directory(place / "c", flag="--cache_dir", is_made=False)
    assert not (place / "c").exists()


def test_a_run_at_work_is_seen_by_many_at_a_time(place):
    from filelock import FileLock

    (place / "run").mkdir()
    assert not outputs.is_in_use(place / "run")
    with FileLock(place / "run" / outputs.LOCK_NAME):
        assert outputs.is_in_use(place / "run")
    assert not outputs.is_in_use(place / "run")
    with open(place / "run" / outputs.LOCK_NAME) as other:
        import fcntl

        fcntl.flock(other, fcntl.LOCK_SH)
        assert not outputs.is_in_use(place / "run")
