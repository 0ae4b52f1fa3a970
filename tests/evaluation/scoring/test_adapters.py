"""Adapters of PEFT: measured on the model that they were trained on, or refused in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from support.damaged_files import add_hostile_code, damaged, spoil_config
from support.paths import SHARED_DATA
from support.tiny_models import random_ids, tiny_model, tiny_stock_model, tiny_tokenizer

from modeling_gpt2scratch.common.errors import in_words
from modeling_gpt2scratch.evaluation.results.fingerprints import checksums_of, model_code
from modeling_gpt2scratch.evaluation.scoring import adapters
from modeling_gpt2scratch.evaluation.scoring.adapters import base_of_adapter
from modeling_gpt2scratch.evaluation.scoring.models import load_model, load_scorer
from modeling_gpt2scratch.evaluation.scoring.processes import ProcessGroup

CASE = SHARED_DATA / "cases" / "lora_adapter"
OPTIONS = {"device": "cpu", "dtype": "float32", "batch_tokens": 64, "trust_remote_code": False}
MAKE = {"ours": tiny_model, "stock": tiny_stock_model}


def loaded(directory):
    """The model that is measured."""
    return load_scorer(str(directory), processes=ProcessGroup("cpu"), **OPTIONS).model


def problem(directory) -> str:
    """The line that stands in the place of the model's results."""
    with pytest.raises(Exception) as caught:
        loaded(directory)
    return in_words(caught.value)


def save_base(directory, kind="ours", **sizes):
    """A model with its tokenizer."""
    MAKE[kind](**sizes).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(params=MAKE)
def adapter(request, tmp_path):
    """A trained adapter, beside the model `run` that it belongs to."""
    base = save_base(tmp_path / "run", request.param)
    targets = ["qkv_proj", "o_proj"] if request.param == "ours" else ["c_attn"]
    config = LoraConfig(r=2, target_modules=targets, lora_dropout=0.5, task_type="CAUSAL_LM")
    model = get_peft_model(MAKE[request.param](), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.5, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(tmp_path / "adapter")
    set_base(tmp_path / "adapter", str(base))
    return tmp_path / "adapter"


def set_base(adapter, base):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))


@torch.no_grad()
def test_an_adapter_is_measured_on_its_model(adapter):
    ids = random_ids(3, 20)
    base = loaded(adapter.parent / "run")
    expected = PeftModel.from_pretrained(base, adapter).eval()(ids).logits
    found = loaded(adapter)(ids).logits
    torch.testing.assert_close(found, expected)
    plain = loaded(adapter.parent / "run")(ids).logits
    assert (found - plain).abs().max() > 0.1


@pytest.mark.parametrize("base", ["../run", "run"])
def test_a_path_that_leads_nowhere_from_here_is_taken_from_the_adapter(adapter, monkeypatch, base):
    set_base(adapter, base)
    monkeypatch.chdir(adapter.parent if base == "run" else "/")
    assert Path(base_of_adapter(str(adapter))).resolve() == adapter.parent / "run"
    assert loaded(adapter).peft_config


def test_the_revision_of_a_model_on_the_hub_is_the_one_that_the_adapter_names(adapter):
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    for revision, name in ((None, "you/base"), ("step-500", "you/base@step-500")):
        change = {"base_model_name_or_path": "you/base", "revision": revision}
        path.write_text(json.dumps(config | change))
        assert base_of_adapter(str(adapter)) == name


def test_the_fingerprint_covers_the_adapter_and_its_model(adapter):
    run = adapter.parent / "run"
    before = checksums_of(str(adapter))
    assert {"adapter_config.json", "adapter_model.safetensors"} < {*before}
    assert {f"base/{name}" for name in checksums_of(str(run))} < {*before}
    assert model_code(str(adapter), trust_remote_code=False) == (
        model_code(str(run), trust_remote_code=False)
    )
    for file in (adapter / "adapter_model.safetensors", run / "model.safetensors"):
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        after = checksums_of(str(adapter))
        assert after != before
        before = after


def test_the_adapter_of_the_report_is_measured_on_a_model_of_its_size(tmp_path):
    if not CASE.is_dir():
        pytest.skip(f"needs {CASE}")
    shutil.copytree(CASE, tmp_path / "adapter")
    save_base(tmp_path / "run", n_embd=128, n_layer=4)
    base, model = loaded(tmp_path / "run"), loaded(tmp_path / "adapter")
    lora = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert len(lora) == 32
    assert type(model) is type(base)


def test_an_adapter_without_its_model_says_where_that_was_looked_for():
    if not CASE.is_dir():
        pytest.skip(f"needs {CASE}")
    assert problem(CASE) == (
        f"{CASE}/adapter_config.json: expected the adapter's model in ../run, found none relative "
        f"to the current directory or to the adapter; correct the path, or merge the adapter into "
        f"its model first (PeftModel.merge_and_unload)"
    )
    with pytest.raises(ValueError, match="expected the adapter's model"):
        checksums_of(str(CASE))


def test_trust_in_an_adapter_is_none_in_the_model_that_it_names(tmp_path, monkeypatch):
    base = save_base(tmp_path / "run", "stock")
    touched = add_hostile_code(base)
    spoil_config(base, {"model_type": "hostile"})
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    set_base(tmp_path / "adapter", str(base))
    with pytest.raises(ValueError, match="expected a model that transformers knows"):
        load_model(str(tmp_path / "adapter"), dtype="auto", trust_remote_code=True)
    assert not touched.exists()


def test_without_peft_an_adapter_is_refused_and_not_left_out(adapter, monkeypatch):
    monkeypatch.setattr(adapters, "is_peft_available", lambda: False)
    assert "pip install peft, or merge" in problem(adapter)


def test_an_adapter_beside_a_whole_model_is_put_on_neither(adapter):
    run = adapter.parent / "run"
    for file in adapter.iterdir():
        shutil.copy(file, run)
    line = (
        f"{run}: expected a model or an adapter, found both; move adapter_config.json away to take "
        f"the model, or model.safetensors to take the adapter on its own model"
    )
    assert problem(run) == line
    with pytest.raises(ValueError, match="found both"):
        checksums_of(str(run))
    (run / "adapter_config.json").rename(adapter.parent / "away.json")
    assert base_of_adapter(str(run)) is None
    (run / "model.safetensors").unlink()
    (adapter.parent / "away.json").rename(run / "adapter_config.json")
    set_base(run, "../other")
    other = adapter.parent / "other"
    other.mkdir()
    shutil.copy(run / "config.json", other)
    assert Path(base_of_adapter(str(run))).resolve() == other


@pytest.mark.parametrize("damage", ["cut", "empty", "Git-LFS pointer"])
def test_a_damaged_adapter_is_named(adapter, damage):
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(damaged(weights.read_bytes(), damage))
    assert problem(adapter).startswith(f"{weights}: expected a safetensors file, found ")


@pytest.mark.parametrize("sizes", [{"n_embd": 64}, {"n_layer": 1}], ids=str)
def test_an_adapter_of_another_model_is_refused(adapter, sizes):
    kind = "ours" if "c_attn" not in (adapter / "adapter_config.json").read_text() else "stock"
    set_base(adapter, str(save_base(adapter.parent / "other", kind, **sizes)))
    assert problem(adapter).startswith(f"expected the adapter {adapter} to fit ")
    set_base(
        adapter, str(save_base(adapter.parent / "kind", "stock" if kind == "ours" else "ours"))
    )
    assert "Target modules" in problem(adapter)


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        (
            LoraConfig(target_modules=["c_attn"], use_dora=True, task_type="CAUSAL_LM"),
            "; merge the adapter into its model first (PeftModel.merge_and_unload)",
        ),
        (
            PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
            "; leave it out: a prompt of trained vectors cannot be merged into a model",
        ),
    ],
    ids=["weights", "prompt"],
)
def test_an_adapter_that_only_peft_can_load_is_refused_with_what_to_do(tmp_path, config, remedy):
    base = save_base(tmp_path / "run", "stock")
    get_peft_model(tiny_stock_model(), config).save_pretrained(tmp_path / "adapter")
    set_base(tmp_path / "adapter", str(base))
    line = problem(tmp_path / "adapter")
    assert line.startswith(f"expected the adapter {tmp_path}/adapter to fit ")
    assert line.endswith(remedy)


@pytest.mark.parametrize("content", ["{}", "[", "[]", "null"])
def test_a_configuration_that_names_no_model_is_refused(adapter, content):
    (adapter / "adapter_config.json").write_text(content)
    line = problem(adapter)
    assert line.startswith(f"{adapter}/adapter_config.json: expected base_model_name_or_path")


def test_the_hub_is_asked_once_and_a_mistyped_directory_is_told_so_at_once(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    asked = []
    monkeypatch.setattr(adapters, "cached_file", lambda name, *_, **options: asked.append(name))
    for name in ("runs/nowhere", "runs/nowhere", "runs/quikstart", "someone/model", "model"):
        assert adapters.adapter_config(name) is None
    assert asked == ["runs/nowhere", "runs/quikstart", "someone/model", "model"]
    assert capsys.readouterr().err.splitlines() == [
        f"runs/nowhere: no directory of this name; asking {constants.ENDPOINT}",
        "runs/quikstart: no directory of this name (did you mean runs/quickstart?); "
        f"asking {constants.ENDPOINT}",
    ]
