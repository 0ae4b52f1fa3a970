"""A run published on a Hub and loaded from there, each in a process that starts from nothing."""

import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from huggingface_hub import ModelCard
from support import paths
from support.processes import run_process
from support.run_records import REPOSITORY, SECRET, write_records
from support.servers import fake_hub
from support.tiny_models import WITHOUT_PACKAGE

from modeling_gpt2scratch import GPT2ScratchConfig, GPT2ScratchForCausalLM
from modeling_gpt2scratch.checkpoints.checkpoint import save_model
from modeling_gpt2scratch.data.tokens.tokenizer import train_tokenizer, vocabulary_of

pytestmark = pytest.mark.slow

TEXT = "class for a function\n  with  spaces, 12 µm"
RECORD_FILES = {"train_config.json", "metrics.jsonl", "results.json", "loss.png"}
# Plain `push_to_hub`, then what is refused, then the model alone, then the whole run.
PUBLISH = """
import json, os, shutil, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
from modeling_gpt2scratch.commands import publish as command
from modeling_gpt2scratch.common import hub_requests
from modeling_gpt2scratch.common.retries import Retries
hub_requests.DEFAULT_RETRIES = Retries(first_wait_seconds=0.1, give_up_after_seconds=0.1)
repository, run, model_only, token = sys.argv[1:]

def publish(directory, token, *options):
    os.environ["HF_TOKEN"] = token
    try:
        command.main(["--run", directory, "--repository", repository, *options])
    except SystemExit as stop:
        return stop.code

os.environ["HF_TOKEN"] = token
AutoModelForCausalLM.from_pretrained(run).push_to_hub(repository)
AutoTokenizer.from_pretrained(run).push_to_hub(repository)
checkpoint = shutil.copytree(model_only, os.path.join(os.path.dirname(run), "checkpoint-8"))
with open(os.path.join(checkpoint, "training_state.json"), "w") as file:
    file.write("{}")
refused = {
    "a checkpoint": publish(checkpoint, token),
    "no login": publish(run, ""),
    "no model": publish(os.path.dirname(run), token),
    "no right": publish(model_only, "hf_status_403"),
    "no Hub": publish(model_only, "hf_status_503"),
    "not private": publish(model_only, token, "--private"),
}
assert publish(model_only, token) is None
assert publish(run, token) is None
print(json.dumps(refused))
"""
LOADED = """
import json, sys, torch
text = sys.argv[1]
input_ids = tokenizer(text, return_tensors="pt")["input_ids"]
with torch.no_grad():
    logits = model(input_ids).logits
print(json.dumps({
    "input_ids": input_ids.tolist(), "logits": logits.tolist(),
    "text": tokenizer.decode(input_ids[0]), "module": type(model).__module__,
}))
"""


def run_code(code: str, *arguments: str, environment: dict[str, str], cwd) -> list[str]:
    """The lines a fresh process prints, which must end well."""
    process = run_process(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=os.environ | environment,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with a finished run, and with its model and tokenizer alone."""
    directory = tmp_path_factory.mktemp("trained")
    tokenizer = train_tokenizer([TEXT, "The model is a function of the class"] * 3, 280)
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    sizes = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
    config = GPT2ScratchConfig(
        vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end, **sizes
    )
    model = GPT2ScratchForCausalLM(config).eval()
    for name in ("run", "model_only"):
        save_model(model, tokenizer, directory / name)
    write_records(directory / "run", vocabulary=vocabulary_of(tokenizer))
    return directory, model, tokenizer


@pytest.fixture(scope="module")
def published(trained, tmp_path_factory):
    """A Hub after publishing, and what the process printed."""
    directory = tmp_path_factory.mktemp("publish")
    before = {"notes.md": b"the owner's", "results.json": b"outdated", "adapter_config.json": b"{}"}
    with fake_hub.serve(REPOSITORY, before, kind="models") as hub:
        runs = [str(trained[0] / name) for name in ("run", "model_only")]
        environment = hub.environment(directory)
        arguments = (REPOSITORY, *runs, SECRET)
        yield hub, run_code(PUBLISH, *arguments, environment=environment, cwd=directory)


@pytest.fixture(scope="module")
def loaded(published, tmp_path_factory):
    """What the code on the card computes in two processes, with the package and without it."""
    hub, _ = published
    code = re.search(r"```python\n(.*?)```", hub.files["README.md"].decode(), re.DOTALL)[1]

    def load(code: str) -> dict:
        directory = tmp_path_factory.mktemp("load")
        # Whoever loads a public model need not be logged in.
        environment = hub.environment(directory) | {"HF_TOKEN": ""}
        return json.loads(run_code(code + LOADED, TEXT, environment=environment, cwd=directory)[-1])

    with ThreadPoolExecutor() as pool:
        trusting = code.replace(", trust_remote_code=True", "")
        found = {
            "with the package": pool.submit(load, "import modeling_gpt2scratch\n" + trusting),
            "without it": pool.submit(load, WITHOUT_PACKAGE + code),
        }
        return {reader: future.result() for reader, future in found.items()}


@pytest.fixture(scope="module")
def model_files(trained):
    """Weights, configuration, code, tokenizer and a card."""
    names = {*os.listdir(trained[0] / "model_only"), "README.md"}
    assert names > {"model.safetensors", "modeling_gpt2scratch.py", "tokenizer.json"}
    return names


def test_a_plain_push_carries_weights_code_and_tokenizer(published, model_files):
    of_model, of_tokenizer = published[0].commits[:2]
    assert {*of_model["added"], *of_tokenizer["added"]} == model_files


def test_publishing_makes_one_commit_and_takes_outdated_records_away(published, model_files):
    hub, lines = published
    of_model_only, of_run = hub.commits[2:]  # what was refused left no commit
    assert set(of_model_only["added"]) == model_files
    assert sorted(of_model_only["deleted"]) == ["adapter_config.json", "results.json"]
    assert set(of_run["added"]) == model_files | RECORD_FILES
    assert of_run["deleted"] == []
    assert set(hub.files) == model_files | RECORD_FILES | {"notes.md"}
    assert lines[-2] == f"published: {hub.address}/{REPOSITORY}"


def test_what_cannot_be_published_is_one_line(published, trained):
    refused = json.loads(published[1][-1])
    error = "gpt2scratch publish: error: "
    assert refused == {
        "a checkpoint": f"{error}{trained[0]}/checkpoint-8: expected a finished run, found a "
        f"checkpoint, which does not know how it was trained; publish the directory of the run",
        "no login": f"{error}expected a login at the Hub, found none; log in with `hf auth login` "
        f"or set HF_TOKEN",
        "no model": f"{error}{trained[0]}: expected a finished run, found no config.json, "
        f"model.safetensors, tokenizer.json, tokenizer_config.json",
        "no right": f"{error}{REPOSITORY}: the Hub answered 403 No push for this token.; this "
        f"login may not write there; use a token with write access to the repository",
        "no Hub": f"{error}{REPOSITORY}: the Hub answered 503 No push for this token., 2 times; "
        f"run the same command again when the Hub can be reached",
        "not private": f"{error}{REPOSITORY}: expected a private repository, found a public one; "
        f"change it in its settings or leave out --private",
    }


def test_no_published_file_holds_the_token_or_a_path_of_this_machine(published, trained):
    hub, lines = published
    private = [SECRET, str(trained[0]), str(paths.REPOSITORY)]
    for name, content in hub.files.items():
        assert [word for word in private if word.encode() in content] == [], name
    assert SECRET not in "".join(lines)


def test_the_card_on_the_hub_has_the_measured_values(published, tmp_path):
    files = published[0].files
    (tmp_path / "README.md").write_bytes(files["README.md"])
    card = ModelCard.load(tmp_path / "README.md")
    measured = json.loads(files["results.json"])["models"][REPOSITORY]["results"]["val"]
    assert [(result.metric_type, result.metric_value) for result in card.data.eval_results] == [
        ("loss", measured["loss,none"]),
        ("bits_per_byte", measured["bits_per_byte,none"]),
    ]
    assert "](loss.png)" in card.text
    assert files["loss.png"].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("reader", "module"),
    [
        ("with the package", "modeling_gpt2scratch."),
        ("without it", "transformers_modules.someone.tiny."),
    ],
    ids=["with the package", "without it"],
)
def test_the_code_on_the_card_loads_the_same_model(trained, loaded, reader, module):
    _, model, tokenizer = trained
    found = loaded[reader]
    input_ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    assert found["module"].startswith(module)
    assert found["input_ids"] == input_ids.tolist()
    assert found["text"] == TEXT
    with torch.no_grad():
        logits = model(input_ids).logits
    torch.testing.assert_close(torch.tensor(found["logits"]), logits, atol=1e-6, rtol=0)
