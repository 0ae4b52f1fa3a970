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
from modeling_gpt2scratch.hardware.compilation import checkpoint_activations
from modeling_gpt2scratch.hardware.devices import flops_per_token, peak_flops
from modeling_gpt2scratch.training.configuration import TrainConfig
from modeling_gpt2scratch.training.sizes import SIZES

PAGE = (REPOSITORY / "docs" / "reference" / "recipes.md").read_text(encoding="utf-8")
RECIPES = sorted(REPOSITORY.glob("recipes/*.yaml"))
# The figures of the others are measured, or are about losses alone.
COMPUTED = [recipe for recipe in RECIPES if "GB a GPU" in recipe.read_text()]
# The peak that a recipe counts with, by the words in its comments.
PEAKS = {
    "A100": peak_flops("NVIDIA A100-SXM4-80GB", "bf16"),
    "RTX 3060": peak_flops("NVIDIA GeForce RTX 3060", "bf16"),
    "RTX 4090": peak_flops("NVIDIA GeForce RTX 4090", "bf16"),
    "T4": peak_flops("Tesla T4", "fp16"),
}
# For one card: its memory in GB.
CARDS = {"gpt2_124m_12gb": 12, "gpt2_124m_16gb": 16, "gpt2_124m_24gb": 24}
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
    small |= {"ten_million_words"}
    assert {recipe.stem for recipe in RECIPES} == small | sizes | {*CARDS}
    assert {recipe.stem for recipe in COMPUTED} == {"finetune"} | sizes | {*CARDS}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_accepted_and_its_tokens_are_those_that_it_states(recipe, tmp_path):
    config = config_of(recipe, tmp_path)
    assert config.total_batch_tokens % (config.sequence_length * config.micro_batch_size) == 0
    unit = "million" if re.search(r"= [\d.]+ million", recipe.read_text()) else "billion"
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
    line = re.search(r"time +\S+ hours on (one|eight) ([\w ]+) at", recipe.read_text())
    peak = {"one": 1, "eight": 8}[line[1]] * PEAKS[line[2]]
    hours, percent = stated(recipe, r"time +([\d.]+) hours on .* at ([\d]+) % of")
    seconds = n_tokens * flops / (peak * percent / 100)
    assert hours == pytest.approx(seconds / 3600, abs=0.05)
    (gigabytes,) = stated(recipe, r"memory +(\d+) GB a GPU")
    assert gigabytes == pytest.approx(n_gigabytes(config, n), abs=0.6)


def n_gigabytes(config: TrainConfig, n: int, *, rows: int | None = None) -> float:
    """Memory by the formula of the recipes, of n parameters and a micro-batch of rows."""
    rows = config.micro_batch_size if rows is None else rows
    width = config.n_layer * config.n_embd
    return (18 * n + 36 * rows * config.sequence_length * width) / 1e9


@pytest.mark.parametrize("name", CARDS)
def test_a_recipe_for_one_card_leaves_a_third_of_its_memory(name, tmp_path):
    recipe = REPOSITORY / "recipes" / f"{name}.yaml"
    config, text = config_of(recipe, tmp_path), recipe.read_text()
    n = n_parameters(config)
    gigabytes = n_gigabytes(config, n)
    assert gigabytes < CARDS[name] * 2 / 3 and f"for one GPU of {CARDS[name]} GB" in text
    assert "\n# Expected: computed, not run\n" in text
    for rows, stated_gb in re.findall(r"(\d+) rows (?:would )?need[ #\n]+(\d+) GB", text):
        assert int(stated_gb) == round(n_gigabytes(config, n, rows=int(rows)))
    # Of 36 bytes, checkpointing keeps 4 in each block, and has all of one block at a time.
    tokens, layers = config.micro_batch_size * config.sequence_length, config.n_layer
    saved = (36 * (layers - 1) - 4 * layers) * tokens * config.n_embd / 1e9
    pattern = r"save (\d+) GB of the (\d+)"
    assert stated(recipe, pattern) == [round(saved), round(gigabytes)]


@pytest.mark.parametrize("name", CARDS)
def test_a_recipe_for_one_card_is_that_for_eight_over_its_share_of_the_tokens(name, tmp_path):
    recipe = REPOSITORY / "recipes" / f"{name}.yaml"
    config = config_of(recipe, tmp_path)
    whole = config_of(REPOSITORY / "recipes" / "gpt2_124m.yaml", tmp_path)
    for key in ("total_batch_tokens", "learning_rate", "min_learning_rate", "weight_decay"):
        assert getattr(config, key) == getattr(whole, key)
    assert config.warmup_steps == round(whole.warmup_steps * config.max_steps / whole.max_steps)
    (seconds,), (hours,) = stated(recipe, r"takes (\d+) seconds"), stated(recipe, r"time +(\S+) h")
    assert seconds == round(hours * 3600 / config.max_steps)
    assert seconds * config.save_every < 2400


@pytest.mark.parametrize("recipe", COMPUTED, ids=lambda path: path.stem)
def test_a_recipe_divides_among_the_gpus_that_it_is_for(recipe, tmp_path):
    config = config_of(recipe, tmp_path)
    n_gpus = 16 if "sixteen GPUs" in recipe.read_text() else 8
    if "one GPU" in recipe.read_text():
        n_gpus = 1
    rows_per_micro_step = config.micro_batch_size * n_gpus
    assert config.total_batch_tokens % (config.sequence_length * rows_per_micro_step) == 0


def test_the_page_has_the_figures_of_the_recipes_for_one_card():
    for name, card in CARDS.items():
        (row,) = re.findall(rf"^\| `{name}.yaml` \|(.*)$", PAGE, re.MULTILINE)
        gpu, tflops, tokens, hours, memory = re.match(
            r" (.+), (\S+) TFLOP.* \| (\S+) billion \| (\S+) h \| (\d+) of", row
        ).groups()
        recipe = REPOSITORY / "recipes" / f"{name}.yaml"
        assert float(tflops) == pytest.approx(PEAKS[gpu] / 1e12, rel=2e-3)
        assert [float(tokens)] == stated(recipe, r"= (\S+) billion")
        assert [float(hours)] == stated(recipe, rf"time +(\S+) hours on one {gpu} at 40 %")
        assert [float(memory)] == stated(recipe, r"memory +(\d+) GB") and f"of {card} GB" in row


def test_the_page_has_the_share_of_the_peak_that_others_reached():
    flops = flops_per_token(GPT2ScratchConfig(), 1024)
    row = r"\| (\d) x (A\d+) \| (\S+) billion \| (\S+) h \| (\d+) % \|"
    rows = re.findall(row, PAGE)
    assert len(rows) == 3
    for n_gpus, gpu, tokens, hours, percent in rows:
        peak = int(n_gpus) * peak_flops(f"NVIDIA {gpu}", "bf16")
        share = float(tokens) * 1e9 * flops / (float(hours) * 3600 * peak)
        assert int(percent) == round(100 * share)
    # llm.c's formula: all parameters, and half of attention.
    n = 124_439_808
    share = 10e9 * (6 * n + 6 * 12 * 768 * 1024) / (94 * 60 * 8 * PEAKS["A100"])
    assert "the 94 minutes are 57 %" in PAGE and round(100 * share) == 57


def test_the_page_has_what_checkpointing_saves_of_gpt2_medium(tmp_path):
    config = config_of(REPOSITORY / "recipes" / "gpt2_355m.yaml", tmp_path)
    n, tokens = n_parameters(config), 8 * 1024
    kept = (4 * config.n_layer + 36) * tokens * config.n_embd
    figures = (18 * n / 1e9, (18 * n + kept) / 1e9, n_gigabytes(config, n, rows=8))
    pattern = r"these take (\S+) GB, and with 8 rows it is (\S+) GB instead of (\S+) GB"
    found = re.search(pattern, " ".join(PAGE.split())).groups()
    assert [f"{figure:.1f}" for figure in figures] == list(found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("is_checkpointed", "expected"), [(False, 36), (True, 4)])
def test_autograd_keeps_36_bytes_a_token_layer_and_channel_or_4(is_checkpointed, expected, dtype):
    # Differences of layers and rows leave out what does not grow with them.
    kept = {
        (n_layer, rows): bytes_for_backward(n_layer, rows, dtype, is_checkpointed)
        for n_layer in (1, 2)
        for rows in (1, 2)
    }
    growth = (kept[2, 2] - kept[2, 1]) - (kept[1, 2] - kept[1, 1])
    assert growth / (128 * 256) == pytest.approx(expected, rel=0.02)


SMALL = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0}
SMALL |= {"n_embd": 256, "n_head": 4, "n_positions": 128}


def bytes_for_backward(n_layer: int, rows: int, dtype: torch.dtype, is_checkpointed: bool) -> int:
    """What autograd keeps of a forward pass of rows of 128 tokens in 256 channels."""
    config = GPT2ScratchConfig(**SMALL, n_layer=n_layer)
    model = GPT2ScratchForCausalLM(config).train()
    if is_checkpointed:
        checkpoint_activations(model)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    ids = torch.zeros((rows, 128), dtype=torch.int64)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", dtype):
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
