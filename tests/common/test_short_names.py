import pytest

from modeling_gpt2scratch.common.short_names import short_names


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["runs/mine"], ["mine"]),
        (["runs/mine", "runs/mine/checkpoint-600", "gpt2"], ["mine", "checkpoint-600", "gpt2"]),
        (["runs/a/final", "runs/b/final", "runs/c"], ["a/final", "b/final", "c"]),
        (["x/1/a/final", "x/2/a/final"], ["1/a/final", "2/a/final"]),
        (["gpt2", "openai-community/gpt2"], ["gpt2", "openai-community/gpt2"]),
        (["/a/x/y", "/b/x/y", "/b/y"], ["a/x/y", "b/x/y", "b/y"]),
        (["a", "./a", "a/"], ["a", "./a", "a/"]),
        ([".", "..", "/"], [".", "..", "/"]),
    ],
)
def test_names_have_as_many_parts_as_tell_them_apart(names, expected):
    assert short_names(names) == dict(zip(names, expected, strict=True))
