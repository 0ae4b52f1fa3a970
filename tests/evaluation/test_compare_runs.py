"""Whole comparisons: cache, interruption, broken models, files beside the table, processes."""

import json
import os
import random
import re
import shlex
import sys

import pytest
import torch
from support import evaluation as tiny
from support.evaluation import compare
from support.paths import REPOSITORY
from support.processes import run_process
from support.terminal import terminal
from transformers import AutoModelForCausalLM

from modeling_gpt2scratch import api
from modeling_gpt2scratch.evaluation import TASKS, report
from modeling_gpt2scratch.evaluation.tasks.lambada import LambadaTask

N_PASSAGES = 30
# `--cpu --num_processes 2` would start one process unless mpirun is there.
ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
ACCELERATE += ["--config_file", "accelerate_configs/cpu_2proc.yaml"]
# Out of memory on the second process, whatever the size of a batch.
FAILING = """
import os, sys, time
sys.path.insert(0, sys.argv.pop(1))
import torch
import compare
from modeling_gpt2scratch.evaluation import comparison
from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer
def fail(*_):
    raise torch.OutOfMemoryError("CUDA out of memory.")
if os.environ.get("RANK", "1") == "1":
    CausalScorer._score_whole_batch = fail
report = comparison.report  # takes its time; nobody may end the main process in it
comparison.report = lambda *arguments: (time.sleep(3), report(*arguments))
sys.exit(compare.main())
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Directories `first`, `second` (models) and `data`, which has two of the official names."""
    root = tmp_path_factory.mktemp("inputs")
    tokenizer = tiny.tiny_tokenizer()
    (mat,) = tokenizer(" mat")["input_ids"]
    for name, strength in (("first", 0), ("second", 4)):
        model = tiny.tiny_gpt2(tokenizer, n_positions=64)
        with torch.no_grad():  # the second model likes this word
            model.transformer.ln_f.bias += strength * model.transformer.wte.weight[mat]
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    encoded = tokenizer(tiny.CORPUS * 4)["input_ids"]
    stream = sum(([tokenizer.eos_token_id, *ids] for ids in encoded), [])
    tiny.write_shards(root / "shards", [stream], tokenizer)
    (root / "data").mkdir()
    words = ["mat", "cat", "dog"]
    rows = [{"text": f"the cat sat on {'a ' * i}the {words[i % 3]}"} for i in range(N_PASSAGES)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (root / "data" / "lambada_test.jsonl").write_text(lines)
    question = {"activity_label": "Cats", "ctx_a": "the cat sat", "ctx_b": "on the"}
    question |= {"ctx": "the cat sat on the", "endings": ["mat", "dog.", "end", "cafe"], "label": 0}
    lines = "".join(json.dumps(question | {"label": i % 4}) + "\n" for i in range(8))
    (root / "data" / "hellaswag_val.jsonl").write_text(lines)
    return root


def data_of(inputs, tasks=("val",)):
    """Where the data of some tasks are."""
    shards = ["--val_data", str(inputs / "shards")] if {"val", "all"} & {*tasks} else []
    return ["--data_dir", str(inputs / "data"), *shards]


def run(inputs, output_dir, *arguments, models=("first", "second"), tasks=("val", "lambada")):
    """The exit code of a comparison in this process."""
    return compare.main(
        [
            *("--models", *(str(inputs / name) for name in models)),
            *("--tasks", *tasks, *data_of(inputs, tasks), "--output_dir", str(output_dir)),
            *("--device", "cpu", *arguments),
        ]
    )


def read(output_dir):
    return json.loads((output_dir / "results.json").read_text())


def measured(output_dir):
    """The numbers of each model."""
    return {name: model["results"] for name, model in read(output_dir)["models"].items()}


def save_broken(inputs, directory, change):
    """A copy of the first model with its tokenizer, changed."""
    tokenizer = tiny.tiny_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(inputs / "first")
    change(model, tokenizer)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def test_what_was_measured_once_is_not_measured_again(inputs, tmp_path, monkeypatch, capsys):
    assert run(inputs, tmp_path, "--charts") == 0
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    first = measured(tmp_path)
    assert len(list((tmp_path / "evaluation_cache").iterdir())) == 4
    monkeypatch.setattr(LambadaTask, "evaluate", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_: pytest.fail("loaded"))
    assert "come from the cache" not in capsys.readouterr().out
    assert run(inputs, tmp_path) == 0
    assert "4 of 4 results were measured before and come from the cache" in capsys.readouterr().out
    assert measured(tmp_path) == first
    model = read(tmp_path)["models"][str(inputs / "first")]
    assert model["from_cache"] == {"val": True, "lambada": True}
    assert model["config"]["model_class"] == "GPT2LMHeadModel"


def test_what_was_measured_is_written_before_it_is_shown(inputs, tmp_path, monkeypatch):
    def closed(*_, **options):
        if options.get("file") is None:
            raise BrokenPipeError

    monkeypatch.setattr(report, "print", closed, raising=False)
    with pytest.raises(BrokenPipeError):
        api.compare(
            [str(inputs / "first")], ["lambada"], data_dir=inputs / "data", output_dir=tmp_path
        )
    assert measured(tmp_path)[str(inputs / "first")]["lambada"]


@pytest.mark.parametrize("arguments", [["--no_cache"], ["--limit", "5"], ["--dtype", "bfloat16"]])
def test_what_would_score_otherwise_is_measured_again(inputs, tmp_path, monkeypatch, arguments):
    assert run(inputs, tmp_path, models=["first"], tasks=["lambada"]) == 0
    calls = []
    evaluate = LambadaTask.evaluate
    monkeypatch.setattr(LambadaTask, "evaluate", lambda *a: calls.append(1) or evaluate(*a))
    assert run(inputs, tmp_path, *arguments, models=["first"], tasks=["lambada"]) == 0
    assert calls == [1]


def test_other_weights_under_the_same_name_are_measured_again(inputs, tmp_path):
    def halve(model, _):
        with torch.no_grad():
            model.transformer.wte.weight.mul_(0.5)

    values = []
    for change in (lambda *_: None, halve):
        save_broken(inputs, tmp_path / "model", change)
        assert run(tmp_path, tmp_path / "out", *data_of(inputs), models=["model"]) == 0
        values.append(measured(tmp_path / "out")[str(tmp_path / "model")]["val"]["loss,none"])
    assert values[0] != values[1]


def test_an_interrupted_comparison_prints_what_it_has_and_goes_on_from_there(
    inputs, tmp_path, monkeypatch, capfd
):
    evaluate, calls = LambadaTask.evaluate, []

    def interrupt(task, scorer):
        calls.append(scorer)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(task, scorer)

    monkeypatch.setattr(LambadaTask, "evaluate", interrupt)
    with pytest.raises(SystemExit) as stopped:
        run(inputs, tmp_path)
    assert stopped.value.code == 130
    output = capfd.readouterr()
    assert output.out.count("interrupted") == 1 and output.out.count("±") > 5
    assert output.err.splitlines()[-1].startswith("compare.py: interrupted; go on with: ")
    assert read(tmp_path)["is_complete"] is False
    assert run(inputs, tmp_path) == 0
    assert len(calls) == 3
    assert "interrupted" not in capfd.readouterr().out
    assert run(inputs, tmp_path / "new", "--no_cache") == 0
    assert measured(tmp_path / "new") == measured(tmp_path)


@pytest.mark.gate
def test_ctrl_c_at_any_moment_is_one_line_whose_command_goes_on(inputs, tmp_path):
    names = [str(inputs / name) for name in ("first", "second")]
    tasks = ("val", "lambada", "hellaswag")
    arguments = [*("--models", *names), *("--tasks", *tasks), *data_of(inputs)]
    command = shlex.join(["python", "evaluate/compare.py", *arguments, "--output_dir"])
    generator, n_answered = random.Random(7), 0
    # What the terminal shows when a moment is near, and the seconds until then.
    for moment in ("loading torch", "loading .*/first", "lambada:", "loading .*/second"):
        with terminal([sys.executable, *shlex.split(command)[1:], str(tmp_path)]) as shown:
            if shown.wait_for(moment):  # else it was over before, at an earlier try
                shown.go_on_for(generator.uniform(0, 0.5))
                shown.press_ctrl_c()
            code = shown.wait()
        if code == 0:  # too late
            continue
        assert code == 130 and "Traceback" not in shown.output, shown.output
        advice = re.findall(r"^.*compare\.py: interrupted; go on with: (.*)\r$", shown.output, re.M)
        assert advice == [f"{command} {tmp_path}"], shown.output
        n_answered += 1
    assert n_answered >= 2
    assert run(inputs, tmp_path, tasks=tasks) == 0
    assert run(inputs, tmp_path / "whole", tasks=tasks) == 0
    assert measured(tmp_path) == measured(tmp_path / "whole")


def test_a_broken_model_says_why_and_the_others_come_out(inputs, tmp_path, capsys):
    def fill(model, _):
        torch.nn.init.constant_(model.transformer.ln_f.bias, torch.nan)

    save_broken(inputs, tmp_path / "nan", fill)
    save_broken(inputs, tmp_path / "small", lambda model, _: model.resize_token_embeddings(200))
    AutoModelForCausalLM.from_pretrained(inputs / "first").save_pretrained(tmp_path / "mute")
    (tmp_path / "first").symlink_to(inputs / "first")
    models = ["first", "nan", "small", "mute"]
    assert run(tmp_path, tmp_path / "out", *data_of(inputs), models=models) == 1
    found = read(tmp_path / "out")["models"]
    errors = {name: found[str(tmp_path / name)]["errors"] for name in models}
    assert not errors["first"]
    for task in ("val", "lambada"):
        assert "expected finite logits, found nan or infinity" in errors["nan"][task]
        assert (
            "expected a tokenizer of at most the model's 200 entries, found 296"
            in errors["small"][task]
        )
        assert "expected a tokenizer beside the model" in errors["mute"][task]
    assert all(not found[str(tmp_path / name)]["results"] for name in models[1:])
    assert capsys.readouterr().out.count("| error [") == 6


def test_all_tasks_run_on_one_directory_and_those_without_data_say_so(inputs, tmp_path, capsys):
    assert run(inputs, tmp_path, "--limit", "2", models=["first"], tasks=["all"]) == 1
    (model,) = read(tmp_path)["models"].values()
    assert set(model["results"]) | set(model["errors"]) == set(TASKS) - {"text"}
    with_data = {"val", "val:document-mask"} | {
        n for n in TASKS if n.partition(":")[0] == "lambada"
    }
    with_data |= {n for n in TASKS if n.startswith("hellaswag")}
    assert set(model["results"]) == with_data
    assert "ptb.test.txt" in model["errors"]["ptb"]
    output = capsys.readouterr().out
    assert "gpt2 0.4599" in output
    assert (
        "hellaswag: expected hellaswag_val.jsonl with sha256 0aa3b8884399…, found another" in output
    )


def test_readers_of_the_usual_harness_read_results_and_samples(inputs, tmp_path):
    utils = pytest.importorskip("lm_eval.utils")
    assert run(inputs, tmp_path, "--log_samples") == 0
    models = read(tmp_path)["models"]
    for model in models.values():
        folder = tmp_path / "lm_eval_results" / utils.sanitize_model_name(model["model_name"])
        assert folder.is_dir()
        paths = [str(path) for path in folder.iterdir()]
        (results,) = utils.get_results_filenames(paths)
        with open(results) as file:
            assert json.load(file) == model
        table = utils.make_table(model)
        value = model["results"]["lambada"]["acc,none"]
        assert "|lambada|" in table.replace(" ", "") and f"{value:.4f}" in table
        samples = [path for path in utils.get_sample_results_filenames(paths) if "lambada" in path]
        with open(samples[0]) as file:
            rows = [json.loads(line) for line in file]
        assert [row["doc_id"] for row in rows] == list(range(N_PASSAGES))
        assert sum(row["acc"] for row in rows) / N_PASSAGES == pytest.approx(value)


def test_the_usual_harness_finds_its_own_file_of_each_model_without_samples(inputs, tmp_path):
    utils = pytest.importorskip("lm_eval.utils")
    for _ in range(2):  # each call has files of its own, as there
        assert run(inputs, tmp_path, tasks=["lambada"]) == 0
    for name, model in read(tmp_path)["models"].items():
        folder = tmp_path / "lm_eval_results" / utils.sanitize_model_name(name)
        paths = [str(path) for path in folder.iterdir()]
        results = utils.get_results_filenames(paths)
        assert len(results) == len(paths) == 2
        with open(utils.get_latest_filename(results)) as file:
            content = json.load(file)
        assert content == model
        value = model["results"]["lambada"]["acc,none"]
        assert f"{value:.4f}" in utils.make_table(content)


def test_differences_are_in_the_file_with_their_tests(inputs, tmp_path):
    assert run(inputs, tmp_path, "--baseline", str(inputs / "second")) == 0
    content = read(tmp_path)
    rows = {(row["task"], row["metric"]): row for row in content["differences"]}
    assert {row["model"] for row in rows.values()} == {str(inputs / "first")}
    values = [measured(tmp_path)[str(inputs / name)] for name in ("first", "second")]
    first, second = (value["lambada"]["acc,none"] for value in values)
    assert second > first
    accuracy = rows["lambada", "acc"]
    assert accuracy["difference"] == pytest.approx(first - second)
    assert accuracy["test"] == "mcnemar" and rows["val", "loss"]["test"] == "bootstrap"
    counts = accuracy["n_better_second"] - accuracy["n_better_first"]
    assert counts == round((second - first) * N_PASSAGES)


def launch(inputs, output_dir, launcher, script, *arguments, tasks):
    """A comparison on two processes: exit code, stderr, and what each of them put on stdout."""
    logs = output_dir.with_name(f"{output_dir.name}_logs")
    command = [
        *(*launcher, "--tee", "3", "--log_dir", str(logs), *script),
        *("--models", str(inputs / "first"), str(inputs / "second"), *data_of(inputs, tasks)),
        *("--tasks", *tasks, "--output_dir", str(output_dir), *arguments),
    ]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    process = run_process(command, cwd=REPOSITORY, env=environment)
    printed = {path.parent.name: path.read_text() for path in logs.glob("**/stdout.log")}
    assert printed.keys() == {"0", "1"}, process.stderr[-3000:]
    return process.returncode, process.stderr, [printed["0"], printed["1"]]


@pytest.mark.gate
def test_two_processes_have_the_results_of_one(inputs, tmp_path, warm_commands):
    tasks = ("val", "lambada", "lambada:generate", "lambada:stopword-filter", "hellaswag")
    assert run(inputs, tmp_path / "one", "--batch_tokens", "60", tasks=tasks) == 0
    script = ["evaluate/compare.py", "--batch_tokens", "200"]
    launcher = [warm_commands / "torchrun", "--standalone", "--nproc_per_node", "2"]
    code, stderr, printed = launch(inputs, tmp_path / "two", launcher, script, tasks=tasks)
    assert code == 0, stderr[-3000:]
    assert printed[0].count("| lambada ") == 2  # one table, of the main process
    assert printed[1] == ""
    one, two = (measured(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for model, results in one.items():
        assert list(results) == list(tasks)
        for task, expected in results.items():
            found = two[model][task]
            assert found.pop("alias") == expected.pop("alias")
            tolerance = 0 if ":" in task else 1e-5  # what is written has no last digits
            assert found == pytest.approx(expected, rel=tolerance, abs=0), task


@pytest.mark.gate
def test_a_process_that_fails_ends_its_rows_as_one_process_would(inputs, tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    script = [str(tmp_path / "failing.py"), str(REPOSITORY / "evaluate"), "--batch_tokens", "10"]
    tasks = ("lambada", "lambada:generate", "hellaswag")
    code, stderr, printed = launch(inputs, tmp_path / "two", ACCELERATE, script, tasks=tasks)
    assert code == 1 and printed[1] == "", stderr[-3000:]
    for model in read(tmp_path / "two")["models"].values():
        assert list(model["results"]) == ["lambada:generate"]
        expected = "OutOfMemoryError: CUDA out of memory."
        assert model["errors"] == {"lambada": expected, "hellaswag": expected}
