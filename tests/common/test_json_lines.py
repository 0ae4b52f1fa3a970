"""Logs of JSON lines: damaged ones are named and left out, and nothing that follows is lost."""

import errno
import json
import os

import pytest

from modeling_gpt2scratch.common.json_lines import append_json_line, read_json_lines

ROWS = [{"step": 1, "loss": 5.0}, {"step": 2, "text": "é\u2028"}, {"step": 3, "loss": None}]
WHOLE = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(WHOLE)
    return path


def read(path, **options):
    """The rows, and what was said about others."""
    said = []
    return read_json_lines(path, warn=said.append, **options), said


def test_a_file_is_read_line_by_line_and_one_that_is_not_there_is_empty(log, tmp_path):
    assert read(log) == (ROWS, [])
    assert read(tmp_path / "nowhere.jsonl") == ([], [])
    log.write_bytes(b"\n" + WHOLE.replace(b"\n", b"\r\n\n"))  # as somebody's editor left it
    assert read(log) == (ROWS, [])


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"step": 4, "lo', '{"step": 4, "lo'),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"\0" * 99, "\ufffd" * 40 + " ..."),
        (b"[1, 2]", "[1, 2]"),
        (b"null", "null"),
        (b"[" * 100_000, "[" * 40 + " ..."),
        (b"9" * 5_000, "9" * 40 + " ..."),
        (b"x\x1b[31m", "x\ufffd[31m"),
        (b'{"step": 4, "step": 5}', '{"step": 4, "step": 5}'),
    ],
)
def test_a_bad_line_is_named_by_file_and_number_and_left_out(log, line, found):
    first, *rest = WHOLE.splitlines(keepends=True)
    log.write_bytes(b"".join([first, line, b"\n", *rest]))
    rows, said = read(log)
    assert rows == ROWS
    assert said == [f"{log}:2: expected a JSON object, found {found}; it is left out"]


def test_a_line_without_the_number_that_is_needed_is_a_bad_one(log):
    with open(log, "ab") as file:
        file.write(b'{"step": "4"}\n{"step": true}\n{"step": -1}\n{"stop": 4}\n{"step": 4.0}\n')
    rows, said = read(log, rising="step")
    assert rows == ROWS
    assert said[:2] == [
        f'{log}:4: expected a JSON object, found step "4"; it is left out',
        f"{log}:5: expected a JSON object, found step true; it is left out",
    ]
    assert said[3:] == [f"{log}: 2 more lines like these are left out"]
    assert len(read(log)[0]) == 8


@pytest.mark.parametrize(
    ("steps", "kept", "said"),
    [
        ([1, 3, 2, 4], [1, 2, 4], [(2, 3, 2)]),  # two that changed places: one of them goes
        ([1, 2, 3, 1, 2, 3], [1, 2, 3], [(4, 1, 3), (5, 2, 3), (6, 3, 3)]),  # all of it twice
        ([1, 20, 90040, 60, 80], [1, 20, 60, 80], [(3, 90040, 60)]),  # one damaged digit
        ([90040, 20, 40], [20, 40], [(1, 90040, 20)]),
        ([1, 2, 2, 3], [1, 2, 3], [(3, 2, 2)]),
    ],
)
def test_lines_whose_numbers_do_not_rise_are_left_out_and_no_others(log, steps, kept, said):
    log.write_text("".join(json.dumps({"step": step}) + "\n" for step in steps))
    rows, lines = read(log, rising="step")
    assert rows == [{"step": step} for step in kept]
    assert lines == [
        f"{log}:{number}: expected a JSON object, found step {step} beside step {other}; it is "
        f"left out"
        for number, step, other in said
    ]


@pytest.mark.parametrize(
    "value",
    [
        *('"loss": "2.5"', '"loss": [2.5]', '"sample": 2.5'),
        *(f'"loss": {10**400}', '"loss": NaN', '"loss": -Infinity', '"loss": Infinity'),
    ],
)
def test_a_text_in_place_of_a_number_and_a_number_that_no_float_holds_are_bad_lines(log, value):
    with open(log, "ab") as file:
        file.write(f'{{"step": 4, {value}}}\n'.encode())
        file.write(b'{"step": 5, "loss": null, "sample": "a"}\n')
    rows, said = read(log, texts=("sample", "text"))
    assert rows == [*ROWS, {"step": 5, "loss": None, "sample": "a"}]
    found = value.replace('"', "", 2).replace(":", "", 1)
    found = found if len(found) <= 40 else f"{found[:40]} ..."
    assert said == [f"{log}:4: expected a JSON object, found {found}; it is left out"]


@pytest.mark.parametrize("end", range(1, len(WHOLE)))
def test_a_log_that_was_cut_anywhere_keeps_its_whole_lines_and_takes_the_next(log, end, capsys):
    log.write_bytes(WHOLE[:end])
    n_whole = sum(WHOLE[: end + 1].startswith(WHOLE[: i + 1]) for i in _ends())
    rows, said = read(log)
    assert rows == ROWS[:n_whole]
    is_cut = end not in (*_ends(), *(i + 1 for i in _ends()))
    assert len(said) == is_cut
    if is_cut:
        assert said[0].startswith(f"{log}:{n_whole + 1}: expected a JSON object, found {{")
        assert said[0].endswith(", the cut end; it is left out")
    append_json_line(log, {"step": 9})
    warnings = capsys.readouterr().err.splitlines()
    assert read(log) == ([*ROWS[:n_whole], {"step": 9}], [])
    assert len(warnings) == is_cut
    if is_cut:
        place = f"{log}:{n_whole + 1}"
        assert warnings[0].startswith(f"warning: {place}: expected a complete line, found {{")
        assert warnings[0].endswith("the line is removed")


def _ends() -> list[int]:
    """Where the line breaks are."""
    return [index for index, byte in enumerate(WHOLE) if byte == ord("\n")]


def test_a_full_disk_leaves_the_log_as_it_was(log, monkeypatch):
    write = os.write

    def write_a_little(descriptor, data):
        if len(data) < 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:7])

    monkeypatch.setattr(os, "write", write_a_little)
    with pytest.raises(OSError, match="No space left") as full:
        append_json_line(log, {"step": 4, "loss": 4.0})
    assert full.value.filename == str(log)
    monkeypatch.undo()
    assert log.read_bytes() == WHOLE
    append_json_line(log, {"step": 4})
    assert read(log) == ([*ROWS, {"step": 4}], [])


def test_what_is_no_file_is_one_line_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("pipe.jsonl", "folder.jsonl"):
        with pytest.raises(OSError, match=f"{name}: expected a file of JSON lines"):
            read_json_lines(tmp_path / name)
