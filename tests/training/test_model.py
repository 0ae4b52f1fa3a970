"""Models to train: fresh ones, and those that start from the weights of an earlier one."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from support.tiny_models import tiny_model, tiny_tokenizer
from support.training_runs import LAYERS, SIZES, curve, flags, refusal, run_here, stock_model
from transformers import AutoModelForCausalLM, GenerationConfig

from modeling_gpt2scratch.common.command_line import ArgumentError
from modeling_gpt2scratch.data.loading.loader import ShardLoader
from modeling_gpt2scratch.distributed.processes import LaunchError
from modeling_gpt2scratch.training import model as model_module
from modeling_gpt2scratch.training.configuration import TrainConfig
from modeling_gpt2scratch.training.data import TrainingData
from modeling_gpt2scratch.training.initial_weights import InitialWeightsError
from modeling_gpt2scratch.training.model import (
    make_model,
    require_memory,
    sum_of_weights,
    with_max_steps,
)
from modeling_gpt2scratch.training.validation import sample_text

# A run's flags without sizes of its own, which would differ from the checkpoint's.
WITHOUT_SIZES = SIZES.keys() - {"model", "n_layer", "n_embd", "n_head", "n_positions"}


def made_model(data: Path, tmp_path: Path, **arguments):
    """What a run with these arguments trains, and its data."""
    config = TrainConfig(
        data=str(data), output_dir=str(tmp_path / "run"), total_batch_tokens=640, **arguments
    )
    data = TrainingData(config)
    return make_model(config, manifest=data.manifest, tokenizer=data.tokenizer()), data


def finetuning_flags(data: Path, output_dir: Path, checkpoint: Path, **changes) -> list[str]:
    values = {name: SIZES[name] for name in WITHOUT_SIZES - {"eval_tokens"}}
    values |= {"total_batch_tokens": 640, "eval_every": 0, "dropout": 0}
    values |= {"data": data, "output_dir": output_dir, "init_from": checkpoint} | changes
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def test_weights_of_a_stock_gpt2_are_trained_in_float32_with_the_dropout_of_the_run(
    small_data, tmp_path
):
    theirs = stock_model(tmp_path / "stock", dtype=torch.bfloat16)
    theirs.to(torch.bfloat16).save_pretrained(tmp_path / "stock")
    ours, _ = made_model(small_data, tmp_path, init_from=str(tmp_path / "stock"), dropout=0.25)
    assert ours.training
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    dropouts = {m.p for m in ours.modules() if isinstance(m, torch.nn.Dropout)}
    assert dropouts == {0.25} and ours.config.attn_pdrop == 0.25
    assert ours.num_parameters() == theirs.num_parameters()
    assert ours.lm_head.weight is ours.transformer.wte.weight


def test_attention_computes_as_the_flag_says_and_the_weights_do_not_record_it(small_data, tmp_path):
    stock_model(tmp_path / "stock")
    for name in ("sdpa", "eager"):
        for start in ({"n_positions": 64}, {"init_from": str(tmp_path / "stock")}):
            model, _ = made_model(small_data, tmp_path, **start, attention=name)
            assert model.config._attn_implementation == name
            assert name not in model.config.to_json_string()


def test_weights_that_differ_between_processes_have_another_sum():
    model = tiny_model()
    found = sum_of_weights(model)
    assert sum_of_weights(tiny_model()) == found
    with torch.no_grad():
        model.transformer.h[1].mlp.up_proj.bias[3] += 1e-6
    assert sum_of_weights(model) != found
    assert sum_of_weights(model.to(torch.bfloat16)) != found


def test_the_first_loss_is_that_of_the_stock_model(small_data, tmp_path, monkeypatch):
    theirs = stock_model(tmp_path / "stock")
    arguments = finetuning_flags(small_data, tmp_path / "run", tmp_path / "stock", max_steps=2)
    assert run_here(monkeypatch, *arguments) == 0
    _, data = made_model(small_data, tmp_path / "again", init_from=str(tmp_path / "stock"))
    loader = ShardLoader(data.train, rows_per_step=16, micro_batch_size=16)
    batch = loader.batch(0, 0)
    with torch.no_grad():
        logits = theirs(batch["input_ids"]).logits
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["shift_labels"].flatten()
    )
    assert curve(tmp_path / "run")[1][0] == pytest.approx(expected.item(), abs=1e-5)
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert {name: getattr(trained.config, name) for name in LAYERS} == LAYERS
    assert json.loads((tmp_path / "run" / "train_config.json").read_text())["n_layer"] == 3


def flags_without_steps(data: Path, output_dir: Path, **changes) -> list[str]:
    arguments = flags(data, output_dir, eval_every=0, save_every=0, **changes)
    at = arguments.index("--max_steps")
    return arguments[:at] + arguments[at + 2 :]


@pytest.mark.parametrize("tokens_per_parameter", [0.05, 0.08])
def test_tokens_per_parameter_set_the_steps_and_what_depends_on_them(
    small_data, tmp_path, monkeypatch, capsys, tokens_per_parameter
):
    run, changes = tmp_path / "run", {"tokens_per_parameter": tokens_per_parameter}
    assert run_here(monkeypatch, *flags_without_steps(small_data, run, **changes)) == 0
    n_parameters = AutoModelForCausalLM.from_pretrained(run).num_parameters()
    n_steps = math.ceil(tokens_per_parameter * n_parameters / SIZES["total_batch_tokens"])
    assert max(curve(run)) == n_steps > 1
    recorded = json.loads((run / "train_config.json").read_text())
    assert (recorded["max_steps"], recorded["tokens_per_parameter"]) == (n_steps, None)
    assert f"0 to {n_steps}, " in capsys.readouterr().out


def test_steps_of_tokens_per_parameter_that_do_not_fit_are_refused(
    small_data, tmp_path, monkeypatch, capsys
):
    changes = {"tokens_per_parameter": 0.05, "warmup_steps": 500}
    arguments = flags_without_steps(small_data, tmp_path / "run", **changes)
    code, error = refusal(monkeypatch, capsys, *arguments)
    assert code == 2 and not (tmp_path / "run").exists()
    assert re.search(
        r"--tokens_per_parameter makes \d+ steps: .*expected warmup_steps below", error
    )


def test_positions_can_be_left_out_and_the_rest_computes_the_same(small_data, tmp_path):
    theirs = stock_model(tmp_path / "stock")
    ours, _ = made_model(small_data, tmp_path, init_from=str(tmp_path / "stock"), n_positions=32)
    assert ours.config.n_positions == 32
    ids = torch.arange(64).view(2, 32)
    torch.testing.assert_close(ours.eval()(ids).logits, theirs(ids).logits)
    ours.save_pretrained(tmp_path / "short")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "short")
    assert torch.equal(reloaded(ids).logits, ours(ids).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 2}, "--n_layer, --init_from: expected n_layer of 3, as in "),
        ({"n_positions": 64}, "expected n_positions of at most 40, as in "),
        ({"sequence_length": 64}, "--sequence_length"),
        (
            {"init_from": "nowhere/at/all"},
            "--init_from: nowhere/at/all: expected the directory of a gpt2 or gpt2scratch ch",
        ),
    ],
)
def test_sizes_and_names_that_do_not_fit_are_refused_before_anything_is_loaded(
    small_data, tmp_path, monkeypatch, capsys, changes, message
):
    stock_model(tmp_path / "stock")
    values = {"init_from": str(tmp_path / "stock")} | changes
    arguments = finetuning_flags(small_data, tmp_path / "run", **{"checkpoint": None} | values)
    code, error = refusal(monkeypatch, capsys, *arguments)
    assert code == 2 and message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"vocab_size": 310}, "300 entries with end of text 299, found 310 with 299"),
        ({"eos_token_id": 0}, "300 entries with end of text 299, found 300 with 0"),
    ],
)
def test_another_vocabulary_is_refused_by_both_names(small_data, tmp_path, changes, found):
    stock_model(tmp_path / "stock", **changes)
    message = f"^{tmp_path}/stock: expected a checkpoint for .* tokenizer bpe:300, {found};"
    with pytest.raises(InitialWeightsError, match=message):
        made_model(small_data, tmp_path, init_from=str(tmp_path / "stock"))


def test_another_tokenizer_of_the_same_size_is_refused(small_data, tmp_path):
    stock_model(tmp_path / "stock")
    _, data = made_model(small_data, tmp_path, init_from=str(tmp_path / "stock"))
    data.tokenizer().save_pretrained(tmp_path / "stock")
    made_model(small_data, tmp_path, init_from=str(tmp_path / "stock"))
    stranger = tiny_tokenizer()
    stranger.add_tokens([f"<{number}>" for number in range(30)])
    stranger.save_pretrained(tmp_path / "stock")
    with pytest.raises(InitialWeightsError, match="found other tokens for the same ids"):
        made_model(small_data, tmp_path, init_from=str(tmp_path / "stock"))


def test_a_llama_or_incomplete_weights_are_refused(small_data, tmp_path):
    stock_model(tmp_path / "stock")
    config = json.loads((tmp_path / "stock" / "config.json").read_text())
    (tmp_path / "stock" / "model.safetensors").unlink()
    with pytest.raises(InitialWeightsError, match="checkpoint with its weights, in a directory"):
        made_model(small_data, tmp_path, init_from=str(tmp_path / "stock"))
    (tmp_path / "stock" / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(ArgumentError, match="--init_from: .*model_type 'llama'"):
        made_model(small_data, tmp_path, init_from=str(tmp_path / "stock"))


def test_a_run_goes_on_without_the_weights_that_it_started_from(
    small_data, tmp_path, monkeypatch, capsys
):
    stock_model(tmp_path / "stock", layer_norm_epsilon=0.1)  # which only the checkpoint knows then
    output_dir = tmp_path / "run"
    arguments = finetuning_flags(
        small_data, output_dir, tmp_path / "stock", max_steps=2, save_every=1
    )
    assert run_here(monkeypatch, *arguments) == 0
    shutil.copytree(output_dir, tmp_path / "copy")
    longer = ["--resume", "auto", "--max_steps", "3", "--warmup_steps", "0"]
    assert run_here(monkeypatch, *arguments, *longer) == 0
    shutil.rmtree(tmp_path / "stock")
    moved = ["--output_dir", str(tmp_path / "copy"), "--init_from", "elsewhere/stock"]
    assert run_here(monkeypatch, *arguments, *longer, *moved) == 0
    assert curve(tmp_path / "copy") == curve(output_dir) and max(curve(output_dir)) == 3
    recorded = json.loads((tmp_path / "copy" / "train_config.json").read_text())
    assert recorded["init_from"] == str(tmp_path / "stock") and recorded["init_from_is_local"]
    code, error = refusal(monkeypatch, capsys, *arguments, *longer, *moved, "--n_layer", "2")
    assert code == 2 and f"expected n_layer of 3, as in config.json of {tmp_path}/copy/" in error


@pytest.mark.parametrize("changes", [{}, {"n_inner": 24}, {"tie_word_embeddings": False}])
def test_tokens_per_parameter_count_those_of_the_first_weights(small_data, tmp_path, changes):
    stock_model(tmp_path / "stock", **changes)
    model, data = made_model(
        small_data, tmp_path, init_from=str(tmp_path / "stock"), tokens_per_parameter=20.0
    )
    n_steps = math.ceil(20 * model.num_parameters() / 640)
    assert with_max_steps(data._config, data.manifest).max_steps == n_steps


@pytest.mark.parametrize("source", ["fresh", "stock"])
def test_what_is_saved_samples_as_suits_small_models(small_data, tmp_path, source):
    stock_model(tmp_path / "stock")
    fresh = {"model": "tiny", "n_positions": 32}
    arguments = fresh if source == "fresh" else {"init_from": str(tmp_path / "stock")}
    model, _ = made_model(small_data, tmp_path, **arguments)
    model.save_pretrained(tmp_path / "saved")
    saved = GenerationConfig.from_pretrained(tmp_path / "saved")
    assert (saved.do_sample, saved.temperature, saved.top_k) == (True, 0.8, 50)
    assert saved.pad_token_id == saved.eos_token_id == 299


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_model_that_is_lost_still_has_a_sample_and_the_run_goes_on(number):
    model = tiny_model(vocab_size=271)
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(float(number))
    assert isinstance(sample_text(model, tiny_tokenizer(), seed=0), str)
    assert model.training


@pytest.mark.parametrize(
    ("n_processes", "options", "n_copies"),
    [(1, {}, 4), (2, {}, 8), (2, {"optimizer": "muon"}, 6)],
)
def test_a_model_larger_than_the_memory_is_refused_before_it_is_made(
    small_data, tmp_path, monkeypatch, n_processes, options, n_copies
):
    stock_model(tmp_path / "stock")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(n_processes))
    monkeypatch.setattr(model_module, "free_swap", lambda: 0)
    arguments = {"total_batch_tokens": 640, "init_from": str(tmp_path / "stock")} | options
    config = TrainConfig(data=str(small_data), output_dir=str(tmp_path / "run"), **arguments)
    manifest, device = TrainingData(config).manifest, torch.device("cpu")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "stock", trust_remote_code=False)
    needed = n_copies * 4 * model.num_parameters()
    monkeypatch.setattr(model_module, "available_memory", lambda: needed)
    require_memory(config, manifest, device=device, is_sharded=False)
    monkeypatch.setattr(model_module, "available_memory", lambda: needed - 1)
    message = rf"for {n_copies} copies .* of {model.num_parameters():,} parameters, found .* free"
    with pytest.raises(LaunchError, match=message):
        require_memory(config, manifest, device=device, is_sharded=False)
    require_memory(config, manifest, device=device, is_sharded=True)


def test_the_refusal_of_a_model_too_large_is_one_line_of_the_command(
    small_data, tmp_path, monkeypatch, capsys
):
    sizes = {"n_layer": 1000, "n_embd": 2**16, "n_head": 4}
    arguments = flags(small_data, tmp_path / "run", **sizes)
    code, error = refusal(monkeypatch, capsys, *arguments)
    assert code == 2 and not (tmp_path / "run").exists()
    assert re.search(r"expected at least [\d.]+ GiB for 4 copies .*; choose a smaller", error)
