"""Benchmarks during training have compare.py's scores, on any number of processes."""

import json
import os

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from support import evaluation as tiny
from support.evaluation import compare
from support.paths import REPOSITORY
from support.processes import run_on_two
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_gpt2scratch.evaluation import TASKS, in_training
from modeling_gpt2scratch.evaluation.in_training import (
    BenchmarkError,
    load_benchmarks,
    score_benchmarks,
)

NAMES = ("lambada", "hellaswag", "blimp")
# One process of a run: prints its scores and how often its model was called.
SCRIPT = """
import json, sys
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.distributed import DistributedConfig
sys.path.append(sys.argv[1])
from modeling_gpt2scratch.evaluation.in_training import load_benchmarks, score_benchmarks
from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer
directory, kind = sys.argv[2:]
sources = {name: f"{directory}/{name}.jsonl" for name in ("lambada", "hellaswag", "blimp")}
accelerator = Accelerator(cpu=True, mixed_precision="bf16")
tokenizer = AutoTokenizer.from_pretrained(directory)
if kind == "fsdp":
    config = DistributedConfig(fsdp_size=2)
    model = AutoModelForCausalLM.from_pretrained(directory, distributed_config=config)
else:
    model = AutoModelForCausalLM.from_pretrained(directory)
    accelerator.prepare(model)
calls = []
model.base_model.register_forward_hook(lambda *_: calls.append(1))
benchmarks = load_benchmarks(sources, sources=sources, limit=None, accelerator=accelerator)
values = score_benchmarks(
    benchmarks, model.train(), tokenizer, accelerator, batch_tokens=60
)
loss = model(torch.arange(8)[None], labels=torch.arange(8)[None]).loss
loss.backward()  # scoring leaves nothing behind that training cannot use
n_calls = accelerator.gather(torch.tensor([len(calls) - 1])).tolist()
if accelerator.is_main_process:
    print(json.dumps([values, n_calls, model.training]))
# Now one process finds scores that it cannot use, and all of them go on without.
score_whole_batch = CausalScorer._score_whole_batch
def spoil(*arguments, **options):
    found = score_whole_batch(*arguments, **options)
    if accelerator.process_index == 1:
        raise ValueError("spoiled")
    return found
CausalScorer._score_whole_batch = spoil
values = score_benchmarks(benchmarks, model, tokenizer, accelerator, batch_tokens=60)
assert values == {}, values
accelerator.end_training()
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A model with its tokenizer, and a file for each benchmark beside it."""
    directory = tmp_path_factory.mktemp("model")
    tokenizer = tiny.tiny_tokenizer()
    model = tiny.tiny_gpt2(tokenizer, n_positions=64)
    (mat,) = tokenizer(" mat")["input_ids"]
    with torch.no_grad():  # the model likes this word, so that some passages are right
        model.transformer.ln_f.bias += 4 * model.transformer.wte.weight[mat]
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    random = np.random.default_rng(0)
    words = ("the", "cat", "sat", "on", "mat", "dog", "end.")

    def text(size):
        return " ".join(random.choice(words, size=size))

    passages = [{"text": text(size)} for size in random.integers(2, 12, size=33)]
    questions = [
        {"activity_label": text(1), "ctx_a": text(i % 7 + 1), "ctx_b": text(i % 2)}
        | {"endings": [text(size) for size in random.integers(1, 8, size=4)], "label": i % 4}
        for i in range(21)
    ]
    pairs = [
        {"sentence_good": text(i % 4 + 2), "sentence_bad": text(i % 3 + 3), "UID": f"p{i % 4}"}
        | {"linguistics_term": "islands"}
        for i in range(21)
    ]
    for name, rows in zip(NAMES, (passages, questions, pairs), strict=True):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{name}.jsonl").write_text(lines)
    return directory


@pytest.fixture(scope="module")
def expected(directory, tmp_path_factory):
    """What compare.py says of the model."""
    output_dir = tmp_path_factory.mktemp("results")
    data = [part for name in NAMES for part in (f"--{name}_data", f"{directory}/{name}.jsonl")]
    arguments = ["--models", str(directory), "--tasks", *NAMES, *data, "--device", "cpu"]
    assert compare.main([*arguments, "--output_dir", str(output_dir)]) == 0
    (model,) = json.loads((output_dir / "results.json").read_text())["models"].values()
    return {
        f"{name}/{metric}": model["results"][name][f"{metric},none"]
        for name in NAMES
        for metric in TASKS[name].metrics
    }


def sources_in(directory):
    return {name: str(directory / f"{name}.jsonl") for name in NAMES}


def score(directory, accelerator, change=lambda model: None):
    """The scores of one process, and the model."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    change(model)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    benchmarks = load_benchmarks(
        NAMES, sources=sources_in(directory), limit=None, accelerator=accelerator
    )
    return score_benchmarks(
        benchmarks, model.train(), tokenizer, accelerator, batch_tokens=60
    ), model


def test_one_process_has_the_scores_of_compare(directory, expected):
    values, model = score(directory, Accelerator(cpu=True))
    assert values == pytest.approx(expected, rel=1e-5)
    assert model.training
    assert len(expected) == 5
    assert 0 < expected["lambada/acc"] < 1 and 0 < expected["blimp/acc"] < 1


@pytest.mark.gate
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_have_the_scores_of_compare_and_call_the_model_alike(
    directory, expected, tmp_path, warm_commands, kind
):
    (tmp_path / "score.py").write_text(SCRIPT)
    process = run_on_two(
        *(warm_commands, "score.py", REPOSITORY / "evaluate", directory, kind),
        cwd=tmp_path,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
    )
    assert process.returncode == 0, process.stderr[-3000:]
    scores, *complaints = process.stdout.splitlines()[-1 - len(NAMES) :]
    assert complaints == [f"no score of {name}: spoiled" for name in NAMES]
    values, n_calls, is_training = json.loads(scores)
    assert values == pytest.approx(expected, rel=1e-5)
    assert min(n_calls) > 10
    if kind == "fsdp":
        assert n_calls[0] == n_calls[1]
    assert is_training


def test_scoring_compiles_nothing(directory, monkeypatch):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    score(directory, Accelerator(cpu=True), lambda model: model.compile(backend=backend))
    assert not compiled


def test_a_model_without_finite_scores_does_not_end_the_run(directory, capsys):
    def break_it(model):
        torch.nn.init.constant_(model.transformer.ln_f.bias, torch.nan)

    values, model = score(directory, Accelerator(cpu=True), break_it)
    assert values == {} and model.training
    printed = capsys.readouterr().out
    assert printed.count("no score of ") == len(NAMES)
    assert "no score of lambada: 3 of 3 log-probs are not finite" in printed


def test_missing_data_is_one_line_that_names_the_argument(directory, monkeypatch):
    accelerator = Accelerator(cpu=True)

    def load(sources):
        with pytest.raises(BenchmarkError) as caught:
            load_benchmarks(["lambada"], sources=sources, limit=2, accelerator=accelerator)
        return str(caught.value)

    missing = load({"lambada": "no.jsonl"})
    assert missing == "lambada: its examples cannot be read: expected a file no.jsonl, found none"
    import datasets

    def unreachable(*_, **__):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = load({})
    assert message.endswith("read: no network; give a local file with --lambada_data")


def test_examples_are_compared_among_processes(directory, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(in_training, "require_agreement", lambda value, what: said.append(value))
    first, other = directory / "lambada.jsonl", tmp_path / "other.jsonl"
    other.write_text(first.read_text().replace("a", "e"))
    for path in (first, first, other):
        sources = {"lambada": str(path)}
        load_benchmarks(["lambada"], sources=sources, limit=1, accelerator=Accelerator(cpu=True))
    assert said[0] == said[1] != said[2]
