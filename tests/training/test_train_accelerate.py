"""Whole training runs: what they leave behind, and one line for what is wrong."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from support.evaluation import compare
from support.paths import REPOSITORY
from support.tiny_models import tiny_model
from support.training_runs import curve, flags, launch, refusal, run_here
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_gpt2scratch import GPT2ScratchForCausalLM
from modeling_gpt2scratch.data.loading.loader import TokenWindows
from modeling_gpt2scratch.data.shards.format import HEADER_BYTES
from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.hardware import compilation
from modeling_gpt2scratch.hardware.devices import peak_memory
from modeling_gpt2scratch.tracking.metrics import read_metrics
from modeling_gpt2scratch.training import loop
from modeling_gpt2scratch.training.validation import validation_loss


@pytest.mark.parametrize("n_windows", [1, 5, 8])
def test_a_validation_in_batches_of_one_shape_has_the_same_loss(small_data, n_windows):
    windows = TokenWindows(small_data, "val", sequence_length=16)
    model, shapes = tiny_model(vocab_size=windows.vocab_size), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    options = {"n_windows": n_windows, "batch_size": 4}
    expected = validation_loss(model, windows, Accelerator(cpu=True), **options)
    shapes.clear()
    found = validation_loss(model, windows, Accelerator(cpu=True), is_filled=True, **options)
    assert found == pytest.approx(expected, rel=1e-6) and {*shapes} == {(4, 16)}


@pytest.mark.slow
def test_a_run_leaves_what_transformers_trainer_leaves(finished, small_data):
    names = {path.name for path in finished.iterdir()}
    assert {"checkpoint-4", "checkpoint-8", "checkpoint-12", "config.json"} <= names
    assert {"model.safetensors", "metrics.jsonl", "train_config.json", "tokenizer.json"} <= names
    manifest = (small_data / "manifest.json").read_bytes()
    assert (finished / "data_manifest.json").read_bytes() == manifest
    environment = json.loads((finished / "environment.json").read_text())
    assert (environment["device"], environment["torch"]) == ("cpu", torch.__version__)
    assert not [name for name in names if name.startswith(".")]
    for directory in (finished, finished / "checkpoint-4"):
        model = AutoModelForCausalLM.from_pretrained(directory)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        assert model.config.vocab_size == len(tokenizer) == Manifest.load(small_data).vocab_size
        assert tokenizer.model_max_length == 32
    config = json.loads((finished / "train_config.json").read_text())
    assert (config["max_steps"], config["warmup_steps"], config["min_learning_rate"]) == (
        *(12, 0, 0.001),
    )


@pytest.mark.gate
def test_a_run_needs_nobody_who_reads_its_messages(small_data, tmp_path):
    arguments = flags(small_data, tmp_path / "run", max_steps=2, eval_every=0, save_every=2)
    command = [sys.executable, "train_accelerate.py", *arguments]
    shell = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *command]
    assert subprocess.run(shell, cwd=REPOSITORY).returncode == 0
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    assert (tmp_path / "run" / "report.md").exists()


@pytest.mark.slow
def test_each_logged_step_is_a_line_of_metrics(finished):
    metrics = read_metrics(finished / "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(1, 13))
    expected = {"step", "loss", "learning_rate", "grad_norm", "tokens", "elapsed_seconds"}
    expected |= {"tokens_per_second", "data_wait", *peak_memory(torch.device("cpu"))}
    for row in metrics:
        evaluated = {"eval_loss", "sample"} if row["step"] in (6, 12) else set()
        saved = {"save_stall_seconds"} if row["step"] in (4, 8, 12) else set()
        assert row.keys() == expected | evaluated | saved
        assert row["tokens"] == 512 * row["step"]
    assert metrics[0]["loss"] == pytest.approx(np.log(300), abs=0.1)
    assert metrics[-1]["eval_loss"] < metrics[5]["eval_loss"] < metrics[0]["loss"]


def test_a_line_of_the_log_says_each_value_once_and_shares_in_percent(
    small_data, tmp_path, monkeypatch, capsys
):
    arguments = flags(small_data, tmp_path / "run", max_steps=4, eval_every=2)
    assert run_here(monkeypatch, *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    logged = [line for line in lines if re.match(r"step \d+: ", line)]
    assert [line.partition(":")[0] for line in logged] == [f"step {n}" for n in range(1, 5)]
    for row, line in zip(rows, logged, strict=True):
        assert f"data_wait {row['data_wait']:.1%}" in line
    losses = [f"eval_loss {row['eval_loss']:.4f}" for row in rows if "eval_loss" in row]
    assert [line.rpartition(", ")[2] for line in lines if "eval_loss" in line] == losses
    assert sum(line.endswith(", sample:") for line in lines) == len(losses) == 2


@pytest.mark.gate
def test_validation_loss_is_the_one_that_compare_measures(small_data, tmp_path, monkeypatch):
    output_dir = tmp_path / "whole_split"
    arguments = flags(small_data, output_dir, max_steps=2, eval_tokens=10**9, dropout=0)
    assert run_here(monkeypatch, *arguments) == 0
    measuring = ["--models", str(output_dir), "--tasks", "val", "--val_data", str(small_data)]
    assert compare.main(measuring) == 0
    models = json.loads((output_dir / "results.json").read_text())["models"]
    measured = models[str(output_dir)]["results"]["val"]["loss,none"]
    expected = read_metrics(output_dir / "metrics.jsonl")[-1]["eval_loss"]
    assert measured == pytest.approx(expected, abs=1e-5)


def test_what_was_not_compiled_is_not_recorded_as_compiled(small_data, tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "missing_for_compilation", lambda device: "C++ compiler")
    options = {"max_steps": 2, "eval_every": 0, "save_every": 2, "compile": "model"}
    assert run_here(monkeypatch, *flags(small_data, tmp_path / "run", **options)) == 0
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "training_state.json").read_text())
    record = json.loads((tmp_path / "run" / "train_config.json").read_text())
    assert record["compile"] == state["config"]["compile"] == "no"


@pytest.mark.gate
def test_a_compiled_model_is_saved_under_its_own_names(small_data, tmp_path, monkeypatch):
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on the CPU, and there is no g++")
    options = {"n_layer": 1, "max_steps": 2, "eval_every": 0, "dropout": 0}
    output_dir, eager = tmp_path / "compiled", tmp_path / "eager"
    process = launch(*flags(small_data, output_dir, **options, compile="model", strict=True))
    assert process.returncode == 0, process.stderr
    assert run_here(monkeypatch, *flags(small_data, eager, **options)) == 0
    assert curve(output_dir)[2] == pytest.approx(curve(eager)[2], abs=1e-4)
    names = load_file(output_dir / "model.safetensors").keys()
    assert names == load_file(eager / "model.safetensors").keys()
    assert GPT2ScratchForCausalLM.from_pretrained(output_dir).num_parameters() > 0


@pytest.mark.parametrize(("given", "found"), [("0", "0"), ("", ""), (None, "1")])
def test_memory_is_taken_in_huge_pages_unless_the_user_says_no(tmp_path, monkeypatch, given, found):
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    if given is not None:
        monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", given)
    assert run_here(monkeypatch, *flags(tmp_path / "none", tmp_path / "run")) == 1
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == found


@pytest.mark.gate
def test_wandb_in_offline_mode_logs_beside_the_jsonl(small_data, tmp_path):
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    output_dir = tmp_path / "tracked"
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_API_KEY": "k" * 40}
    arguments = flags(small_data, output_dir, max_steps=2, report_to="wandb")
    process = launch(*arguments, env=environment)
    assert process.returncode == 0, process.stderr
    assert len(list(output_dir.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert len(curve(output_dir)) == 2
    for file in output_dir.glob("*.json*"):
        assert "k" * 40 not in file.read_text()


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (
            {"total_batch_tokens": 544},
            *(2, "32 x 4 x 1 = 128, found 544; --micro_batch_size can be 1. In a new run, "),
        ),
        ({"micro_batch_size": 32}, 2, "found 512; --micro_batch_size can be 16. In a new run, "),
        ({"micro_batch_size": 10**11}, 2, "found 512; --micro_batch_size can be 16. In a new"),
        ({"micro_batch_size": 6}, 2, "found 512; --micro_batch_size can be 4. In a new run, --"),
        ({"n_head": 3}, 2, "--n_embd, --n_head: expected n_embd divisible by n_head = 3, found 32"),
        ({"data": "README.md"}, 1, "README.md: expected a directory of shards, found a file"),
        ({"data": "nowhere"}, 1, "nowhere: expected a directory with manifest.json"),
        ({"resume": "nowhere"}, 1, "nowhere: expected a complete checkpoint, found none"),
        (
            {"n_positions": 16_384, "total_batch_tokens": 65_536},
            *(1, "expected more than 16384 tokens in split 'val'"),
        ),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(
    small_data, tmp_path, monkeypatch, capsys, changes, code, message
):
    arguments = flags(small_data, tmp_path / "run", **changes)
    found_code, error = refusal(monkeypatch, capsys, *arguments)
    assert found_code == code and message in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-2], "copy it again, or write it again"),
        (
            lambda content: b"\0" + content[1:],
            "header with magic 20240520 or 20240801, found 20240384",
        ),
        (lambda content: content[:-2] + b"\xff\xff", "expected ids below 300, found 65535"),
    ],
    ids=["truncated", "magic", "id beyond the vocabulary"],
)
def test_a_damaged_shard_is_refused_by_name(
    small_data, tmp_path, monkeypatch, capsys, damage, message
):
    data = shutil.copytree(small_data, tmp_path / "data")
    shard = data / "train_000001.bin"
    assert shard.stat().st_size > HEADER_BYTES
    shard.write_bytes(damage(shard.read_bytes()))
    code, error = refusal(monkeypatch, capsys, *flags(data, tmp_path / "run", verify="full"))
    assert code == 1 and str(shard) in error and message in error
    assert not (tmp_path / "run").exists()


def test_memory_that_gives_out_later_is_one_line_with_what_to_do(
    small_data, tmp_path, monkeypatch, capsys
):
    def train_step(run, *others):
        if run.progress.step == 1:  # the optimizer's moments are there now
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return original(run, *others)

    original = loop.train_step
    monkeypatch.setattr(loop, "train_step", train_step)
    arguments = flags(small_data, tmp_path / "run", micro_batch_size=4)
    code, error = refusal(monkeypatch, capsys, *arguments)
    assert code == 2 and "found CUDA out of memory. Tried" in error
    assert error.endswith("; give a --micro_batch_size below 4")


def test_a_lost_loss_stops_the_run_before_it_saves(small_data, tmp_path, monkeypatch, capsys):
    # Each step multiplies the weights by -9, until float32 has no number for them.
    steps = {"learning_rate": 1, "weight_decay": 10, "max_steps": 60, "save_every": 15}
    arguments = flags(small_data, tmp_path / "run", eval_every=0, **steps)
    code, error = refusal(monkeypatch, capsys, *arguments)
    assert code == 1 and "expected a finite" in error
    saved = [*(tmp_path / "run").glob("checkpoint-*/model.safetensors")]
    assert saved
    for weights in saved:
        assert all(torch.isfinite(tensor).all() for tensor in load_file(weights).values())


def test_a_finished_run_whose_best_weights_are_not_known_keeps_its_result(
    small_data, tmp_path, monkeypatch, capsys
):
    def validate(run, **options):
        return {"eval_loss": 1.0 + run.progress.step}  # so the first is the best

    monkeypatch.setattr(loop, "validate", validate)
    options = {"max_steps": 4, "eval_every": 1, "save_every": 4, "final": "best"}
    arguments = flags(small_data, tmp_path / "other", **options)
    assert run_here(monkeypatch, *arguments) == 0
    lost = shutil.copytree(tmp_path / "other", tmp_path / "lost")
    shutil.rmtree(lost / "checkpoint-1")
    last = flags(small_data, tmp_path / "last", **options | {"final": "last"})
    assert run_here(monkeypatch, *last) == 0
    tired = ("--patience", "2", "--max_steps", "9")
    assert run_here(monkeypatch, *arguments, *tired, "--output_dir", str(tmp_path / "tired")) == 0

    other = ("--eval_tokens", "1024")
    for name, more in (("other", other), ("tired", tired + other), ("last", ()), ("lost", ())):
        output_dir = tmp_path / name
        files = [output_dir / "model.safetensors", output_dir / "train_config.json"]
        before = [path.read_bytes() for path in files]
        resumed = ["--output_dir", str(output_dir), "--resume", "auto", *more]
        capsys.readouterr()
        assert run_here(monkeypatch, *arguments, *resumed) == 1
        reason = f"no checkpoint of that step is in {output_dir}"
        reason = "losses with another --eval_tokens cannot be compared" if more else reason
        said = capsys.readouterr()
        assert f"the best validation so far (step 1) no longer counts: {reason}" in said.out
        assert "expected the checkpoint of a validation for --final best" in said.err
        assert [path.read_bytes() for path in files] == before
    assert run_here(monkeypatch, *arguments, *resumed, "--final", "last") == 0
