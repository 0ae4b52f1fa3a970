"""The card of a run and the records behind it: what is said, what is left out, what is refused."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from support.run_records import REPOSITORY, SECRET, add_lambada, write_records

from modeling_gpt2scratch import GPT2ScratchConfig, GPT2ScratchForCausalLM
from modeling_gpt2scratch.checkpoints.checkpoint import save_model
from modeling_gpt2scratch.commands import plot, publish
from modeling_gpt2scratch.data.tokens.tokenizer import train_tokenizer, vocabulary_of
from modeling_gpt2scratch.reports.measured_records import read_records
from modeling_gpt2scratch.reports.model_card import (
    DEPENDENT_ARGUMENTS,
    HIDDEN_ARGUMENTS,
    model_card,
)
from modeling_gpt2scratch.reports.records import RecordsError, is_source_on_hub
from modeling_gpt2scratch.reports.scores import eval_result_files
from modeling_gpt2scratch.training.configuration import TrainConfig

SIZES = dict(parameters=12_345, n_layer=2, n_head=2, n_embd=32, n_positions=64, vocab_size=300)


def card_of(run: Path, **options) -> ModelCard:
    records = read_records(run, repository=REPOSITORY, sizes=SIZES)
    return model_card(records, repository=REPOSITORY, **options)


@pytest.fixture
def run(tmp_path):
    """The records of a finished run."""
    write_records(tmp_path / "run")
    return tmp_path / "run"


def test_a_card_says_what_the_run_recorded(run):
    card = card_of(run, license="apache-2.0", has_picture=True)
    assert "12,345 parameters, trained from scratch with GPT2Scratch on 2,560 tokens" in card.text
    assert 'from_pretrained("someone/tiny", trust_remote_code=True)' in card.text
    assert "gpt2scratch convert to-gpt2 tiny " in card.text
    cells = {
        tuple(part.strip() for part in line.split("|")[1:-1]) for line in card.text.split("\n")
    }
    assert cells >= {
        ("val", "stream v1", "40", "loss ↓", "**this model**", "4.2500 ± 0.5312"),
        ("val", "stream v1", "40", "loss ↓", "other (local)", "4.5000 ± 0.5625"),
        ("Passes over the training split", "0.50"),
        ("Training loss up to step 20, nats per token", "4.0000"),
        ("Validation loss after step 20, nats per token", "4.2500"),
        ("Tokens per second, median of the log", "1,000"),
        ("`learning_rate`", "0.003"),
        ("train", "70", "5,120", "20,000"),
    }
    assert "![Loss over the steps](loss.png)" in card.text
    assert "at most 64 tokens" in card.text
    assert "The weights: `apache-2.0`" in card.text


def test_a_card_gives_the_loss_of_its_own_weights_and_the_steps_that_were_made(run):
    arguments = json.loads((run / "train_config.json").read_text())
    (run / "train_config.json").write_text(
        json.dumps(arguments | {"final": "best", "patience": 1, "max_steps": 90})
    )
    status = {"status": "finished", "step": 40}  # early, for want of a lower loss
    (run / "status.json").write_text(json.dumps(status))
    with open(run / "metrics.jsonl", "a") as file:
        row = {"step": 40, "loss": 3.0, "tokens_per_second": 1100.0, "eval_loss": 4.75}
        file.write(json.dumps(row) + "\n")
    cells = {
        tuple(part.strip() for part in line.split("|")[1:-1])
        for line in card_of(run).text.split("\n")
    }
    assert "trained from scratch with GPT2Scratch on 2,560 tokens" in card_of(run).text
    assert cells >= {
        ("Steps", "40"),
        ("Tokens of all steps", "5,120"),
        ("Validation loss after step 20, nats per token", "4.2500"),
        ("Weights", "those of that step, the best of those that were kept"),
    }


def test_a_card_names_every_source_of_a_mixture(run):
    (run / "data_manifest.json").rename(run / "data_manifest-1.json")
    content = json.loads((run / "data_manifest-1.json").read_text())
    content["arguments"]["dataset"] = "someone/tales"
    (run / "data_manifest-2.json").write_text(json.dumps(content))
    text = card_of(run).text
    assert "someone/fables](https://huggingface.co/datasets/someone/fables) and " in text
    assert "| train   | 140" in text and "| Passes over the training split" in text
    arguments = json.loads((run / "train_config.json").read_text())
    arguments["data"] = "data/fables:0.75,data/tales:0.25"
    (run / "train_config.json").write_text(json.dumps(arguments))
    card = card_of(run)
    assert card.data.datasets == ["someone/fables", "someone/tales"]
    assert "fables) (75% of the text) and " in card.text
    assert "Passes" not in card.text  # of each source another number
    # How much of a data set comes from each of its own sources is known only if these have weights.
    names = ("someone/long", "someone/short")
    for weights, shown in (((None, None), ""), ((0.4, 0.6), " (10% of the text)")):
        pairs = zip(names, weights, strict=True)
        content["sources"] = [{"name": name, "weight": weight} for name, weight in pairs]
        (run / "data_manifest-2.json").write_text(json.dumps(content))
        assert f"datasets/someone/long){shown} and " in card_of(run).text
    del arguments["data"]
    (run / "train_config.json").write_text(json.dumps(arguments))
    assert "of the text)" not in card_of(run).text


def test_a_card_of_a_model_that_was_not_trained_from_scratch_does_not_say_what_all_it_has_seen(run):
    arguments = json.loads((run / "train_config.json").read_text())
    assert "It has seen" in card_of(run).text
    (run / "train_config.json").write_text(json.dumps(arguments | {"init_from": "someone/base"}))
    card = card_of(run)
    assert "It has seen" not in card.text and "from the weights of `someone/base`" in card.text


def test_the_metadata_of_a_card_can_be_read_by_the_hub(run):
    data = ModelCard(str(card_of(run))).data
    assert (data.license, data.language, data.pipeline_tag) == (None, None, "text-generation")
    assert ModelCard(str(card_of(run, license="mit"))).data.license == "mit"
    assert (data.library_name, data.datasets) == ("transformers", ["someone/fables"])
    found = {result.metric_type: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in found.items()} == {
        "loss": 4.25,
        "bits_per_byte": 2.5,
    }
    assert found["loss"].dataset_name == "someone/fables"
    assert found["loss"].metric_name == "val loss (stream v1, 40 samples)"


def test_what_was_not_recorded_is_said_to_be_missing(tmp_path):
    card = card_of(tmp_path)
    assert "how it was trained was not recorded" in card.text
    assert "from scratch" not in card.text
    assert "## Results\n\nNot measured" in card.text
    assert "## Training\n\nNot recorded." in card.text
    assert "## Data\n\nNot recorded." in card.text
    assert card.data.eval_results is None and card.data.datasets is None


@pytest.mark.parametrize(("limit", "samples"), [(None, "40"), (40, "first 40"), (41, "40")])
def test_a_score_of_the_first_samples_is_called_one(tmp_path, limit, samples):
    # Fewer samples than the limit are all that the task has.
    write_records(tmp_path / "run", limit=limit)
    card = card_of(tmp_path / "run")
    assert f"| {samples} " in card.text
    assert ("**Partial scores**" in card.text) == (samples != "40")
    if samples == "40":
        assert "v1, 40 samples)" in card.data.eval_results[0].metric_name
    else:  # a trial is no result to be listed
        assert card.data.eval_results is None


def test_a_score_of_the_samples_that_fit_is_called_one_and_is_no_result_of_the_benchmark(run):
    add_lambada(run)
    content = json.loads((run / "results.json").read_text())
    model = content["models"][str(run)]

    def listed() -> dict:
        results = read_records(run, repository=REPOSITORY, sizes=SIZES).results
        return eval_result_files(results, REPOSITORY)

    assert len(listed()) == 1
    model["details"] = {"lambada": {"n_truncated": 7, "n_left_out": 30, "by_phenomenon": {"a": 1}}}
    (run / "results.json").write_text(json.dumps(content))
    card = card_of(run)
    assert "`lambada`: 7 samples are longer than this model has room for, and were cut" in card.text
    assert (
        "`lambada`: 30 samples are longer than this model has room for, and were left" in card.text
    )
    assert not any("lambada" in result.metric_name for result in card.data.eval_results)
    assert listed() == {}


def test_a_perplexity_that_is_too_large_for_a_number_is_shown_as_a_power(run):
    content = json.loads((run / "results.json").read_text())
    values = content["models"][str(run)]["results"]["val"]
    values["loss_nats,none"] = values.pop("loss,none")
    del values["loss_stderr,none"]
    (run / "results.json").write_text(json.dumps(content))
    card = card_of(run)
    assert "| loss ↓ " in card.text and "| e^4.2500 " in card.text
    assert [r.metric_type for r in card.data.eval_results] == ["bits_per_byte"]


def test_results_of_other_weights_are_refused(run):
    content = json.loads((run / "results.json").read_text())
    (run / "model.safetensors").write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    for recorded in (sha256, "0" * 64):
        content["models"][str(run)]["model_sha256"] = {"model.safetensors": recorded}
        (run / "results.json").write_text(json.dumps(content))
        if recorded == sha256:
            card_of(run)
    with pytest.raises(
        RecordsError, match=f"expected results of .*model.safetensors, with sha256 {sha256}"
    ):
        card_of(run)


def test_models_of_one_name_are_told_apart_and_a_directory_is_no_model_of_the_hub(run):
    content = json.loads((run / "results.json").read_text())
    (other,) = (name for name in content["models"] if name != str(run))
    model = content["models"].pop(other)
    content["differences"] = []
    for name, commit in (("a/other", None), ("b/other", None), ("some/other", "1" * 40)):
        content["models"][name] = model | {"config": {"model_sha": commit}}
    (run / "results.json").write_text(json.dumps(content))
    results = read_records(run, repository=REPOSITORY, sizes=SIZES).results
    assert list(results["models"]) == [
        *(REPOSITORY, "other (local)", "other (local 2)", "some/other")
    ]


def test_the_hub_finds_a_score_beside_the_data_set_it_was_measured_on(run):
    add_lambada(run)
    results = read_records(run, repository=REPOSITORY, sizes=SIZES).results
    ((name, text),) = eval_result_files(results, REPOSITORY).items()
    assert name == ".eval_results/gpt2scratch_some__lambada.yaml"
    (entry,) = parse_eval_result_entries(yaml.safe_load(text))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("some/lambada", "lambada", 0.25)
    assert entry.notes.startswith("acc, protocol lambada_openai v1, 5,153 samples, standard error")
    assert eval_result_files(None, REPOSITORY) == {}
    card = card_of(run)
    assert ("acc", 0.25) in [(r.metric_type, r.metric_value) for r in card.data.eval_results]


@pytest.mark.parametrize("status", ["not the official file", "100 of 5153 samples, unchecked"])
def test_the_hub_lists_no_score_of_other_data(run, status):
    add_lambada(run, data_status=status)
    results = read_records(run, repository=REPOSITORY, sizes=SIZES).results
    assert eval_result_files(results, REPOSITORY) == {}
    assert "lambada_openai v1" in card_of(run).text


def test_no_path_and_no_secret_passes_into_records_and_card(run):
    records = read_records(run, repository=REPOSITORY, sizes=SIZES)
    for text in (repr(records), str(card_of(run))):
        assert SECRET not in text
        assert str(run.parent) not in text
    assert records.arguments["mixed_precision"] == "no"
    assert list(records.results["models"]) == [REPOSITORY, "other (local)"]
    assert records.results["baseline"] == REPOSITORY
    assert [row["model"] for row in records.results["differences"]] == ["other (local)"]
    config = records.results["models"][REPOSITORY]["configs"]["val"]
    assert config["dataset_path"] == "someone/fables"


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ("someone/fables", "[someone/fables](https://huggingface.co/datasets/someone/fables)"),
        ("/home/me/texts/fables.jsonl.zst", "local files (`fables.jsonl.zst`)"),
        ("texts/**/*.txt", "local files (`*.txt`)"),
        ("docstrings", "the docstrings of Python packages"),
    ],
)
def test_only_a_data_set_of_the_hub_is_named_in_the_metadata(tmp_path, dataset, said):
    write_records(tmp_path / "run", dataset=dataset)
    card = card_of(tmp_path / "run")
    assert f"Text: {said}." in card.text
    assert bool(card.data.datasets) == (dataset == "someone/fables")


def test_a_card_names_the_data_when_they_are_gone_and_where_the_run_took_place(run):
    shutil.rmtree(run.parent / "data")
    card = card_of(run)
    assert card.data.datasets == ["someone/fables"]
    assert "| train   | 70 " in card.text
    assert "Where it ran: device cpu, processes 2." in card.text


def test_records_that_do_not_fit_the_model_are_refused(run, tmp_path):
    def error() -> str:
        with pytest.raises(RecordsError) as caught:
            card_of(run)
        return str(caught.value)

    (run / "status.json").write_text('{"status": "failed", "step": 19}')
    assert "expected a finished run, found one that is failed at step 19" in error()
    (run / "status.json").unlink()
    results = run / "results.json"
    results.write_text(results.read_text().replace(str(run), "runs/elsewhere"))
    assert "expected results of one model called run, found runs/elsewhere" in error()
    results.write_text('{"models": {"run": {"results": {"lambada": {"acc,none": 0.5}}}}}')
    assert "expected results of evaluate/compare.py, found KeyError('configs')" in error()
    results.write_text("{")
    assert "results.json: expected a JSON object, found " in error()


def test_a_card_has_every_argument_that_the_model_depends_on_and_no_other(run):
    arguments = dataclasses.asdict(TrainConfig(data="d", output_dir="new", micro_batch_size="4"))
    free_text = {name for name, value in arguments.items() if isinstance(value, list)}
    free_text |= {"data", "output_dir", "resume", "data_cache", "project", "push_to_hub"}
    free_text |= {"lambada_data", "hellaswag_data", "blimp_data"}
    hidden = set(HIDDEN_ARGUMENTS) | set(DEPENDENT_ARGUMENTS) | free_text
    assert set(arguments) - hidden == {
        *("sequence_length", "total_batch_tokens", "micro_batch_size", "max_steps", "optimizer"),
        *("learning_rate", "schedule", "warmup_steps", "weight_decay"),
        *("max_grad_norm", "dropout", "seed", "shuffle_shards", "document_mask"),
        *("rollback_on_spike", "mixed_precision", "tf32", "compile", "patience", "final"),
    }
    assert hidden <= set(arguments)
    changes = {"max_steps": 20, "shuffle_shards": 0, "optimizer": "muon"}
    (run / "train_config.json").write_text(json.dumps(arguments | changes))
    card = card_of(run).text
    shown = set(re.findall(r"^\| `(\w+)`", card, re.MULTILINE))
    used = {"muon_learning_rate", "min_learning_rate", "eval_tokens"}
    assert shown == set(arguments) - hidden | used
    changes |= {"optimizer": "adamw", "schedule": "constant"}
    (run / "train_config.json").write_text(json.dumps(arguments | changes))
    shown = set(re.findall(r"^\| `(\w+)`", card_of(run).text, re.MULTILINE))
    assert shown == set(arguments) - hidden | {"eval_tokens"}


def test_a_model_that_began_with_other_weights_does_not_claim_to_be_from_scratch(run):
    arguments = json.loads((run / "train_config.json").read_text())
    for name, said in (
        ("openai-community/gpt2", "openai-community/gpt2"),
        ("/home/me/a", "a (local)"),
    ):
        (run / "train_config.json").write_text(json.dumps(arguments | {"init_from": name}))
        card = card_of(run).text
        assert f"trained from the weights of `{said}` with GPT2Scratch on 2,560 tokens" in card
        assert "from scratch" not in card


def test_a_last_step_that_was_skipped_leaves_the_loss_of_the_one_before(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "loss": null, "tokens_per_second": 1.0}\n')
    assert "Training loss up to step 20, nats per token" in card_of(run).text


def test_a_dry_run_needs_neither_login_nor_network(run, monkeypatch, capsys):
    tokenizer = train_tokenizer(["class for a function"], 257)
    end = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2ScratchConfig(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1, **end)
    folder, model_only = run.parent / "folder", run.parent / "model_only"
    save_model(GPT2ScratchForCausalLM(config), tokenizer, model_only)
    shutil.copytree(model_only, run, dirs_exist_ok=True)
    write_records(run, vocabulary=vocabulary_of(tokenizer))
    add_lambada(run)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("asked the network"))
    arguments = ["--run", str(run), "--repository", REPOSITORY, "--dry_run", str(folder)]
    publish.main(arguments)
    assert f"written, not uploaded: {folder}" in capsys.readouterr().out
    assert {*os.listdir(folder)} == {
        *os.listdir(model_only),
        *("README.md", "train_config.json", "metrics.jsonl", "results.json", ".eval_results"),
        "loss.png",
    }
    assert "](loss.png)" in (folder / "README.md").read_text()
    file = folder / "README.md"
    for place, problem in (
        (folder, f"expected --dry_run to name a new directory, found {str(folder)!r}"),
        (
            file / "new",
            f"expected a directory that can be made and written to, found a file: {file}",
        ),
    ):
        with pytest.raises(SystemExit) as stop:
            publish.main([*arguments[:-1], str(place)])
        assert stop.value.code == 2
        assert problem in capsys.readouterr().err


def test_losses_that_cannot_be_drawn_are_one_line(run):
    with pytest.raises(SystemExit) as stop:
        plot.main(["--runs", str(run.parent), "--output", "loss.png"])
    assert "metrics.jsonl: expected logged steps" in stop.value.code


def test_writing_a_card_takes_no_torch():
    code = "import sys, modeling_gpt2scratch.reports.model_card; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_only_what_came_from_the_hub_is_linked_there():
    local = {"name": "own", "bytes": 10, "revision": None}
    assert not is_source_on_hub(local)  # its folder is on another machine
    assert not is_source_on_hub(local | {"name": "shakespeare"})
    assert is_source_on_hub({"name": "someone/books", "bytes": 10, "revision": "1" * 40})
    assert is_source_on_hub({"name": "someone/stream", "bytes": None, "revision": "1" * 40})
    assert not is_source_on_hub({"name": "docstrings", "bytes": None, "revision": None})
