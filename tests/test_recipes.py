"""The recipes: each is accepted, and what its comments say can be computed from its entries."""

import re
from pathlib import Path

import pytest
import torch
from support.paths import REPOSITORY
from support.training_runs import curve, run_here, stock_model
from transformers import GPT2Config

from modeling_gpt2scratch import GPT2ScratchConfig, GPT2ScratchForCausalLM
from modeling_gpt2scratch.common.command_line import parse_config
from modeling_gpt2scratch.training.configuration import TrainConfig
from modeling_gpt2scratch.training.sizes import SIZES

RECIPES = sorted(REPOSITORY.glob("recipes/*.yaml"))
# The figures of the others are measured, or are about losses alone.
COMPUTED = [recipe for recipe in RECIPES if "A100" in recipe.read_text()]
A100_FLOPS = 312e12
UNITS = {"million": 1e6, "billion": 1e9}


def config_of(recipe: Path, tmp_path: Path) -> TrainConfig:
    """The recipe's arguments; GPT-2's configuration stands in for the Hub's `gpt2`."""
    arguments = [str(recipe), "--output_dir", str(tmp_path / "run")]
    if "init_from: gpt2\n" in recipe.read_text():
        GPT2Config().save_pretrained(tmp_path / "gpt2")
        arguments += ["--init_from", str(tmp_path / "gpt2")]
    return parse_config(TrainConfig, description=None, argv=arguments)


def n_parameters(config: TrainConfig) -> int:
    """Of the recipe's model with GPT-2's vocabulary."""
    with torch.device("meta"):
        sizes = {name: getattr(config, name) for name in SIZES}
        return GPT2ScratchForCausalLM(GPT2ScratchConfig(**sizes)).num_parameters()


def stated(recipe: Path, pattern: str) -> list[float]:
    """The numbers that the pattern finds in the recipe's comments."""
    found = re.search(pattern, recipe.read_text())
    assert found, f"{recipe.name} does not say {pattern}"
    return [float(number.replace(",", "")) for number in found.groups()]


def test_the_recipes_are_those_that_the_readme_can_name():
    sizes = {"gpt2_124m", "gpt2_124m_muon", "gpt2_355m", "gpt2_774m", "gpt2_1558m"}
    small = {"quickstart", "finetune", "shakespeare_char", "shakespeare_char_gpu"}
    assert {recipe.stem for recipe in RECIPES} == small | sizes
    assert {recipe.stem for recipe in COMPUTED} == {"finetune"} | sizes


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_accepted_and_its_tokens_are_those_that_it_states(recipe, tmp_path):
    config = config_of(recipe, tmp_path)
    assert config.total_batch_tokens % (config.sequence_length * config.micro_batch_size) == 0
    unit = "million" if "million\n" in recipe.read_text() else "billion"
    pattern = rf"tokens +([\d,]+) steps x ([\d,]+) = ([\d.]+) {unit}"
    steps, batch, n_tokens = stated(recipe, pattern)
    assert (steps, batch) == (config.max_steps, config.total_batch_tokens)
    assert n_tokens == pytest.approx(steps * batch / UNITS[unit], abs=0.05)


@pytest.mark.parametrize("recipe", COMPUTED, ids=lambda path: path.stem)
def test_parameters_time_and_memory_of_a_recipe_are_computed_as_it_states(recipe, tmp_path):
    config = config_of(recipe, tmp_path)
    n = n_parameters(config)
    assert f"\nexpect_parameters: {n:_}\n" in recipe.read_text()
    n_tokens, length = config.max_steps * config.total_batch_tokens, config.sequence_length
    width = config.n_layer * config.n_embd
    flops = 6 * (n - config.n_positions * config.n_embd) + 12 * width * length
    n_gpus = 1 if "one A100" in recipe.read_text() else 8
    hours, percent = stated(recipe, r"time +([\d.]+) hours on .* at ([\d]+) % of")
    seconds = n_tokens * flops / (n_gpus * A100_FLOPS * percent / 100)
    assert hours == pytest.approx(seconds / 3600, abs=0.05)
    (gigabytes,) = stated(recipe, r"memory +(\d+) GB a GPU")
    n_bytes = 18 * n + 36 * config.micro_batch_size * length * width
    assert gigabytes == pytest.approx(n_bytes / 1e9, abs=0.6)


@pytest.mark.parametrize("recipe", COMPUTED, ids=lambda path: path.stem)
def test_a_recipe_divides_among_the_gpus_that_it_is_for(recipe, tmp_path):
    config = config_of(recipe, tmp_path)
    n_gpus = 16 if "sixteen GPUs" in recipe.read_text() else 8
    if "one GPU" in recipe.read_text():
        n_gpus = 1
    rows_per_micro_step = config.micro_batch_size * n_gpus
    assert config.total_batch_tokens % (config.sequence_length * rows_per_micro_step) == 0


def test_autograd_keeps_36_bytes_a_token_layer_and_channel():
    # Differences of layers and rows leave out what does not grow with them.
    kept = {
        (n_layer, rows): bytes_for_backward(n_layer, rows) for n_layer in (1, 2) for rows in (1, 2)
    }
    growth = (kept[2, 2] - kept[2, 1]) - (kept[1, 2] - kept[1, 1])
    assert growth / (128 * 256) == pytest.approx(36, rel=0.02)


SMALL = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0}
SMALL |= {"n_embd": 256, "n_head": 4, "n_positions": 128}


def bytes_for_backward(n_layer: int, rows: int) -> int:
    """What autograd keeps of a forward pass of rows of 128 tokens in 256 channels, in bf16."""
    config = GPT2ScratchConfig(**SMALL, n_layer=n_layer)
    model = GPT2ScratchForCausalLM(config).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    ids = torch.zeros((rows, 128), dtype=torch.int64)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        model.transformer(ids, use_cache=False)
    return sum(n_bytes for n_bytes, _ in kept.values())


def test_the_recipe_for_own_text_trains_a_small_model_on(small_data, tmp_path, monkeypatch):
    stock = stock_model(tmp_path / "stock", n_positions=64, resid_pdrop=0.0)
    recipe = str(REPOSITORY / "recipes" / "finetune.yaml")
    arguments = ["--data", str(small_data), "--init_from", str(tmp_path / "stock")]
    arguments += ["--output_dir", str(tmp_path / "run"), "--sequence_length", "64"]
    arguments += ["--max_steps", "4", "--total_batch_tokens", "1024"]
    arguments += ["--expect_parameters", str(stock.num_parameters()), "--log_every", "1"]
    assert run_here(monkeypatch, recipe, *arguments, "--learning_rate", "1e-2") == 0
    losses = [loss for loss, _ in curve(tmp_path / "run").values()]
    assert len(losses) == 4 and losses[-1] < losses[0]
