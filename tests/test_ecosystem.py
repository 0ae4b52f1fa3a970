"""What others do with the model: train, adapt, offload, compile, export and evaluate it."""

import copy
import json
import math
import os
import sys

import onnxruntime
import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support.processes import run_process
from support.tiny_models import CORPUS, SIZES, random_ids, tiny_model, tiny_tokenizer, tiny_twins
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments, set_seed

from modeling_gpt2scratch import GPT2ScratchForCausalLM
from modeling_gpt2scratch.loading_gpt2scratch import CACHE_NAME

TASK = """
task: the_next_word
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{text}}"
doc_to_target: " {{word}}"
metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}]
"""


@pytest.fixture
def model(tmp_path) -> GPT2ScratchForCausalLM:
    """A model that was loaded from a stock gpt2 directory; all of its weights matter."""
    return tiny_twins(tmp_path / "stock")[0]


def logits_of(model) -> Tensor:
    with torch.no_grad():
        return model(random_ids(2, 16)).logits


def gradients_of(model, ids: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def assert_close(found, expected, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def assert_same_weights(model, expected, tolerance: float = 0.0) -> None:
    for (name, found), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, other, atol=tolerance, rtol=0, msg=name)


# The Trainer.


def rows(n_rows: int, first_id: int = 0) -> list[dict]:
    """Rows that use 30 tokens of the vocabulary and have unequal numbers of targets."""
    ids = random_ids(n_rows, 12) // 9 + first_id
    n_ignored = 3 * (torch.arange(n_rows) % 4)
    labels = ids.where(torch.arange(12) >= n_ignored[:, None], -100)
    return [{"input_ids": left, "labels": right} for left, right in zip(ids, labels, strict=True)]


def trained(model, directory, resume=None, eval_rows=None, **options) -> Trainer:
    """A Trainer after 4 steps of plain gradient descent, whose weights show every difference."""
    defaults = {"per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 0.1}
    defaults |= {"optim": "sgd", "lr_scheduler_type": "constant", "logging_steps": 1}
    defaults |= {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    arguments = TrainingArguments(str(directory), **defaults | options)
    set_seed(5)
    trainer = Trainer(model, arguments, train_dataset=rows(8), eval_dataset=eval_rows)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_trainer_reduces_the_loss(tmp_path):
    trainer = trained(tiny_model(), tmp_path, optim="adamw_torch", learning_rate=0.01)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert float(losses[0]) == pytest.approx(math.log(SIZES["vocab_size"]), abs=0.1)
    assert float(losses[-1]) < float(losses[0]) - 0.5


def test_trainers_label_smoothing_predicts_the_next_token(model, tmp_path):
    ids, labels = (torch.stack([row[name] for row in rows(8)]) for name in ("input_ids", "labels"))
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    expected = F.cross_entropy(logits, labels[:, 1:].flatten(), label_smoothing=0.1)
    options = {"per_device_train_batch_size": 8, "max_steps": 1, "label_smoothing_factor": 0.1}
    history = trained(model, tmp_path, **options).state.log_history
    assert history[0]["loss"] == pytest.approx(expected.item())


def test_trainer_accumulates_two_batches_of_two_as_one_of_four(model, tmp_path):
    start = copy.deepcopy(model)
    one = trained(copy.deepcopy(start), tmp_path).model
    halves = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    assert_same_weights(trained(model, tmp_path, **halves).model, one, tolerance=1e-6)
    assert (one.lm_head.weight - start.lm_head.weight).abs().max() > 1e-2


@pytest.mark.parametrize("origin", ["our own", "stock gpt2"])
def test_trainer_resumes_as_if_it_had_never_stopped(tmp_path, origin):
    def make() -> GPT2ScratchForCausalLM:
        dropout = {"resid_pdrop": 0.1, "attn_pdrop": 0.1}
        return tiny_model(**dropout) if origin == "our own" else tiny_twins(tmp_path, **dropout)[0]

    options = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "linear"}
    options |= {"optim": "adamw_torch", "learning_rate": 0.01}
    whole = trained(make(), tmp_path / "run", **options).model
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert "transformer.h.0.attn.qkv_proj.weight" in load_file(checkpoint / "model.safetensors")
    resumed = trained(make(), tmp_path / "resumed", resume=str(checkpoint), **options).model
    assert_same_weights(resumed, whole)


def test_trainer_loads_the_best_checkpoint_at_the_end(tmp_path):
    each = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    # The more it expects some tokens, the less it expects others.
    others = {"eval_rows": rows(4, first_id=100), "load_best_model_at_end": True}
    trainer = trained(tiny_model(), tmp_path, **each, **others)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.state.best_metric == min(losses) < losses[-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)


def adapted(model, target_modules) -> PeftModel:
    """The model with LoRA adapters that already do something."""
    torch.manual_seed(6)
    options = {"r": 2, "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    return get_peft_model(model, LoraConfig(target_modules=target_modules, **options))


@pytest.mark.parametrize("targets", ["all-linear", ["qkv_proj", "o_proj"]], ids=["all", "two"])
def test_lora_trains_its_adapters_alone_and_comes_back_and_merges(model, tmp_path, targets):
    base, ids = copy.deepcopy(model), random_ids(2, 16)
    peft = adapted(model, targets).train()
    before = {name: tensor.clone() for name, tensor in peft.named_parameters()}
    peft(ids, labels=ids).loss.backward()
    torch.optim.SGD(peft.parameters(), lr=0.1).step()
    changed = {name for name, now in peft.named_parameters() if not torch.equal(now, before[name])}
    n_projections = 4 if targets == "all-linear" else 2
    assert len(changed) == 2 * n_projections * SIZES["n_layer"]
    assert all("lora_" in name for name in changed)

    peft.eval().save_pretrained(tmp_path / "adapter")
    assert not torch.allclose(logits_of(peft), logits_of(base), atol=0.1)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert_close(logits_of(loaded), logits_of(peft), 1e-6)
    merged = loaded.merge_and_unload()
    assert type(merged) is GPT2ScratchForCausalLM
    assert_close(logits_of(merged), logits_of(peft))


def test_the_directory_of_an_adapter_loads_with_the_model_that_it_names(tmp_path):
    # A stock gpt2, whose layout is converted while the adapter's own weights are not.
    base, _ = tiny_twins(tmp_path / "stock")
    peft = adapted(copy.deepcopy(base), "all-linear").eval()
    peft.peft_config["default"].base_model_name_or_path = str(tmp_path / "stock")
    peft.save_pretrained(tmp_path / "adapter")
    loaded = GPT2ScratchForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert_close(logits_of(loaded), logits_of(peft), 1e-6)
    assert not torch.allclose(logits_of(loaded), logits_of(base), atol=0.1)
    weights = tmp_path / "stock" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["transformer.h.0.mlp.c_fc.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"found none for transformer\.h\.0\.mlp\.up_proj\.weight;"
    ):
        GPT2ScratchForCausalLM.from_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_learned_prompts_train_and_generate(model, kind):
    peft = get_peft_model(model, kind(task_type="CAUSAL_LM", num_virtual_tokens=3))
    ids = random_ids(2, 8)
    peft(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
    trained = [parameter for parameter in peft.parameters() if parameter.requires_grad]
    assert trained and all(parameter.grad.any() for parameter in trained)
    prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    options = prompt | {"max_new_tokens": 4, "min_new_tokens": 4}
    if kind is PrefixTuningConfig and CACHE_NAME == "cache":
        # PEFT 0.21 gives its prefix by the old name, and transformers' own models pass over it.
        with pytest.raises(ValueError, match="expected past_key_values or cache, found both"):
            peft.eval().generate(**options)
        return
    assert peft.eval().generate(**options).shape == (2, 12)


def test_an_adapter_on_the_head_takes_part_in_the_loss_of_shifted_labels(model):
    ids = random_ids(2, 17)
    without = model(ids, labels=ids).loss
    peft = adapted(model, ["lm_head"]).train()
    loss = peft(ids[:, :-1], shift_labels=ids[:, 1:]).loss
    loss.backward()
    assert_close(loss, peft(ids, labels=ids).loss)
    assert abs(loss - without) > 0.01
    adapters = [parameter for parameter in peft.parameters() if parameter.requires_grad]
    assert len(adapters) == 2 and all(adapter.grad.any() for adapter in adapters)


# accelerate: some weights stay on disk until they are needed.

ON_CPU = ("transformer.wpe", "transformer.embd_dropout", "transformer.h.0", "transformer.ln_f")
ON_DISK = ("transformer.wte", "transformer.h.1", "lm_head")
SPREAD = dict.fromkeys(ON_CPU, "cpu") | dict.fromkeys(ON_DISK, "disk")
DEVICE_MAPS = {
    "auto": {"device_map": "auto", "max_memory": {"cpu": "1GB"}},
    "auto in little memory": {"device_map": "auto", "max_memory": {"cpu": "100KB"}},
    "embeddings and head on disk": {"device_map": SPREAD},
}


@pytest.mark.parametrize("name", DEVICE_MAPS)
def test_weights_on_disk_give_the_same_logits_loss_and_tokens(model, tmp_path, name):
    model.save_pretrained(tmp_path / "saved")
    spread = GPT2ScratchForCausalLM.from_pretrained(
        tmp_path / "saved", offload_folder=tmp_path / "disk", **DEVICE_MAPS[name]
    )
    assert any(parameter.is_meta for parameter in spread.parameters()) == (name != "auto")
    assert not any(".ln_1" in part for part in getattr(spread, "hf_device_map", ()))  # whole blocks
    assert torch.equal(logits_of(spread), logits_of(model))
    ids = random_ids(2, 17)
    batch = {"input_ids": ids[:, :-1], "shift_labels": ids[:, 1:]}
    with torch.no_grad():
        assert_close(spread(**batch).loss, model(**batch).loss)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 9}
    assert torch.equal(spread.generate(ids, **options), model.generate(ids, **options))


# torch.compile, torch.export, ONNX.


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_compiled_training_equals_eager_and_compiles_once(model, checkpointing):
    torch._dynamo.reset()
    counters.clear()
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        ids = random_ids(2, 16, seed=seed)
        assert_close(gradients_of(compiled, ids), gradients_of(model, ids))
    assert counters["stats"]["unique_graphs"] == 1


def test_compiled_logits_and_cache_equal_eager_ones(model):
    torch._dynamo.reset()
    ids = random_ids(2, 16)
    with torch.no_grad():
        expected = model(ids)
        found = torch.compile(model, fullgraph=True, backend="aot_eager")(ids)
    assert_close(found.logits, expected.logits)
    for left, right in zip(found.past_key_values, expected.past_key_values, strict=True):
        assert_close(left[:2], right[:2])


def exportable(model) -> tuple[dict, dict]:
    """Example arguments, and the shapes that may change; the model will give its logits alone."""
    model.config.use_cache = False
    example = {"input_ids": random_ids(2, 16), "attention_mask": torch.ones(2, 16).long()}
    sizes = torch.export.Dim("batch"), torch.export.Dim("tokens", min=2, max=SIZES["n_positions"])
    return example, {name: dict(enumerate(sizes)) for name in example}


def padded_batch(n_rows: int, n_tokens: int) -> dict[str, Tensor]:
    """Rows of which the last begins with a token of padding."""
    mask = torch.ones(n_rows, n_tokens).long()
    mask[-1, 0] = 0
    return {"input_ids": random_ids(n_rows, n_tokens), "attention_mask": mask}


@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
def test_an_exported_program_takes_other_shapes(model, strict):
    example, shapes = exportable(model)
    program = torch.export.export(model, (), example, dynamic_shapes=shapes, strict=strict).module()
    for batch in (padded_batch(3, 48), padded_batch(1, 2)):
        assert_close(program(**batch).logits, model(**batch).logits)


@pytest.mark.slow
def test_onnxruntime_gives_the_same_logits_for_other_shapes(model, tmp_path):
    example, shapes = exportable(model)
    options = {"dynamic_shapes": shapes, "output_names": ["logits"], "dynamo": True}
    torch.onnx.export(model, (), tmp_path / "model.onnx", kwargs=example, **options, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch in (padded_batch(3, 48), padded_batch(1, 2)):
        inputs = {name: tensor.numpy() for name, tensor in batch.items()}
        (found,) = session.run(["logits"], inputs)
        is_token = batch["attention_mask"].bool()  # what padding predicts does not matter
        assert_close(torch.from_numpy(found)[is_token], model(**batch).logits[is_token], 1e-5)


@pytest.mark.gate
def test_the_lm_eval_command_scores_a_checkpoint_without_the_package(model, tmp_path):
    tokenizer = tiny_tokenizer()
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "model")
    context, word = CORPUS[0].removesuffix(" cat."), "cat"
    files = {
        "rows.jsonl": json.dumps({"text": context, "word": word}),
        "tasks/the_next_word.yaml": TASK,
        "hidden/modeling_gpt2scratch.py": "raise ModuleNotFoundError('not on this machine')",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    environment = {"PYTHONPATH": "hidden", "HF_HOME": "home", "HF_HUB_OFFLINE": "1"}
    command = "-m lm_eval --model hf --model_args pretrained=model,trust_remote_code=True"
    command += " --tasks the_next_word --include_path tasks --device cpu --output_path ."
    environment = os.environ | environment
    process = run_process([sys.executable, *command.split()], cwd=tmp_path, env=environment)
    assert process.returncode == 0, process.stderr[-3000:]
    assert "|the_next_word|" in process.stdout
    (results,) = tmp_path.rglob("results_*.json")
    found = json.loads(results.read_text())["results"]["the_next_word"]["perplexity,none"]
    ids = torch.tensor([tokenizer(f"{context} {word}")["input_ids"]])  # the word is one token
    expected = model(ids[:, :-1]).logits[0, -1].softmax(-1)[ids[0, -1]]
    assert found == pytest.approx(1 / expected.item(), rel=1e-4)


# Weights: resized, initialized late, in other types, copied.


@pytest.mark.parametrize("n_rows", [320, 200])
def test_resized_embeddings_stay_tied_and_keep_their_rows(model, n_rows):
    ids, n_kept = random_ids(2, 17).clamp(max=199), min(n_rows, SIZES["vocab_size"])
    expected = model(ids).logits[..., :n_kept]
    model.resize_token_embeddings(n_rows)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.config.vocab_size == model.lm_head.out_features == n_rows
    found = model(ids, labels=ids)
    assert found.logits.shape == (2, 17, n_rows)
    assert_close(found.logits[..., :n_kept], expected, 1e-6)
    assert_close(model(ids[:, :-1], shift_labels=ids[:, 1:]).loss, found.loss)


def test_weights_made_on_the_meta_device_are_initialized_as_others():
    with torch.device("meta"):
        model = tiny_model(n_embd=128, n_layer=8)
    model.to_empty(device="cpu").init_weights()
    assert model.lm_head.weight is model.transformer.wte.weight
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            is_scale = "ln_" in name and name.endswith("weight")
            assert torch.all(parameter == float(is_scale)), name
        else:
            is_residual = "o_proj" in name or "down_proj" in name
            std = 0.02 / math.sqrt(2 * 8) if is_residual else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.03), name


def test_bfloat16_weights_stay_so_and_can_be_loaded_as_float32(model, tmp_path):
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    for options, dtype in (({}, torch.bfloat16), ({"dtype": torch.float32}, torch.float32)):
        loaded = GPT2ScratchForCausalLM.from_pretrained(tmp_path / "half", **options).eval()
        assert {tensor.dtype for tensor in loaded.state_dict().values()} == {dtype}
        assert torch.equal(logits_of(loaded), logits_of(copy.deepcopy(model).to(dtype)))


def test_a_row_has_the_same_logits_alone_and_in_a_batch(model):
    ids = random_ids(5, 20)
    with torch.no_grad():
        alone = torch.cat([model(row[None]).logits for row in ids])
        assert_close(model(ids).logits, alone, 1e-5)


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["saved tensors", "reentrant"])
def test_gradient_checkpointing_runs_blocks_twice_for_the_same_gradients(tmp_path, use_reentrant):
    model, calls = tiny_twins(tmp_path, resid_pdrop=0.2, attn_pdrop=0.2)[0].train(), []
    model.transformer.h[1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    torch.manual_seed(7)
    expected = gradients_of(model, random_ids(2, 16))
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    torch.manual_seed(7)
    assert_close(gradients_of(model, random_ids(2, 16)), expected, 1e-6)
    assert len(calls) == 1 + 2


def test_copies_and_plain_state_dicts_hold_the_whole_model(model, tmp_path):
    copied, expected = copy.deepcopy(model), logits_of(model)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    torch._foreach_zero_(list(model.state_dict().values()))
    assert copied.lm_head.weight is copied.transformer.wte.weight
    assert torch.equal(logits_of(copied), expected)
    fresh = tiny_model()
    fresh.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(logits_of(fresh), expected)
