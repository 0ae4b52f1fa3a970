"""What is said of a folder before its files are read."""

import pytest

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
