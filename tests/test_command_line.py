"""Recipes and flags."""

from dataclasses import dataclass
from typing import Literal

import pytest

from modeling_gpt2scratch.command_line import argument, check_numbers, parse_config


@dataclass(frozen=True)
class Config:
    rate: float = argument("a float", default=1.0)
    steps: int | None = argument("an integer", default=None)
    kind: Literal["a", "b"] = argument("a choice", default="a")
    fast: bool = argument("a switch", default=False)

    def __post_init__(self):
        check_numbers(self, positive=("rate",), non_negative=("steps",))


def parse(tmp_path, recipe: str, *flags: str) -> Config:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    return parse_config(Config, description=None, argv=[str(path), *flags])


def refusal(capsys, tmp_path, recipe: str, *flags: str) -> str:
    """The error line; the exit code must be 2."""
    with pytest.raises(SystemExit) as error:
        parse(tmp_path, recipe, *flags)
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_recipe_is_read_with_the_types_of_the_dataclass(tmp_path):
    # YAML 1.1 reads 3e-4 as a string and 1_000 as a number.
    assert parse(tmp_path, "rate: 3e-4\nsteps: 1_000\nkind: b\nfast: true\n") == Config(
        rate=3e-4, steps=1000, kind="b", fast=True
    )


def test_flags_override_the_recipe_and_need_none(tmp_path):
    assert parse(tmp_path, "rate: 2.0\nsteps: 5\n", "--steps", "7", "--fast").steps == 7
    assert parse_config(Config, description=None, argv=["--rate", "2"]) == Config(rate=2.0)


def test_an_empty_entry_leaves_the_default(tmp_path):
    assert parse(tmp_path, "steps:\n") == Config()


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
        ("stebs: 3\n", (), "unknown key 'stebs'; did you mean 'steps'?"),
        ("zzz: 3\n", (), "unknown key 'zzz'; known: rate, steps, kind, fast"),
        ("rate: fast\n", (), "invalid float value: 'fast'"),
        ("steps: 1.5\n", (), "invalid int value: '1.5'"),
        ("kind: c\n", (), "invalid choice: 'c'"),
        ("rate: nan\n", (), "expected --rate above 0, found nan"),
        ("steps: -1\n", (), "expected --steps of at least 0, found -1"),
        ("- 3\n", (), "expected `key: value` lines, found list"),
        ("a: [\n", (), "expected a YAML recipe"),
        ("", ("--step", "3"), "expected `key: value` lines, found NoneType"),
        ("rate: 1\n", ("--step", "3"), "--step"),
    ],
)
def test_a_bad_recipe_or_flag_is_one_line_and_exit_code_2(tmp_path, capsys, recipe, flags, message):
    assert message in refusal(capsys, tmp_path, recipe, *flags)


def test_a_missing_recipe_is_one_line_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as error:
        parse_config(Config, description=None, argv=["nowhere.yaml"])
    assert error.value.code == 2
    assert "nowhere.yaml: expected a YAML recipe" in capsys.readouterr().err
