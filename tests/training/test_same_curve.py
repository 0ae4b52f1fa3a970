"""One curve for any number of processes, any micro-batch, replicas and shards."""

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from support.paths import REPOSITORY
from support.training_runs import (
    OVERFITTING,
    flags,
    launch,
    require_same_curve,
    run_here,
)

from modeling_gpt2scratch import GPT2ScratchForCausalLM
from modeling_gpt2scratch.tracking.metrics import read_metrics

pytestmark = pytest.mark.gate

# Each process draws its own dropout, so only without it can the curves agree.
PLAIN = {"dropout": 0, "eval_every": 6, "save_every": 6, "preflight": False}


def with_processes(n, config, directory):
    """The path of a copy of a configuration, for so many processes."""
    text = (REPOSITORY / "accelerate_configs" / config).read_text()
    path = directory / f"{n}_{config}"
    path.write_text(text.replace("num_processes: 2", f"num_processes: {n}"))
    return path


@pytest.fixture(scope="module")
def one_process(small_data, tmp_path_factory, warm_commands):
    """The directory of a run of one process in micro-batches of four rows."""
    output_dir = tmp_path_factory.mktemp("runs") / "one"
    arguments = flags(small_data, output_dir, **PLAIN)
    process = launch(*arguments, config="cpu.yaml", warm=warm_commands)
    assert process.returncode == 0, process.stderr
    return output_dir


@pytest.mark.parametrize(
    ("config", "n_processes", "micro_batch_size"),
    [("cpu_2proc.yaml", 4, 2), ("fsdp2_cpu_2proc.yaml", 2, 8)],
)
def test_replicas_and_shards_have_the_curve_of_one_process(
    small_data, tmp_path, one_process, warm_commands, config, n_processes, micro_batch_size
):
    output_dir = tmp_path / "run"
    options = {"micro_batch_size": micro_batch_size, "preflight": True}
    arguments = flags(small_data, output_dir, **PLAIN | options)
    path = with_processes(n_processes, config, tmp_path)
    process = launch(*arguments, config=path, warm=warm_commands)
    assert process.returncode == 0, process.stderr
    assert f"processes        {n_processes} " in process.stdout
    assert process.stdout.count("finished:") == 1
    require_same_curve(output_dir, one_process)
    whole, shared = (load_file(d / "model.safetensors") for d in (one_process, output_dir))
    assert whole.keys() == shared.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(shared[name], weight, atol=1e-3, rtol=1e-3, msg=name)


def test_gradients_are_reduced_once_a_step(small_data, tmp_path, warm_commands):
    arguments = flags(small_data, tmp_path / "run", **PLAIN, micro_batch_size=4)
    script = "tests/support/programs/counted_reductions.py"
    config, count = "cpu_2proc.yaml", str(tmp_path / "count")
    process = launch(count, *arguments, config=config, script=script, warm=warm_commands)
    assert process.returncode == 0, process.stderr
    assert re.search(r"[2-9] micro-", process.stdout), process.stdout
    n_reductions, n_gradients = map(int, (tmp_path / "count").read_text().split())
    n_parameters = len([*GPT2ScratchForCausalLM.from_pretrained(tmp_path / "run").parameters()])
    assert (n_reductions, n_gradients) == (12, n_parameters)


@pytest.fixture(scope="module")
def wide_run(small_data, tmp_path_factory):
    """Runs two processes in bf16, with parameters that fill several of DDP's buckets."""
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on the CPU, and there is no g++")
    sizes = {"n_layer": 3, "n_embd": 256, "n_head": 4, "micro_batch_size": 4, "max_steps": 3}
    options = PLAIN | sizes | {"eval_every": 0, "save_every": 0, "mixed_precision": "bf16"}

    def wide_run(compile):
        output_dir = tmp_path_factory.mktemp("wide") / compile
        arguments = flags(small_data, output_dir, **options, compile=compile, strict=True)
        process = launch(*arguments, config="cpu_2proc.yaml")
        assert process.returncode == 0, process.stderr
        return [row["loss"] for row in read_metrics(output_dir / "metrics.jsonl")]

    return wide_run


def test_compiled_replicas_have_the_losses_of_eager_ones(wide_run):
    expected = wide_run("no")
    assert len(expected) == 3
    assert wide_run("model") == pytest.approx(expected, abs=2e-2)


def continued_by_two(small_data, one_process, output_dir, config, warm):
    """A run that two processes continued from the sixth step of one process."""
    shutil.copytree(one_process / "checkpoint-6", output_dir / "checkpoint-6")
    shutil.copy(one_process / "train_config.json", output_dir)
    arguments = flags(small_data, output_dir, **PLAIN, micro_batch_size=4)
    process = launch(*arguments, "--resume", "auto", config=config, warm=warm)
    assert process.returncode == 0, process.stderr
    require_same_curve(output_dir, one_process, steps=range(7, 13))
    return output_dir


def test_two_processes_continue_what_one_began(small_data, tmp_path, one_process, warm_commands):
    config, output_dir = "cpu_2proc.yaml", tmp_path / "run"
    run = continued_by_two(small_data, one_process, output_dir, config, warm_commands)
    assert {row["step"] for row in read_metrics(run / "metrics.jsonl")} == set(range(7, 13))


def test_one_process_continues_shards_and_shards_continue_one_process(
    small_data, tmp_path, one_process, warm_commands, monkeypatch
):
    config, output_dir = "fsdp2_cpu_2proc.yaml", tmp_path / "shards"
    shards = continued_by_two(small_data, one_process, output_dir, config, warm_commands)
    names = {path.name for path in (shards / "checkpoint-12").glob("optimizer/*")}
    assert names == {"state-00000-of-00002.safetensors", "state-00001-of-00002.safetensors"}

    further = tmp_path / "further"
    arguments = flags(small_data, further, **PLAIN | {"max_steps": 14, "save_every": 0})
    whole = flags(small_data, tmp_path / "whole", **PLAIN | {"max_steps": 14, "save_every": 0})
    assert run_here(monkeypatch, *arguments, "--resume", str(shards / "checkpoint-12")) == 0
    assert run_here(monkeypatch, *whole, "--resume", str(one_process / "checkpoint-12")) == 0
    require_same_curve(further, tmp_path / "whole", steps=(13, 14))


def test_muon_has_one_curve_for_one_process_and_two_with_shards(
    small_data, tmp_path, warm_commands, monkeypatch
):
    options = PLAIN | {"optimizer": "muon", "save_every": 0}
    assert run_here(monkeypatch, *flags(small_data, tmp_path / "one", **options)) == 0
    arguments = flags(small_data, tmp_path / "two", **options)
    process = launch(*arguments, config="fsdp2_cpu_2proc.yaml", warm=warm_commands)
    assert process.returncode == 0, process.stderr
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    for left, right in zip(one, two, strict=True):
        # Matrices are made orthogonal in bfloat16, which rounds what differs in the last bit.
        assert left["loss"] == pytest.approx(right["loss"], abs=5e-3)


def test_every_learning_rate_schedule_trains(small_data, tmp_path, monkeypatch):
    for schedule in ("wsd", "constant"):
        options = {"schedule": schedule, "max_steps": 6, "warmup_steps": 2, "eval_every": 0}
        if schedule == "wsd":
            options["decay_steps"] = 2
        output_dir = tmp_path / schedule
        assert run_here(monkeypatch, *flags(small_data, output_dir, **options)) == 0
        rates = [row["learning_rate"] for row in read_metrics(output_dir / "metrics.jsonl")]
        assert rates[:4] == pytest.approx([0.005, 0.01, 0.01, 0.01])
        assert (rates[5] < 0.01) is (schedule == "wsd")


def test_replicas_and_shards_agree_on_the_best_weights_and_when_to_end(
    few_documents, tmp_path, warm_commands, monkeypatch, capsys
):
    assert run_here(monkeypatch, *flags(few_documents, tmp_path / "one", **OVERFITTING)) == 0
    printed = {"one": capsys.readouterr().out}
    for config in ("cpu_2proc.yaml", "fsdp2_cpu_2proc.yaml"):
        arguments = flags(few_documents, tmp_path / config, **OVERFITTING)
        process = launch(*arguments, config=config, warm=warm_commands)
        assert process.returncode == 0, process.stderr
        printed[config] = process.stdout
    outputs = {}
    for name, text in printed.items():
        output_dir = tmp_path / name
        (best,) = re.findall(r"from (checkpoint-\d+)$", text, re.MULTILINE)
        last = read_metrics(output_dir / "metrics.jsonl")[-1]["step"]
        assert {path.name for path in output_dir.glob("checkpoint-*")} == {
            *(best, f"checkpoint-{last}")
        }
        weights = load_file(output_dir / "model.safetensors")
        stored = load_file(output_dir / best / "model.safetensors")
        assert all(torch.equal(weights[name], stored[name]) for name in stored)
        outputs[name] = (best, last)
    assert len(set(outputs.values())) == 1
    assert last < OVERFITTING["max_steps"]
