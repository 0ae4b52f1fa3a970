"""The benchmarks run and print what they promise; what they measure is not judged here."""

import runpy
import sys
from pathlib import Path

import pytest
from support.paths import REPOSITORY
from support.processes import run_process
from support.tiny_corpus import fables, write_jsonl

from benchmarks import busy_machine, search
from modeling_gpt2scratch.tracking.metrics import METRICS_NAME, read_metrics

TIKTOKEN_CACHE = REPOSITORY.parent / "shared" / "data" / "tiktoken_cache"
pytestmark = pytest.mark.gate
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads /proc")


def run(script, *arguments):
    """A benchmark as a process of its own."""
    return run_process(
        [sys.executable, Path("benchmarks", script), *map(str, arguments)],
        cwd=REPOSITORY,
    )


def run_here(monkeypatch, script, *arguments):
    """A benchmark in this process, which is quicker if it has nothing to train."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")  # as Python does
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    runpy.run_path(str(REPOSITORY / "benchmarks" / script), run_name="__main__")


def table_of(process):
    """The cells of the printed table, header aside."""
    assert process.returncode == 0, process.stderr
    lines = [line for line in process.stdout.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def test_the_loss_benchmark_prints_both_losses_and_their_ratio():
    arguments = (
        "--model tiny --vocab_size 300 --sequence_length 16 --micro_batch_size 2 --repeats 1"
    )
    rows = table_of(run("loss.py", *arguments.split()))
    assert [row[0] for row in rows] == ["plain", "chunked", "plain / chunked"]


@on_linux
def test_the_upload_benchmark_sends_in_each_round_and_prints_both_speeds():
    arguments = "--model tiny --sequence_length 8 --rounds 2 --seconds 0.1"
    process = run("upload.py", *arguments.split())
    alone, beside = table_of(process)
    assert process.stdout.count("sent to someone/benchmark@step-") == 2
    assert alone[:1] + beside[:1] == ["alone", "beside an upload"]
    assert float(beside[2]) > 0 and float(beside[3]) > 0


def test_the_step_benchmark_prints_each_contestant_and_how_far_bf16_strays():
    arguments = (
        "--model tiny --vocab_size 600 --sequence_length 16 --micro_batch_size 2 --rounds 1 "
        "--clock cpu --contestants"
    )
    names = ["ours bf16", "ours fp32", "transformers bf16", "transformers fp32", "plain fp32"]
    process = run("train_step.py", *arguments.split(), *names)
    rows = table_of(process)
    assert [row[0] for row in rows] == names
    assert rows[2][3] == "1.00" and "1.00" in (rows[3][4], rows[4][4])  # as fast as itself
    assert float(process.stdout.rpartition("strays by at most ")[2].split()[0]) < 1


def test_the_evaluation_benchmark_prints_a_ratio_for_each_kind_of_request(monkeypatch):
    pytest.importorskip("lm_eval", reason="needs the extra `eval`")
    if not TIKTOKEN_CACHE.is_dir():
        pytest.skip(f"needs GPT-2's tokenizer in {TIKTOKEN_CACHE}")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN_CACHE))
    arguments = "--model tiny --cbt_examples 0 --hellaswag_examples 1 --lambada_examples 1"
    arguments += " --blimp_examples 2"
    rows = table_of(run("evaluation.py", *arguments.split(), "--repeats", "1"))
    assert [row[0] for row in rows] == ["hellaswag", "lambada", "blimp"]
    assert all(float(row[5]) >= 1 for row in rows)
    assert all(float(row[6]) < 1e-3 for row in rows)


@on_linux
def test_the_loader_benchmark_prints_both_approaches_and_their_ratio():
    arguments = "--shard_tokens 10000 --sequence_length 16 --micro_batch_size 4"
    rows = table_of(run("loader.py", *arguments.split()))
    assert [row[0] for row in rows] == ["whole shards", "ours", "whole shards / ours"]
    assert all(float(cell) >= 0 for row in rows[:2] for cell in row[1:])


@on_linux
def test_the_loader_benchmark_refuses_a_shard_smaller_than_a_batch():
    process = run("loader.py", "--shard_tokens", "1000")
    assert process.returncode == 2
    assert "expected --shard_tokens above the 65536 tokens of a batch" in process.stderr


@on_linux
def test_the_preparation_benchmark_prints_three_ways_that_count_the_same_tokens(
    tmp_path, monkeypatch
):
    if not TIKTOKEN_CACHE.is_dir():
        pytest.skip(f"needs GPT-2's tokenizer in {TIKTOKEN_CACHE}")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN_CACHE))
    dataset = write_jsonl(tmp_path / "fables.jsonl", fables(300))
    process = run("prepare.py", "--dataset", dataset, "--num_workers", 2, "--repeats", 1)
    rows = table_of(process)
    assert [row[:2] for row in rows] == [
        [name, processes] for processes in ("1", "2") for name in ("bare", "recipe", "ours")
    ]
    assert [row[3] for row in rows if row[0] == "bare"] == ["1.00", "1.00"]
    assert [row[4] for row in rows if row[0] == "recipe"] == ["1.00", "1.00"]


def test_the_optimizer_benchmark_trains_what_is_missing_and_prints_a_row_for_each_run(
    small_data, tmp_path, monkeypatch, capfd
):
    sizes = "--n_layer 1 --n_head 1 --n_embd 8 --n_positions 16 --total_batch_tokens 32"
    grid = "--adamw_rates 0.01 --muon_rates 0.02 --max_steps 20 --micro_batch_size 2"
    table = tmp_path / "curves.csv"
    arguments = f"{sizes} {grid} --eval_tokens 32 --mixed_precision no --csv {table}".split()
    arguments += ["--data", small_data, "--output_dir", tmp_path]
    process = run("optimizers.py", *arguments)
    rows = table_of(process)
    assert [row[:4] for row in rows] == [
        ["adamw", "0.01", "20", "640"],
        ["muon", "0.02", "14", "448"],
    ]
    assert "Muon's best on 70% of the tokens minus AdamW's best: " in process.stdout
    run_here(monkeypatch, "optimizers.py", *arguments)
    again = capfd.readouterr()
    assert again.out == process.stdout and "training" not in again.err
    last = table.read_text().splitlines()[-1].split(",")
    assert last[:4] == ["muon", "0.02", "14", "448"] and float(last[-1]) > 0
    refusal = "with n_embd = 16, found one with 8; give another --output_dir"
    with pytest.raises(SystemExit, match=refusal):
        run_here(monkeypatch, "optimizers.py", *arguments, "--n_embd", 16)


@on_linux
def test_the_benchmark_of_a_busy_machine_trains_in_a_process_that_waits_in_each_way():
    config = busy_machine.BenchmarkConfig(seconds=0.2, busy_processes=1)
    assert busy_machine.measure(config, busy_machine.OURS, busy_machine.LATER) > 0


def test_the_benchmark_of_a_busy_machine_prints_each_way_to_wait_and_what_is_to_be_judged(
    monkeypatch, capsys
):
    speeds = {busy_machine.IDLE: 100, busy_machine.BUSY: 40, busy_machine.LATER: 30}

    def measure(config, way, situation):
        return speeds[situation] * (0.98 if way == busy_machine.OURS else 1)

    monkeypatch.setattr(busy_machine, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["busy_machine.py", "--rounds", "3"])
    busy_machine.main()
    printed = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in printed.splitlines() if line[:1] == "|"][2:] == [
        *("torch's default", "ours", "GOMP_SPINCOUNT=10000", "OMP_WAIT_POLICY=passive")
    ]
    assert "cost on an idle machine 2.0% (goal: below 3%)" in printed
    assert "stays 0.39 beside busy processes (goal: at least 0.35), 0.29 if they" in printed


def test_a_search_makes_what_is_missing_and_shows_the_best_first(
    small_data, tmp_path, monkeypatch, capfd
):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: {small_data}\nn_layer: 1\nn_head: 1\nn_embd: 8\nn_positions: 16\n"
        "total_batch_tokens: 32\nmicro_batch_size: 2\neval_tokens: 32\neval_every: 2\n"
        "max_steps: 4\npreflight: false\n"
    )
    arguments = ["--recipe", recipe, "--output_dir", tmp_path / "runs", "--at_once", 2]
    arguments += ["--fixed", "optimizer=muon", "--vary", "learning_rate=1e-4,1e-2"]
    process = run("search.py", *arguments)
    rows = table_of(process)
    assert [row[0] for row in rows] == ["1e-2", "1e-4"]
    for rate, lowest, *_ in rows:
        metrics = read_metrics(tmp_path / "runs" / f"learning_rate-{rate}" / METRICS_NAME)
        losses = [row["eval_loss"] for row in metrics if "eval_loss" in row]
        assert lowest == f"{min(losses):.4f}"
    run_here(monkeypatch, "search.py", *arguments)
    again = capfd.readouterr()
    assert again.out == process.stdout and "training" not in again.err
    other = [*arguments[:7], "optimizer=adamw", *arguments[8:]]
    with pytest.raises(SystemExit, match="found one with muon; give another --output_dir"):
        run_here(monkeypatch, "search.py", *other)
    with pytest.raises(SystemExit) as refused:
        run_here(monkeypatch, "search.py", *arguments[:4], "--vary", "no_such=1")
    assert refused.value.code == 2
    assert "found 'no_such=1'" in capfd.readouterr().err


def test_runs_of_a_search_that_differ_in_their_seed_share_a_row(capsys):
    trials = [(("optimizer", name), ("seed", seed)) for name in ("adamw", "muon") for seed in "01"]
    results = [[loss, loss + 1, loss / 2, 20, 300] for loss in (3.0, 4.0, 1.0, 1.5)]
    search.print_table(trials, results)
    muon, adamw = capsys.readouterr().out.splitlines()[2:]
    assert [cell.strip() for cell in muon.split("|")[1:-1]] == [
        *("muon", "1.2500 ± 0.3536", "2.2500 ± 0.3536", "0.6250 ± 0.1768", "20", "300")
    ]
    assert "3.5000 ± 0.7071" in adamw


# What nanoGPT's script leaves behind, where a model predicts the next number with the same odds.
AS_NANOGPT = """
import torch
seed = torch.initial_seed() if torch.manual_seed(1337) else 0
block_size, losses = 8, {"val": torch.tensor(float(seed))}

class Model(torch.nn.Module):
    def forward(self, inputs, targets):
        logits = torch.zeros(*inputs.shape, 4)
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

model = Model()
"""


def test_the_runs_of_nanogpt_differ_in_their_seed_and_are_measured_on_the_whole_split(tmp_path):
    checkout = tmp_path / "nanoGPT"
    data = checkout / "data" / "shakespeare_char"
    data.mkdir(parents=True)
    (data / "val.bin").write_bytes(bytes([1, 0] * 100))
    (checkout / "train.py").write_text(AS_NANOGPT)
    arguments = ["--checkout", checkout, "--output_dir", tmp_path / "out", "--seeds", 0, 3]
    rows = table_of(run("nanogpt.py", *arguments))
    assert [row[:2] for row in rows[:2]] == [["0", "1337.0000"], ["3", "1340.0000"]]
    assert [row[2] for row in rows] == ["1.3863", "1.3863", "1.3863 ± 0.0000"]
