"""The one line in which a program ends."""

import pytest

from modeling_gpt2scratch.common.errors import SourceError, ending_in_one_line, in_words, located


def test_no_name_of_a_file_or_tensor_moves_the_cursor():
    escape = "\x1b]0;owned\x07"
    error = OSError(2, "No such file or directory", f"a{escape}b")
    for line in (in_words(error), in_words(ValueError(f"expected no {escape}\nhere"))):
        assert line.isprintable() and "owned" in line


def test_a_system_error_names_its_file_and_one_without_speaks_for_itself():
    error = OSError(28, "No space left on device", "runs/x")
    assert in_words(error) == "runs/x: expected to read or write it, found No space left on device"
    assert in_words(KeyError("x")) == "KeyError: 'x'" and in_words(ValueError("no x")) == "no x"
    assert in_words(OSError("runs/x: the disk is full")) == "runs/x: the disk is full"
    assert in_words(OSError(28, "No space left on device")) == "[Errno 28] No space left on device"


@pytest.mark.parametrize("error", [SourceError("a.txt: empty"), OSError("a.txt: empty")])
def test_what_the_user_can_mend_ends_a_command_in_one_line(error):
    with pytest.raises(SystemExit) as ended, ending_in_one_line("gpt2scratch plot"):
        raise error
    assert ended.value.code == "gpt2scratch plot: error: a.txt: empty"


def test_a_command_may_name_more_kinds_and_say_where_the_cause_stands():
    with (
        pytest.raises(SystemExit) as ended,
        ending_in_one_line("p.py", ValueError, placed="in a.yaml: {}".format),
    ):
        raise ValueError("no number")
    assert ended.value.code == "p.py: error: in a.yaml: no number"


@pytest.mark.parametrize("kind", [BrokenPipeError, ValueError, KeyboardInterrupt])
def test_what_nobody_can_mend_is_passed_on(kind):
    with pytest.raises(kind), ending_in_one_line("gpt2scratch plot"):
        raise kind


def test_an_error_of_the_system_without_a_file_gets_the_name_of_the_place():
    full = OSError(28, "No space left on device")
    assert in_words(located(full, "runs/x")) == (
        "runs/x: expected to read or write it, found No space left on device"
    )
    assert isinstance(located(OSError(13, "Permission denied"), "x"), PermissionError)
    for error in (OSError(28, "No space left on device", "runs/y"), OSError("a whole sentence")):
        assert located(error, "runs/x") is error
