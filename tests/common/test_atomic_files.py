"""Files that are replaced in one step."""

import pytest

from modeling_gpt2scratch.common.atomic_files import write_file, write_json
from modeling_gpt2scratch.common.checksums import checksum, damage, write_checksums
from modeling_gpt2scratch.common.errors import one_line
from modeling_gpt2scratch.common.json_lines import append_json_line


def test_a_link_under_the_temporary_name_leads_nowhere(tmp_path):
    victim = tmp_path / "bashrc"
    victim.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".report.md.partial").symlink_to(victim)
    write_file(tmp_path / "run" / "report.md", b"a report")
    assert victim.read_text() == "mine"
    assert (tmp_path / "run" / "report.md").read_bytes() == b"a report"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["report.md"]


def test_a_log_that_is_a_link_is_not_followed(tmp_path):
    victim = tmp_path / "notes"
    victim.write_text("mine, unfinished")
    (tmp_path / "events.jsonl").symlink_to(victim)
    with pytest.raises(OSError):
        append_json_line(tmp_path / "events.jsonl", {"step": 1})
    assert victim.read_text() == "mine, unfinished"


@pytest.mark.parametrize("name", ["/dev/zero", "../outside", "folder"])
def test_checksums_of_what_is_no_file_of_the_directory_are_damage(tmp_path, name):
    directory = tmp_path / "checkpoint"
    (directory / "folder").mkdir(parents=True)
    (tmp_path / "outside").write_text("a")
    (directory / "a").write_text("a")
    write_checksums(directory, {"a": checksum(directory / "a"), name: {"size": 0, "sha256": ""}})
    (problem,) = damage(directory)
    assert name in problem and "expected" in problem


def test_what_moves_the_cursor_is_not_in_a_message():
    assert (
        one_line(ValueError("a\x1b]0;title\x07\x9b2J b\tc")) == "a\ufffd]0;title\ufffd\ufffd2J b c"
    )


def test_numbers_of_json_are_written_as_they_are(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1}, indent=None)
    assert (tmp_path / "a.json").read_text() == '{"a": 1}\n'
