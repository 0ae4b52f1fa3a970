"""Whole training runs: same curve everywhere, exact resumption, and one line for what is wrong."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.paths import REPOSITORY
from support.processes import PATIENCE, started, wait_until
from support.training_runs import curve, flags, launch, launcher_of, refusal, run_here
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_gpt2scratch.data.shards.format import HEADER_BYTES
from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.distributed import accelerator
from modeling_gpt2scratch.distributed.processes import LaunchError
from modeling_gpt2scratch.hardware.devices import peak_memory
from modeling_gpt2scratch.tracking.metrics import read_metrics
from modeling_gpt2scratch.training.directory import OutputLock


@pytest.fixture(scope="module")
def finished(small_data, tmp_path_factory) -> Path:
    """The directory of an uninterrupted run."""
    output_dir = tmp_path_factory.mktemp("runs") / "finished"
    process = launch(*flags(small_data, output_dir))
    assert process.returncode == 0, process.stderr
    return output_dir


@pytest.fixture
def run_copy(finished, tmp_path) -> Path:
    """A copy of the finished run as it was after step 8."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "checkpoint-12")
    return copy


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


@pytest.mark.gate
def test_one_and_two_processes_have_the_same_curve(small_data, tmp_path):
    outputs = {}
    for config in ("cpu.yaml", "cpu_2proc.yaml"):
        output_dir = tmp_path / config
        # Each process draws its own dropout, so only without it can the curves agree.
        arguments = flags(small_data, output_dir, dropout=0, save_every=0)
        process = launch(*arguments, config=config)
        assert process.returncode == 0, process.stderr
        outputs[config] = process.stdout
        n_processes = 2 if "2proc" in config else 1
        assert f"processes        {n_processes} " in process.stdout
        assert process.stdout.count("finished:") == 1
    one, two = (read_metrics(tmp_path / config / "metrics.jsonl") for config in outputs)
    assert len(one) == len(two) == 12
    for left, right in zip(one, two, strict=True):
        assert left["learning_rate"] == right["learning_rate"]
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-4)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)
    assert one[-1]["eval_loss"] == pytest.approx(two[-1]["eval_loss"], abs=1e-4)


@pytest.mark.gate
def test_a_killed_and_resumed_run_is_the_uninterrupted_one(finished, small_data, tmp_path):
    output_dir = tmp_path / "killed"
    arguments = flags(small_data, output_dir)
    with started([sys.executable, "train_accelerate.py", *arguments], cwd=REPOSITORY) as process:
        # Beyond checkpoint-4, before checkpoint-8.
        wait_until(lambda: max(curve(output_dir), default=0) >= 6, process)
        process.kill()
    assert not (output_dir / "model.safetensors").exists()

    resumed = launch(*arguments, "--resume", "auto")
    assert resumed.returncode == 0, resumed.stderr
    assert curve(output_dir) == curve(finished)
    for name in ("model.safetensors", "checkpoint-12/optimizer.safetensors"):
        left, right = load_file(output_dir / name), load_file(finished / name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.gate
def test_two_processes_continue_what_one_began(small_data, tmp_path, monkeypatch):
    whole, handed_over = tmp_path / "whole", tmp_path / "handed_over"
    options = {"dropout": 0, "save_every": 6}
    assert run_here(monkeypatch, *flags(small_data, whole, **options)) == 0
    shutil.copytree(whole / "checkpoint-6", handed_over / "checkpoint-6")
    shutil.copy(whole / "train_config.json", handed_over)
    arguments = flags(small_data, handed_over, **options, resume="auto")
    process = launch(*arguments, config="cpu_2proc.yaml")
    assert process.returncode == 0, process.stderr
    expected = curve(whole)
    assert curve(handed_over).keys() == set(range(7, 13))
    for step, (loss, grad_norm) in curve(handed_over).items():
        assert loss == pytest.approx(expected[step][0], abs=1e-4)
        assert grad_norm == pytest.approx(expected[step][1], rel=1e-3)


@pytest.mark.gate
@pytest.mark.parametrize(
    ("launcher", "code"),
    # torchrun calls every signal a failure, even if its processes ended well.
    [([], 0), (launcher_of("cpu_2proc.yaml"), 1)],
    ids=["one process", "two processes"],
)
def test_sigterm_finishes_the_step_saves_and_exits(small_data, tmp_path, launcher, code):
    output_dir = tmp_path / "stopped"
    arguments = flags(small_data, output_dir, max_steps=100_000, eval_every=0, save_every=0)
    command = [sys.executable, *launcher, "train_accelerate.py", *arguments]
    with started(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
        wait_until(lambda: len(curve(output_dir)) >= 3, process)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    last = max(curve(output_dir))
    assert f"stopped after step {last}; continue with --resume auto" in output
    assert (output_dir / f"checkpoint-{last}" / "training_state.json").exists()
    assert not (output_dir / "model.safetensors").exists()


@pytest.mark.slow
def test_validation_loss_is_the_one_that_compare_measures(finished, small_data, tmp_path):
    output_dir = tmp_path / "whole_split"
    arguments = flags(small_data, output_dir, max_steps=2, eval_tokens=10**9, dropout=0)
    assert launch(*arguments).returncode == 0
    command = ["evaluate/compare.py", "--models", str(output_dir), "--tasks", "val"]
    subprocess.run(
        [sys.executable, *command, "--val_data", str(small_data)], cwd=REPOSITORY, check=True
    )
    models = json.loads((output_dir / "results.json").read_text())["models"]
    measured = models[str(output_dir)]["results"]["val"]["loss,none"]
    expected = read_metrics(output_dir / "metrics.jsonl")[-1]["eval_loss"]
    assert measured == pytest.approx(expected, abs=1e-5)


@pytest.mark.gate
def test_a_compiled_model_is_saved_under_its_own_names(small_data, tmp_path, monkeypatch):
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on the CPU, and there is no g++")
    options = {"n_layer": 1, "max_steps": 2, "eval_every": 0, "dropout": 0}
    output_dir, eager = tmp_path / "compiled", tmp_path / "eager"
    process = launch(*flags(small_data, output_dir, **options, compile="model"))
    assert process.returncode == 0, process.stderr
    assert run_here(monkeypatch, *flags(small_data, eager, **options)) == 0
    assert curve(output_dir)[2] == pytest.approx(curve(eager)[2], abs=1e-4)
    names = load_file(output_dir / "model.safetensors").keys()
    assert names == load_file(eager / "model.safetensors").keys()


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


@pytest.mark.gate
def test_a_full_disk_ends_in_one_line_with_the_last_checkpoint_intact(run_copy, small_data):
    # A file-size limit between the weights and the optimizer's state stands in for the disk.
    n_bytes = (run_copy / "model.safetensors").stat().st_size + 20_000
    assert n_bytes < (run_copy / "checkpoint-8" / "optimizer.safetensors").stat().st_size

    def limit_file_size():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

    # The rehearsal would find out before the first step.
    arguments = flags(small_data, run_copy, resume="auto", preflight=False)
    process = launch(*arguments, preexec_fn=limit_file_size)
    assert process.returncode == 1
    errors = [line for line in process.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1 and "checkpoint-12" in errors[0] and "large" in errors[0]
    assert not list(run_copy.glob(".*")) and not (run_copy / "checkpoint-12").exists()
    assert launch(*arguments).returncode == 0
    assert (run_copy / "checkpoint-12").exists()


def test_a_finished_run_is_not_trained_on(finished, small_data, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    assert run_here(monkeypatch, *flags(small_data, copy, resume="auto")) == 0
    assert curve(copy) == curve(finished)


def test_resume_auto_starts_a_run_that_has_no_checkpoint_yet(small_data, tmp_path, monkeypatch):
    arguments = flags(small_data, tmp_path / "new", resume="auto", max_steps=1)
    assert run_here(monkeypatch, *arguments) == 0
    assert len(curve(tmp_path / "new")) == 1


def test_another_directory_can_continue_from_a_checkpoint(
    finished, small_data, tmp_path, monkeypatch
):
    branch = tmp_path / "branch"
    arguments = flags(small_data, branch, resume=finished / "checkpoint-8")
    assert run_here(monkeypatch, *arguments) == 0
    assert curve(branch) == {step: curve(finished)[step] for step in range(9, 13)}


def test_overwrite_with_a_foreign_checkpoint_leaves_nothing_of_the_old_run(
    finished, run_copy, small_data, monkeypatch
):
    # `run_copy` is to become a branch of `finished`.
    arguments = flags(small_data, run_copy, resume=finished / "checkpoint-8", save_every=0)
    assert run_here(monkeypatch, *arguments, "--overwrite") == 0
    assert [path.name for path in run_copy.glob("checkpoint-*")] == ["checkpoint-12"]
    assert curve(run_copy).keys() == set(range(9, 13))


def test_overwrite_replaces_a_run_and_nothing_else(
    run_copy, small_data, tmp_path, monkeypatch, capsys
):
    arguments = flags(small_data, run_copy, max_steps=1)
    code, error = refusal(monkeypatch, capsys, *arguments)
    assert code == 2 and "found train_config.json in" in error and "--overwrite" in error
    assert run_here(monkeypatch, *arguments, "--overwrite") == 0
    assert sorted(path.name for path in run_copy.glob("checkpoint-*")) == ["checkpoint-1"]
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    arguments = flags(small_data, other, max_steps=1)
    code, error = refusal(monkeypatch, capsys, *arguments, "--overwrite")
    assert code == 2 and "found other content" in error


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"total_batch_tokens": 544}, 2, "32 x 4 x 1 = 128, found 544; the nearest is 512"),
        ({"micro_batch_size": 32}, 2, "found 512; --micro_batch_size can be 16 at most"),
        ({"sequence_length": 33}, 2, "of at most n_positions = 32, found 33"),
        ({"n_head": 3}, 2, "--n_embd, --n_head: expected n_embd divisible by n_head = 3, found 32"),
        ({"warmup_steps": 12}, 2, "expected warmup_steps below max_steps = 12, found 12"),
        ({"min_learning_rate": 1}, 2, "of at most learning_rate = 0.01, found 1.0"),
        ({"learning_rate": "nan"}, 2, "--learning_rate: expected a number above 0, found nan"),
        ({"dropout": 1}, 2, "--dropout: expected dropout below 1, found 1.0"),
        ({"model": "gpt3"}, 2, "gpt2-xl', found 'gpt3'"),
        ({"lr": 1}, 2, "unknown flag --lr; did you mean --learning_rate?"),
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
        (lambda content: content[:-2], "the file is truncated or was replaced"),
        (lambda content: b"\0" + content[1:], "expected a shard with magic 20240520"),
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


def test_a_checkpoint_is_not_continued_on_data_of_another_tokenizer(
    run_copy, small_data, tmp_path, monkeypatch, capsys
):
    data = shutil.copytree(small_data, tmp_path / "data")
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["tokenizer"]["fingerprint"] = "0" * 64
    (data / "manifest.json").write_text(json.dumps(manifest))
    code, error = refusal(monkeypatch, capsys, *flags(data, run_copy, resume="auto"))
    assert code == 1 and "expected tokenizer.fingerprint = " in error
    # Without a checkpoint, the tokenizer's own files give the swap away.
    code, error = refusal(monkeypatch, capsys, *flags(data, tmp_path / "new"))
    assert code == 1 and "expected the tokenizer that made the shards" in error


def test_a_resumed_run_may_not_end_before_its_checkpoint(run_copy, small_data, monkeypatch, capsys):
    arguments = flags(small_data, run_copy, resume="auto", max_steps=5)
    code, error = refusal(monkeypatch, capsys, *arguments)
    assert code == 2 and "expected --max_steps of at least 8" in error


def test_a_lost_loss_stops_the_run_before_it_saves(small_data, tmp_path, monkeypatch, capsys):
    # Each step multiplies the weights by -9, until float32 has no number for them.
    steps = {"learning_rate": 1, "weight_decay": 10, "max_steps": 60, "save_every": 15}
    arguments = flags(small_data, tmp_path / "run", eval_every=0, **steps)
    code, error = refusal(monkeypatch, capsys, *arguments)
    assert code == 1 and "expected a finite" in error
    for weights in (tmp_path / "run").glob("checkpoint-*/model.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(weights).values())


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch, tmp_path):
    class Alone:
        num_processes = 1

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(accelerator, "Accelerator", lambda **options: Alone())
    with pytest.raises(LaunchError, match="expected the 2 processes .* found 1"):
        accelerator.make_accelerator(
            mixed_precision="no", project_dir=str(tmp_path), timeout_minutes=1.0
        )


def test_a_directory_in_which_a_run_is_going_on_is_refused(
    run_copy, small_data, monkeypatch, capsys
):
    lock = OutputLock(run_copy)
    lock.acquire()
    for more in ({"resume": "auto"}, {"overwrite": True}):
        arguments = flags(small_data, run_copy, **more)
        code, error = refusal(monkeypatch, capsys, *arguments)
        assert code == 2 and "found one that is still going on; wait for it" in error
    assert (run_copy / "checkpoint-8" / "model.safetensors").exists()
    lock.close()
    assert run_here(monkeypatch, *flags(small_data, run_copy, resume="auto")) == 0
