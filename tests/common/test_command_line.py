"""Recipes and flags."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest

from modeling_gpt2scratch.common.command_line import (
    GIVEN,
    ArgumentError,
    argument,
    check_numbers,
    from_keywords,
    parse_config,
    with_place,
)


@dataclass(frozen=True)
class Config:
    rate: float = argument("a float", default=1.0)
    steps: int | None = argument("an integer", default=None)
    warmup_steps: int = argument("another", default=0)
    kind: Literal["a", "b", "no"] = argument("a choice", default="a")
    b_limit: int | None = argument("only for b", default=None)
    fast: bool = argument("a switch", default=False)
    careful: bool = argument("a switch that is on", default=True)
    names: list[str] = field(default_factory=list, metadata={"help": "a list"})
    name_limit: int | None = argument("only for two names", default=None)
    words: list[str] = argument("a list with a default", default_factory=lambda: ["one"])
    step_limit: int | None = argument("only beside steps", default=None)
    file: str | None = argument("a file that must be there", default=None)

    only_until: ClassVar = {"name_limit": ("names", "rate")}
    only_with: ClassVar = {
        "b_limit": ("kind", ("b",)),
        "name_limit": ("names", ("x", "y")),
        "step_limit": ("steps", GIVEN),
    }

    def __post_init__(self):
        check_numbers(self, positive=("rate",), non_negative=("steps",))
        if self.steps is not None and self.warmup_steps > self.steps:
            problem = f"expected warmup_steps of at most steps, found {self.warmup_steps}"
            raise ArgumentError("warmup_steps", "steps", problem=problem)
        if self.rate == 13:
            raise ValueError("expected another number than 13")
        if self.file is not None:
            os.stat(self.file)


def parse(tmp_path, recipe: str, *flags: str) -> Config:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    return parse_config(Config, description=None, argv=[str(path), *flags])


def refusal(capsys, tmp_path, recipe: str, *flags: str) -> str:
    """The error line, without the directory of the recipe; the exit code must be 2."""
    with pytest.raises(SystemExit) as error:
        parse(tmp_path, recipe, *flags)
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.partition("error: ")[2].replace(f"{tmp_path}/", "")


def test_a_recipe_is_read_with_the_types_of_the_dataclass(tmp_path):
    recipe = "rate: 3e-4\nsteps: 1_000\nkind: b\nfast: true\ncareful: no\nnames: [x, no]\n"
    assert parse(tmp_path, recipe) == Config(
        rate=3e-4, steps=1000, kind="b", fast=True, careful=False, names=["x", "no"]
    )


def test_what_a_recipe_says_for_another_value_no_longer_holds_once_that_has_changed(
    tmp_path, capsys
):
    recipe = "names: [x]\nname_limit: 3\n"
    assert parse(tmp_path, recipe).name_limit == 3
    assert parse(tmp_path, recipe, "--steps", "1").name_limit == 3
    assert parse(tmp_path, recipe, "--names", "x", "y").name_limit is None
    assert parse(tmp_path, recipe, "--rate", "2", "--name_limit", "4").name_limit == 4
    capsys.readouterr()
    parse(tmp_path, recipe, "--names", "x", "y")
    parse(tmp_path, recipe, "--names", "x", "y", "--rate", "2")
    notes = capsys.readouterr().err
    assert "name_limit is ignored, because --names was given after it" in notes
    assert "name_limit is ignored, because --names and --rate were given after it" in notes
    second = tmp_path / "second.yaml"
    second.write_text("names: [y]\n")
    paths = [str(tmp_path / "recipe.yaml"), str(second)]
    assert parse_config(Config, description=None, argv=paths).name_limit is None
    assert parse_config(Config, description=None, argv=paths[::-1]).name_limit == 3


def test_a_recipe_that_is_not_there_is_told_from_its_neighbours(tmp_path, capsys):
    (tmp_path / "small.yaml").write_text("rate: 1\n")
    for name, hint in (("small.yml", "did you mean "), ("else", "you are in ")):
        with pytest.raises(SystemExit):
            parse_config(Config, description=None, argv=[str(tmp_path / name)])
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{name}: expected a YAML recipe, found no file; {hint}" in line
        assert ("small.yaml?" in line) == (name == "small.yml")


def test_a_choice_called_no_is_no_false(tmp_path):
    assert parse(tmp_path, "kind: no\n").kind == "no"


def test_flags_override_the_recipe_and_need_none(tmp_path):
    assert parse(tmp_path, "rate: 2.0\nsteps: 5\n", "--steps", "7", "--fast").steps == 7
    assert not parse(tmp_path, "careful: true\n", "--no_careful").careful
    assert parse_config(Config, description=None, argv=["--rate", "2"]) == Config(rate=2.0)


def test_a_bad_value_that_is_overridden_is_no_matter(tmp_path):
    assert parse(tmp_path, "steps: many\n", "--steps=3").steps == 3


def test_later_recipes_override_earlier_ones(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("rate: 2\nsteps: 5\nnames: [x]\n")
    second.write_text("steps: 6\nnames: []\n")
    argv = [str(first), str(second), str(second), "--fast"]
    assert parse_config(Config, description=None, argv=argv) == Config(rate=2, steps=6, fast=True)


def test_an_empty_entry_leaves_the_default_whatever_an_earlier_recipe_says(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("rate: 2\nsteps: 5\n")
    second.write_text("steps: null\n")
    argv = [str(first), str(second)]
    assert parse_config(Config, description=None, argv=argv) == Config(rate=2)
    assert parse(tmp_path, "steps:\nrate: null\nnames: []\nkind: ~\n") == Config()


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
        ("stebs: 3\n", (), "recipe.yaml: unknown key stebs; did you mean steps?"),
        ("zzz: 3\n", (), "recipe.yaml: unknown key zzz; known: rate, steps, warmup_steps, kind, "),
        ("rate: fast\n", (), "recipe.yaml: rate: expected a number, found 'fast'"),
        ("steps: many\n", (), "recipe.yaml: steps: expected a whole number, found 'many'"),
        ("steps: 1.5\n", (), "recipe.yaml: steps: expected a whole number, found '1.5'"),
        ("steps: true\n", (), "recipe.yaml: steps: expected a whole number, found 'true'"),
        ("fast: 3\n", (), "recipe.yaml: fast: expected true or false, found '3'"),
        ("kind: it's\n", (), 'recipe.yaml: kind: expected one of a, b, no, found "it\'s"'),
        ("kind: c\n", (), "recipe.yaml: kind: expected one of a, b, no, found 'c'"),
        ("rate: nan\n", (), "recipe.yaml: rate: expected a number above 0, found nan"),
        ("rate: -.inf\n", (), "recipe.yaml: rate: expected a number, found '-.inf'"),
        ("rate: -inf\n", (), "recipe.yaml: rate: expected a number above 0, found -inf"),
        ("steps: -1\n", (), "recipe.yaml: steps: expected a number of at least 0, found -1"),
        ("steps: [1, 2]\n", (), "recipe.yaml: steps: expected one value, found a list of 2"),
        ("steps: []\n", (), "recipe.yaml: steps: expected one value, found a list of 0"),
        ("steps: {a: 1}\n", (), "recipe.yaml: steps: expected a value, found `key: value` lines"),
        ("names: x\n", (), "recipe.yaml: names: expected a list, found 'x'; write [x]"),
        (
            "names: [x, --steps=3]\n",
            (),
            "recipe.yaml: names: expected values, found '--steps=3'; a",
        ),
        ("names: [&a x, *a]\n", (), "recipe.yaml: expected a YAML recipe, found *a in line 1; wri"),
        ("steps:\n\t3\n", (), "; indent with spaces"),
        ("names: [[x]]\n", (), "recipe.yaml: names: expected a list of single values, found"),
        ("rate: 1\nrate: 2\n", (), "recipe.yaml: expected a YAML recipe, found the key 'rate' aga"),
        ("- 3\n", (), "recipe.yaml: expected `key: value` lines, found a list"),
        ("3\n", (), "recipe.yaml: expected `key: value` lines, found a single value"),
        ("a: [\n", (), "recipe.yaml: expected a YAML recipe"),
        ("", ("--steps", "3"), "recipe.yaml: expected `key: value` lines, found nothing"),
        ("rate: 1\n", ("--stebs", "3"), "unknown flag --stebs; did you mean --steps?"),
        ("rate: 1\n", ("--zzz=3",), "unknown flag --zzz; known: rate, "),
        ("rate: 1\n", ("--step", "3"), "unknown flag --step; did you mean --steps?"),
        ("rate: 1\n", ("--fast", "x.yaml"), "--fast: expected true or false, found 'x.yaml'"),
        ("rate: 1\n", ("--steps", "3", "x.yaml"), "expected recipes before all flags and one"),
        ("rate: 1\n", ("--rate", "0"), "--rate: expected a number above 0, found 0.0"),
        ("steps: 1\n", ("--rate", "fast"), "--rate: expected a number, found 'fast'"),
        (
            "steps: 1\n",
            ("--warmup-steps", "x"),
            "--warmup_steps: expected a whole number, found 'x'",
        ),
        ("steps: 1\n", ("--rate",), "--rate: expected one argument"),
        ("rate: 13\n", (), "expected another number than 13"),
        (
            *("steps: 1\nwarmup_steps: 2\n", ()),
            "recipe.yaml: warmup_steps, steps: expected warmup_steps of at most steps, found 2",
        ),
        ("steps: 1\n", ("--warmup-steps=2",), "--warmup_steps; recipe.yaml: steps: expected"),
        ("warmup_steps: 2\n", ("--steps", "1"), "recipe.yaml: warmup_steps; --steps: expected"),
        ("steps: 1\n", ("--rate", "2", "--warmup_steps", "2"), "--warmup_steps; recipe.yaml: ste"),
        (
            *("b_limit: 1\n", ()),
            "recipe.yaml: b_limit; kind (default): expected b_limit only with kind b, found a; "
            "leave b_limit out",
        ),
        ("kind: a\n", ("--b_limit", "3"), "--b_limit; recipe.yaml: kind: expected b_limit only"),
        ("kind: a\nb_limit: 3\n", (), "recipe.yaml: b_limit, kind: expected b_limit only"),
        ("names: [z]\nname_limit: 3\n", (), "only with names x or y, found ['z']; leave"),
        ("name_limit: 3\n", (), "names (default): expected name_limit only with names x or y, fou"),
    ],
)
def test_a_bad_recipe_or_flag_is_one_line_that_says_where(tmp_path, capsys, recipe, flags, message):
    assert message in refusal(capsys, tmp_path, recipe, *flags)


def test_a_flag_that_switches_something_off_takes_what_belongs_to_it_along(tmp_path):
    assert parse(tmp_path, "kind: b\nb_limit: 3\n", "--kind", "a").b_limit == 3
    assert parse(tmp_path, "kind: b\n", "--b_limit", "3").b_limit == 3
    assert parse(tmp_path, "names: [z, y]\nname_limit: 3\n").name_limit == 3


def test_a_missing_recipe_is_one_line_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as error:
        parse_config(Config, description=None, argv=["nowhere.yaml"])
    assert error.value.code == 2
    assert "nowhere.yaml: expected a YAML recipe" in capsys.readouterr().err


def test_one_process_of_a_machine_complains_for_all(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as error:
        parse(tmp_path, "rate: 0\n")
    assert error.value.code == 2 and capsys.readouterr().err == ""


def test_an_error_without_a_command_line_names_the_flags():
    with pytest.raises(ArgumentError, match="^--warmup_steps, --steps: expected warmup_steps of"):
        Config(warmup_steps=2, steps=1)


def test_what_is_no_recipe_is_one_line_and_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    contents = {
        "binary.yaml": (bytes(range(256)), "'utf-8' codec can't decode byte"),
        "nul.yaml": (b"rate: 1\0", "unacceptable character"),
        "deep.yaml": (b"rate: " + b"[" * 100_000, "entries in entries, deeper than"),
        "deep_maps.yaml": (b"rate: " + b"{a: " * 100_000, "entries in entries, deeper than"),
        "itself.yaml": (b"names: &names [*names]\n", "write the value itself"),
        "large.yaml": (b"#" * (2**20 + 1), "1,048,577 bytes of something"),
        "tag.yaml": (b"rate: !!python/object/apply:os.system [ls]\n", "expected one value"),
        "key.yaml": (b"? [a]\n: 1\n", "found unhashable key"),
    }
    for name, (content, _) in contents.items():
        (tmp_path / name).write_bytes(content)
    expected = {name: found for name, (_, found) in contents.items()}
    expected |= {
        "pipe.yaml": "found no file; name a file",
        "folder.yaml": "found a directory; name",
    }
    for name, found in expected.items():
        with pytest.raises(SystemExit) as error:
            parse_config(Config, description=None, argv=[str(tmp_path / name)])
        assert error.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{name}: " in line and found in line, line


def test_a_number_beyond_all_counts_is_refused_by_its_bound(tmp_path, capsys):
    assert "rate: expected a number below 2^63, found 1e+300" in refusal(
        capsys, tmp_path, "rate: 1e300\n"
    )
    assert "--steps: expected a number below 2^63, found 9223372036854775808" in refusal(
        capsys, tmp_path, "rate: 1\n", "--steps", str(2**63)
    )


def test_a_recipe_may_not_be_in_the_directory_that_it_makes(tmp_path, capsys):
    @dataclass(frozen=True)
    class Making(Config):
        output_dir: str = argument("to make", default=str(tmp_path / "out"))
        written: ClassVar = "output_dir"

    (tmp_path / "out").mkdir()
    for path in (tmp_path / "out" / "recipe.yaml", tmp_path / "recipe.yaml"):
        path.write_text("rate: 2\n")
    argv = [str(tmp_path / "recipe.yaml")]
    assert parse_config(Making, description=None, argv=argv).rate == 2
    with pytest.raises(SystemExit):
        parse_config(Making, description=None, argv=[*argv, str(tmp_path / "out" / "recipe.yaml")])
    assert f"found {tmp_path}/out/recipe.yaml in {tmp_path}/out;" in capsys.readouterr().err


def test_what_a_program_says_of_a_value_names_the_recipe_that_it_is_from(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("kind: b\nsteps: 7\n")
    parse_config(Config, description=None, argv=[str(recipe), "--steps", "9"])
    assert with_place("b: expected a, found b") == f"{recipe}: kind: b: expected a, found b"
    assert with_place("b/c: expected a, found b") == "b/c: expected a, found b"
    assert with_place("7: expected 9, found 7") == "7: expected 9, found 7"


def test_a_list_that_is_given_in_parts_is_one_list_in_place_of_its_default(tmp_path):
    recipe = "names: [x]\nwords: [two]\n"
    flags = ("--names", "y", "z", "--steps", "1", "--names", "w")
    assert parse(tmp_path, recipe, *flags).names == ["y", "z", "w"]
    assert parse(tmp_path, recipe).words == ["two"]
    assert parse(tmp_path, "rate: 1\n").words == ["one"]
    flags = ("--words", "three", "--words=four")
    assert parse(tmp_path, recipe, *flags).words == ["three", "four"]
    assert parse(tmp_path, "rate: 1\n").words == ["one"]


@pytest.mark.parametrize("flags", [("--file", ""), ("--file=",), ("--names", "x", "")])
def test_a_text_of_nothing_is_no_value(tmp_path, capsys, flags):
    name = flags[0].removesuffix("=")
    expected = f"{name}: expected a text, found none; leave the flag out"
    assert refusal(capsys, tmp_path, "rate: 1\n", *flags) == expected


@pytest.mark.parametrize("flags", [("--file",), ("--names", "x")])
def test_a_text_that_is_too_long_to_be_a_name_is_not_repeated(tmp_path, capsys, flags):
    line = refusal(capsys, tmp_path, "rate: 1\n", *flags, "a" * 10_001)
    assert line == f"{flags[0]}: expected at most 10,000 characters, found 10,001"


def test_a_file_that_cannot_be_looked_at_is_one_line(tmp_path, capsys):
    name = "x" * 300
    line = refusal(capsys, tmp_path, "rate: 1\n", "--file", name)
    assert line == f"{name}: expected to read or write it, found File name too long"


def test_an_argument_without_effect_is_refused(tmp_path, capsys):
    flags = ("--step_limit", "3")
    line = refusal(capsys, tmp_path, "rate: 1\n", *flags)
    assert line == (
        "--step_limit; steps (default): expected step_limit only with steps, found none; leave "
        "step_limit out"
    )
    assert parse(tmp_path, "rate: 1\n", *flags, "--steps", "1").step_limit == 3


# From a program


def test_a_programs_values_become_those_of_the_command_line():
    config = from_keywords(
        Config,
        {
            **{"rate": 3, "steps": np.int64(4), "step_limit": 5, "file": Path(__file__)},
            **{"names": np.str_("one"), "words": ("two", Path("three")), "fast": np.True_},
            "b_limit": None,  # as if it were not given, though kind is another
        },
    )
    assert config == Config(
        **{"rate": 3.0, "steps": 4, "step_limit": 5, "file": __file__},
        **{"names": ["one"], "words": ["two", "three"], "fast": True},
    )
    assert type(config.rate) is float and type(config.steps) is int


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": "3"}, "--rate: expected a number, found '3'"),
        ({"rate": True}, "--rate: expected a number, found True"),
        ({"steps": 1.5}, "--steps: expected a whole number, found 1.5"),
        ({"rate": None}, "--rate: expected a number, found None"),
        ({"rate": 10**400}, f"--rate: expected a number, found {10**400}"),
        ({"fast": "no"}, "--fast: expected True or False, found 'no'"),
        ({"kind": "c"}, "--kind: expected one of 'a', 'b', 'no', found 'c'"),
        ({"names": [3.5]}, "--names: expected a text, found 3.5"),
        ({"file": ""}, "--file: expected a text, found ''"),
        ({"file": "a" * 10_001}, "--file: expected at most 10,000 characters, found 10,001"),
        (
            {"step_limit": 3},
            "--step_limit, --steps: expected step_limit only with steps, found none; leave "
            "step_limit out",
        ),
    ],
)
def test_a_programs_value_of_another_type_or_without_effect_is_refused(arguments, message):
    with pytest.raises(ArgumentError) as refused:
        from_keywords(Config, arguments)
    assert str(refused.value) == message


def test_a_programs_argument_that_nobody_knows_has_a_hint():
    with pytest.raises(TypeError, match="unknown argument step; did you mean steps"):
        from_keywords(Config, {"step": 3})


def test_a_programs_argument_that_must_be_given_is_asked_for():
    @dataclass(frozen=True)
    class Needing:
        data: str
        output_dir: str
        seed: int = 0

    expected = "expected data and output_dir, found no output_dir; add output_dir="
    with pytest.raises(TypeError, match=expected):
        from_keywords(Needing, {"data": "d"})
