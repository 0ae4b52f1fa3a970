"""What is said of folders and globs before their files are read."""

import pytest

from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.data.sources.local_files import find_files


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("train.jsonl", "test.jsonl"), "test.jsonl"),
        (("data/train-0.parquet", "data/validation-0.parquet"), "data/validation-0.parquet"),
        (("a.txt", "heldout_b.txt"), "heldout_b.txt"),
        (("train/a.txt", "tests/a.txt"), "tests/a.txt"),
        (("train/a.txt", "train/test.txt"), "train/test.txt"),
        (("test/train.txt", "a.txt"), None),  # the file's own name decides
        (("a.txt", "holdout.txt"), "holdout.txt"),
        (("a.txt", "holdOut.txt"), "holdOut.txt"),
        (("a.txt", "validate.txt"), "validate.txt"),
        (("a.txt", "fwVal_0.txt"), "fwVal_0.txt"),
        (("a.txt", "TESTset.txt"), "TESTset.txt"),
        (("test.txt", "dev.txt"), None),  # all of what there is
        (("train.txt", "latest.txt", "evaluated.txt"), None),
    ],
)
def test_a_folder_of_several_splits_says_that_all_of_them_are_read(tmp_path, capsys, names, said):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"text")
    assert len(find_files(str(tmp_path))) == len(names)
    warning = capsys.readouterr().err
    expected = f"such as {said}; to leave them out, name the others, by their folder or a glob\n"
    assert warning.endswith(expected) if said else not warning


def refusal_of(pattern):
    with pytest.raises(SourceError) as caught:
        find_files(str(pattern))
    return str(caught.value)


def test_a_glob_that_takes_a_bracket_for_its_own_says_how_to_write_one(tmp_path):
    (tmp_path / "a [1]").mkdir()
    (tmp_path / "a [1]" / "a.txt").write_text("one")
    pattern = tmp_path / "a [1]" / "*.txt"
    problem = "expected a file or glob, found nothing there; write [[] for a bracket in a name"
    assert refusal_of(pattern) == f"{pattern}: {problem}"
    [file] = find_files(str(tmp_path / "a [[]1]" / "*.txt"))
    assert file.path == tmp_path / "a [1]" / "a.txt"


def test_a_glob_that_finds_a_folder_says_what_to_name(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "more").mkdir()
    assert refusal_of(tmp_path / "**").endswith(
        "expected a regular file, found a directory; name the folder itself, or end the glob in "
        "*.txt"
    )
