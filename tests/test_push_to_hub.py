"""A model pushed to a Hub and loaded from there, each in a process that starts from nothing."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import fake_hub
import pytest
import torch
from test_reload import WITHOUT_PACKAGE

pytestmark = pytest.mark.slow

REPOSITORY = "someone/tiny"
TOKEN = "hf_xJ4tP0qLw7"
TEXT = "class for a function\n  with  spaces, 12 µm"
PUSH = """
import json, sys, torch
from transformers import AutoTokenizer
from modeling_gpt2scratch import GPT2ScratchConfig, GPT2ScratchForCausalLM
repository, text, tokenizer_files = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(tokenizer_files)
torch.manual_seed(0)
end = tokenizer.eos_token_id
config = GPT2ScratchConfig(
    vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2,
    bos_token_id=end, eos_token_id=end,
)
model = GPT2ScratchForCausalLM(config).eval()
model.push_to_hub(repository)
tokenizer.push_to_hub(repository)
input_ids = tokenizer(text, return_tensors="pt")["input_ids"]
with torch.no_grad():
    logits = model(input_ids).logits
print(json.dumps({"input_ids": input_ids.tolist(), "logits": logits.tolist()}))
"""
LOAD = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
repository, text, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = AutoModelForCausalLM.from_pretrained(repository, **options).eval()
tokenizer = AutoTokenizer.from_pretrained(repository, **options)
input_ids = tokenizer(text, return_tensors="pt")["input_ids"]
with torch.no_grad():
    logits = model(input_ids).logits
print(json.dumps({
    "input_ids": input_ids.tolist(), "logits": logits.tolist(),
    "text": tokenizer.decode(input_ids[0]), "module": type(model).__module__,
}))
"""


def run(code: str, *arguments: str, environment: dict[str, str], cwd) -> dict:
    """The last line a fresh process prints, which must end well."""
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def pushed(tmp_path_factory, small_data):
    """A Hub after the push, and what the pushed model and tokenizer computed."""
    directory = tmp_path_factory.mktemp("push")
    with fake_hub.serve(REPOSITORY, {}, kind="models") as hub:
        environment = hub.environment(directory) | {"HF_TOKEN": TOKEN}
        arguments = (REPOSITORY, TEXT, str(small_data))
        yield hub, run(PUSH, *arguments, environment=environment, cwd=directory)


@pytest.fixture(scope="module")
def loaded(pushed, tmp_path_factory):
    """What two processes at a time compute with the pushed model and tokenizer, by reader."""
    hub, _ = pushed

    def load(prelude: str, options: dict) -> dict:
        directory = tmp_path_factory.mktemp("load")
        # Whoever loads a public model need not be logged in.
        environment = hub.environment(directory) | {"HF_TOKEN": ""}
        arguments = (REPOSITORY, TEXT, json.dumps(options))
        return run(prelude + LOAD, *arguments, environment=environment, cwd=directory)

    with ThreadPoolExecutor() as pool:
        found = {
            "with the package": pool.submit(load, "import modeling_gpt2scratch", {}),
            "without it": pool.submit(load, WITHOUT_PACKAGE, {"trust_remote_code": True}),
        }
        return {reader: future.result() for reader, future in found.items()}


def test_a_push_carries_weights_code_and_tokenizer(pushed):
    hub, _ = pushed
    assert {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("configuration_gpt2scratch.py", "modeling_gpt2scratch.py"),
        *("tokenizer.json", "tokenizer_config.json", "README.md"),
    } == set(hub.files)


def test_no_pushed_file_holds_the_token(pushed):
    hub, _ = pushed
    assert [path for path, content in hub.files.items() if TOKEN.encode() in content] == []


@pytest.mark.parametrize(
    ("reader", "module"),
    [
        ("with the package", "modeling_gpt2scratch."),
        ("without it", "transformers_modules.someone.tiny."),
    ],
    ids=["with the package", "without it"],
)
def test_a_pushed_model_computes_the_same_elsewhere(pushed, loaded, reader, module):
    _, expected = pushed
    found = loaded[reader]
    assert found["module"].startswith(module)
    assert found["input_ids"] == expected["input_ids"]
    assert found["text"] == TEXT
    torch.testing.assert_close(
        torch.tensor(found["logits"]), torch.tensor(expected["logits"]), atol=1e-6, rtol=0
    )
