"""Arguments of the training script: what is refused before anything is built, and by which name."""

import dataclasses
import os
from pathlib import Path

import pytest
from support.tiny_models import tiny_model

from modeling_gpt2scratch.common.command_line import ArgumentError, parse_config
from modeling_gpt2scratch.training.configuration import TrainConfig

SMALL = {"model": "tiny", "total_batch_tokens": 2048, "max_steps": 100}


def config_of(tmp_path, **changes) -> TrainConfig:
    values = {"data": str(tmp_path), "output_dir": str(tmp_path / "run")} | SMALL | changes
    return TrainConfig(**values)


def recipe_file(tmp_path, recipe: dict) -> Path:
    """The path of a recipe of a small run with these entries."""
    path = tmp_path / "x.yaml"
    entries = {"data": tmp_path, "output_dir": tmp_path / "run"} | SMALL | recipe
    path.write_text("".join(f"{key}: {value}\n" for key, value in entries.items()))
    return path


def parsed(tmp_path, recipe: dict, *flags: str) -> TrainConfig:
    """What the command line makes of a recipe with these entries and the flags."""
    argv = [str(recipe_file(tmp_path, recipe)), *flags]
    return parse_config(TrainConfig, description=None, argv=argv)


def refusal(tmp_path, capsys, recipe: dict, *flags: str) -> str:
    """What the command line answers to a recipe of these entries."""
    with pytest.raises(SystemExit) as error:
        parsed(tmp_path, recipe, *flags)
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.partition("error: ")[2].replace(f"{tmp_path}/", "")


def test_what_is_not_given_is_filled_in_and_what_is_accepted_stays(tmp_path):
    config = config_of(tmp_path, optimizer="muon", schedule="wsd", micro_batch_size="auto")
    assert (config.n_layer, config.n_embd, config.sequence_length) == (4, 128, 256)
    assert (config.warmup_steps, config.decay_steps, config.micro_batch_size) == (4, 20, "auto")
    assert config.muon_learning_rate == config.learning_rate == 6e-4
    again = TrainConfig(**dataclasses.asdict(config))
    assert again == config


@pytest.mark.parametrize(
    ("other", "own"),
    [
        *(("eval_interval", "eval_every"), ("eval_steps", "eval_every")),
        *(("save_steps", "save_every"), ("max_iters", "max_steps")),
        *(("num_iterations", "max_steps"), ("block_size", "n_positions")),
        *(("gradient_accumulation_steps", "total_batch_tokens"), ("dtype", "mixed_precision")),
        *(("resume_from_checkpoint", "resume"), ("overwrite_output_dir", "overwrite")),
        *(("dataset", "data"), ("wandb_run_name", "output_dir"), ("bs", "micro_batch_size")),
    ],
)
def test_other_programs_names_lead_to_ours(capsys, other, own):
    with pytest.raises(SystemExit):
        parse_config(
            TrainConfig,
            description=None,
            argv=["--data", "d", "--output_dir", "o", f"--{other}", "1"],
        )
    assert f"unknown flag --{other}; did you mean --{own}?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0}, "x.yaml: learning_rate: expected a number above 0, found 0.0"),
        (
            {"learning_rate": "1e3"},
            "x.yaml: learning_rate: expected learning_rate of at most 1.0: an update of Adam moves "
            "every weight by about this much, found 1000.0",
        ),
        ({"learning_rate": "inf"}, "x.yaml: learning_rate: expected a number above 0, found inf"),
        ({"learning_rate": "nan"}, "x.yaml: learning_rate: expected a number above 0, found nan"),
        ({"lr": 1}, "x.yaml: unknown key lr; did you mean learning_rate?"),
        ({"model": "gpt3"}, "gpt2-xl, found 'gpt3'; did you mean gpt2?"),
        ({"weight_decay": 100}, "x.yaml: weight_decay: expected weight_decay of at most 10.0"),
        ({"timeout_minutes": 1e9}, "x.yaml: timeout_minutes: expected timeout_minutes of at most"),
        (
            {"timeout_minutes": 0.001},
            "x.yaml: timeout_minutes: expected timeout_minutes of at least 0.1, because processes "
            "need seconds to find each other, found 0.001",
        ),
        (
            {"final": "best", "keep_best": False},
            "x.yaml: keep_best, final: expected keep_best true for final = best, which is that "
            "checkpoint, found false",
        ),
        ({"dropout": 1}, "x.yaml: dropout: expected dropout below 1, found 1.0"),
        (
            {"warmup_steps": 100},
            "x.yaml: warmup_steps, max_steps: expected warmup_steps below max_steps = 100, found",
        ),
        (
            {"schedule": "wsd", "decay_steps": 90, "warmup_steps": 11},
            "x.yaml: decay_steps, max_steps, warmup_steps: expected decay_steps of at most the 89 "
            "steps after the warmup, found 90",
        ),
        (
            {"schedule": "wsd", "warmup_steps": 90},
            "decay_steps (default); x.yaml: max_steps, warmup_steps: expected decay_steps of at mo",
        ),
        ({"n_head": 3}, "n_embd (default); x.yaml: n_head: expected n_embd divisible by n_head"),
        (
            {"sequence_length": 512},
            "x.yaml: sequence_length; n_positions (default): expected sequence_length of at most",
        ),
        (
            {"total_batch_tokens": 2000},
            "expected total_batch_tokens divisible by sequence_length = 256, such as 2048, found 2",
        ),
        ({"min_learning_rate": 0.1}, "min_learning_rate of at most learning_rate = 0.0006, found"),
        (
            {"save_every": 1000, "keep_every": 2500},
            "x.yaml: keep_every, save_every: expected keep_every to be a multiple of save_every =",
        ),
        ({"save_every": 0, "keep_every": 10}, "expected keep_every to be a multiple of save_ev"),
        (
            {"rollback_on_spike": "true", "save_every": 0},
            "x.yaml: save_every, rollback_on_spike: expected save_every above 0 for rollback_on_sp",
        ),
        (
            {"rollback_on_spike": "true", "spike_threshold": 0},
            "expected spike_threshold above 0 for rollback_on_spike, found 0.0",
        ),
        ({"micro_batch_size": "many"}, "x.yaml: micro_batch_size: expected a number above 0 or au"),
        ({"micro_batch_size": "1.5"}, "micro_batch_size: expected a number above 0 or auto, found"),
        ({"eval_tasks": "[piqa]"}, "x.yaml: eval_tasks: expected some of lambada, hellaswag"),
        ({"report_to": "[wandb, wandb]"}, "report_to: expected each word once, found 'wandb' agai"),
        ({"eval_tasks_every": 5}, "eval_tasks_every only with eval_tasks lambada or hellaswag o"),
        (
            {"eval_tasks": "[hellaswag]", "lambada_data": "x"},
            "x.yaml: lambada_data: expected an existing file, found none: x",
        ),
        (
            {"eval_tasks": "[blimp]", "blimp_data": "x"},
            "x.yaml: blimp_data: expected an existing file or directory, found none: x",
        ),
        (
            {"eval_tokens": 100, "eval_every": 0},
            "x.yaml: eval_tokens, eval_every: expected eval_tokens only with eval_every above 0, ",
        ),
        (
            {"save_every": 10, "keep_every": 50, "keep_checkpoints": 0},
            "expected keep_every only with keep_checkpoints above 0, found 0; leave keep_every out",
        ),
        (
            {"data_cache_gb": 3},
            "data_cache_gb only with data at an address, found ",
        ),
        ({"data_cache": "x"}, "expected data_cache only with data at an address, found "),
        ({"muon_learning_rate": 0.01}, "muon_learning_rate only with optimizer muon, found adamw"),
        ({"decay_steps": 10}, "expected decay_steps only with schedule wsd, found cosine; leave"),
        (
            {"schedule": "constant", "min_learning_rate": 1e-5},
            "expected min_learning_rate only with schedule cosine or wsd, found constant",
        ),
        (
            {"data": "hf://datasets/a/b", "timeout_minutes": 10},
            "x.yaml: timeout_minutes; data_retry_seconds (default): expected timeout_minutes above",
        ),
        ({"data": "a:0.5,b:0.6"}, "x.yaml: data: expected weights of --data that sum to 1, found"),
        ({"output_dir": "x.yaml/run"}, "x.yaml: output_dir: expected a directory that can be made"),
        (
            {"max_steps": 2**62},
            "x.yaml: max_steps, total_batch_tokens: expected max_steps that make at most 2^53 toke",
        ),
        (
            {"max_steps": 2**64},
            "x.yaml: max_steps: expected a number below 2^63, found 1844674407",
        ),
        ({"n_layer": 10**9}, "expected n_layer of at most 1000: no machine has room for more"),
        ({"n_embd": 2**62}, "expected n_embd of at most 1048576: no machine has room for more"),
        ({"eval_tokens": "1" * 5000}, "eval_tokens: expected a whole number, found '1111"),
        ({"data_retry_seconds": 1e300}, "data_retry_seconds: expected a number below 2^63, found"),
    ],
)
def test_arguments_that_make_no_run_are_refused_by_recipe_and_key(
    tmp_path, capsys, monkeypatch, changes, message
):
    monkeypatch.chdir(tmp_path)
    assert message in refusal(tmp_path, capsys, changes)
    assert [path.name for path in tmp_path.iterdir()] == ["x.yaml"]


def test_arguments_of_the_command_line_are_refused_by_flag(tmp_path, capsys):
    line = refusal(tmp_path, capsys, {}, "--learning_rate", "1e3")
    assert line.startswith("--learning_rate: expected learning_rate of at most 1.0: an update of")
    line = refusal(tmp_path, capsys, {"n_head": 4}, "--n_embd", "6")
    assert line.startswith("--n_embd; x.yaml: n_head: expected n_embd divisible by n_head = 4")


@pytest.mark.parametrize(
    ("recipe", "flags", "filled_in", "line"),
    [
        (
            {"warmup_steps": 30},
            ("--max_steps", "25"),
            {"warmup_steps": 1},
            "x.yaml: warmup_steps; --max_steps: expected warmup_steps below max_steps = 25, found "
            "30; warmup_steps of the recipe is left out",
        ),
        (
            {"schedule": "wsd", "decay_steps": 90},
            ("--max_steps", "50"),
            {"decay_steps": 10},
            "found 90; decay_steps of the recipe is left out",
        ),
        (
            {"min_learning_rate": 1e-4},
            ("--learning_rate", "5e-5"),
            {"min_learning_rate": 5e-6},
            "found 0.0001; min_learning_rate of the recipe is left out",
        ),
        (
            {"save_every": 10, "keep_every": 50},
            ("--save_every", "20"),
            {"keep_every": 0},
            "found 50; keep_every of the recipe is left out",
        ),
    ],
)
def test_what_a_recipe_derived_gives_way_to_a_flag_with_one_line(
    tmp_path, capsys, recipe, flags, filled_in, line
):
    config = parsed(tmp_path, recipe, *flags)
    assert {name: getattr(config, name) for name in filled_in} == pytest.approx(filled_in)
    (found,) = capsys.readouterr().err.splitlines()
    assert found.endswith(line) and ": note: " in found


def test_a_rate_of_muon_in_a_recipe_holds_until_another_rate_is_given(tmp_path, capsys):
    recipe = {"optimizer": "muon", "learning_rate": 0.01, "muon_learning_rate": 0.007}
    note = "x.yaml: muon_learning_rate is ignored, because --learning_rate was given after it"
    for flags, muon, is_said in (
        ((), 0.007, False),
        (("--learning_rate", "0.03"), 0.03, True),
        (("--learning_rate=0.03", "--muon_learning_rate=0.05"), 0.05, False),
    ):
        assert parsed(tmp_path, recipe, *flags).muon_learning_rate == muon
        assert (note in capsys.readouterr().err) == is_said


@pytest.mark.parametrize("flag", ["--model=gpt2-medium", "--init_from=model"])
def test_sizes_of_a_recipe_hold_until_another_model_is_named(tmp_path, capsys, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    tiny_model(n_embd=16, n_layer=3, n_positions=32).save_pretrained("model")
    capsys.readouterr()
    named = (16, 3) if "init_from" in flag else (1024, 24)
    for flags, sizes in (((), (8, 2)), ((flag,), named)):
        config = parsed(tmp_path, {"n_embd": 8, "n_layer": 2, "n_head": 2}, *flags)
        assert (config.n_embd, config.n_layer) == sizes
        found = capsys.readouterr().err.splitlines()
        assert [line.partition("x.yaml: ")[2] for line in found] == [
            f"{name} is ignored, because {flag.partition('=')[0]} was given after it"
            for name in ("n_layer", "n_head", "n_embd")
            if flags
        ]


def test_a_lowest_rate_gives_way_also_where_the_steps_are_not_known_yet(tmp_path, capsys):
    flags = ("--learning_rate", "3e-5", "--tokens_per_parameter", "20")
    recipe = {"learning_rate": 6e-4, "min_learning_rate": 6e-5}
    assert parsed(tmp_path, recipe, *flags).min_learning_rate == pytest.approx(3e-6)
    assert "min_learning_rate of the recipe is left out" in capsys.readouterr().err


def test_a_flag_gives_way_to_nothing_nor_does_a_recipe_in_itself(tmp_path, capsys):
    line = refusal(tmp_path, capsys, {}, "--max_steps", "25", "--warmup_steps", "30")
    assert line.startswith("--warmup_steps, --max_steps: expected warmup_steps below max_steps = 2")
    line = refusal(tmp_path, capsys, {"max_steps": 25, "warmup_steps": 30}, "--seed", "1")
    assert line.startswith("x.yaml: warmup_steps, max_steps: expected warmup_steps below max_steps")
    # A second recipe counts as later, too.
    (tmp_path / "short.yaml").write_text("max_steps: 25\n")
    path = recipe_file(tmp_path, {"warmup_steps": 30})
    argv = [str(path), str(tmp_path / "short.yaml")]
    assert parse_config(TrainConfig, description=None, argv=argv).warmup_steps == 1


def test_the_length_of_a_run_is_said_once_and_the_last_word_counts(tmp_path, capsys):
    line = refusal(tmp_path, capsys, {}, "--max_steps", "9", "--tokens_per_parameter", "20")
    assert "expected max_steps or tokens_per_parameter, found both; leave one out" in line
    recipe = {"max_steps": 100, "warmup_steps": 30, "schedule": "wsd", "decay_steps": 60}
    config = parsed(tmp_path, recipe, "--tokens_per_parameter", "20")
    assert (config.max_steps, config.warmup_steps, config.decay_steps) == (None, None, None)
    recipe = {"max_steps": "", "tokens_per_parameter": 20}
    config = parsed(tmp_path, recipe, "--max_steps", "50")
    assert (config.max_steps, config.warmup_steps, config.tokens_per_parameter) == (50, 2, None)


def test_a_model_beside_init_from_would_be_without_effect(tmp_path, capsys):
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "config.json").write_text('{"model_type": "gpt2", "n_positions": 256}')
    line = refusal(tmp_path, capsys, {"init_from": weights})
    assert "x.yaml: model, init_from: expected model only without init_from, found " in line
    changes = {"model": "", "init_from": weights, "sequence_length": 512}
    line = refusal(tmp_path, capsys, changes)
    assert "x.yaml: sequence_length, init_from: expected sequence_length of at most n_posit" in line


def test_a_directory_that_is_in_use_or_a_file_is_no_output_directory(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    assert "x.yaml: output_dir: expected " in refusal(tmp_path, capsys, {})
    line = refusal(
        tmp_path, capsys, {"output_dir": tmp_path / "run" / "thesis.txt", "resume": "auto"}
    )
    assert "found a file: " in line


def test_a_directory_without_permission_is_no_output_directory(tmp_path, monkeypatch):
    tmp_path.chmod(0o555)
    if os.access(tmp_path, os.W_OK):  # to root everything is permitted
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ArgumentError, match="--output_dir: .* without permission to write: "):
        config_of(tmp_path)
    tmp_path.chmod(0o755)


def test_the_command_line_says_none_for_an_empty_list(tmp_path):
    assert config_of(tmp_path, report_to=["none"]).report_to == []
    with pytest.raises(ArgumentError, match="--report_to: expected some of wandb"):
        config_of(tmp_path, report_to=["none", "wandb"])


@pytest.mark.parametrize(
    "change",
    [
        *({"n_layer": 3}, {"n_head": 3}, {"n_embd": 96}, {"n_positions": 2_048}),
        *({"sequence_length": 128}, {"total_batch_tokens": 4_096}, {"dropout": 0.1}, {"seed": 1}),
        {"optimizer": "muon"},
    ],
)
def test_what_may_not_change_within_a_run_is_part_of_its_identity(tmp_path, change):
    base = {"data": "d", "output_dir": str(tmp_path), "model": "tiny", "n_head": 4, "n_embd": 192}
    base |= {"sequence_length": 256, "total_batch_tokens": 2_048}
    assert TrainConfig(**base).identity() != TrainConfig(**base | change).identity()
