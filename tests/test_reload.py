"""A checkpoint in processes that start from nothing, with this package and without it."""

import json
import re
import sys

import pytest
import torch
from support.processes import run_process
from support.terminal import terminal
from support.tiny_models import WITHOUT_PACKAGE
from transformers import AutoTokenizer

from modeling_gpt2scratch import GPT2ScratchConfig, GPT2ScratchForCausalLM

pytestmark = pytest.mark.slow

LOAD = """
import json, sys, torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
directory, options = sys.argv[1], json.loads(sys.argv[2])
config = AutoConfig.from_pretrained(directory, **options)
base = AutoModel.from_pretrained(directory, **options).eval()
model = AutoModelForCausalLM.from_pretrained(directory, **options).eval()
tokenizer = AutoTokenizer.from_pretrained(directory, **options)
input_ids = tokenizer("class for a function", return_tensors="pt")["input_ids"]
with torch.no_grad():
    logits = model(input_ids).logits
    same_base = torch.equal(model.lm_head(base(input_ids).last_hidden_state), logits)
print(json.dumps({
    "config": type(config).__name__, "module": type(model).__module__, "same_base": same_base,
    "input_ids": input_ids.tolist(), "logits": logits.tolist(),
    "package": "modeling_gpt2scratch" in sys.modules,
}))
"""


@pytest.fixture(scope="module")
def model(small_data):
    """A model in which every parameter matters, also the biases and norms."""
    tokenizer = AutoTokenizer.from_pretrained(small_data)
    torch.manual_seed(0)
    end_of_text = tokenizer.eos_token_id
    config = GPT2ScratchConfig(
        vocab_size=len(tokenizer),
        n_positions=32,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
    )
    model = GPT2ScratchForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, small_data, model):
    """The model, saved, and its tokenizer."""
    directory = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(small_data).save_pretrained(directory)
    return directory


def run(code: str, *arguments: str, cwd) -> str:
    """Standard output of a fresh process; it must end well."""
    command = [sys.executable, "-c", code, *arguments]
    process = run_process(command, cwd=cwd)
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("prelude", "options"),
    [("import modeling_gpt2scratch", {}), (WITHOUT_PACKAGE, {"trust_remote_code": True})],
    ids=["with the package", "without it"],
)
def test_auto_classes_load_the_checkpoint_in_a_fresh_process(
    checkpoint, model, tmp_path, monkeypatch, prelude, options
):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    found = json.loads(run(prelude + LOAD, str(checkpoint), json.dumps(options), cwd=tmp_path))
    assert found["config"] == "GPT2ScratchConfig"
    assert found["package"] == (not options)
    assert found["module"].startswith("transformers_modules") == bool(options)
    assert found["same_base"]
    with torch.no_grad():
        logits = model(torch.tensor(found["input_ids"])).logits
    torch.testing.assert_close(torch.tensor(found["logits"]), logits, atol=1e-5, rtol=0)


def test_without_the_package_and_without_trust_nothing_is_run(checkpoint, tmp_path):
    code = WITHOUT_PACKAGE + (
        "from transformers import AutoModelForCausalLM\n"
        "try:\n"
        f"    AutoModelForCausalLM.from_pretrained({str(checkpoint)!r}, trust_remote_code=False)\n"
        "except ValueError as error:\n"
        "    print('trust_remote_code' in str(error))\n"
    )
    assert run(code, cwd=tmp_path) == "True"


@pytest.mark.parametrize(
    "first",
    [
        pytest.param("import transformers, modeling_gpt2scratch", marks=pytest.mark.gate),
        "from modeling_gpt2scratch import GPT2ScratchConfig",
    ],
)
def test_the_auto_classes_know_the_model_in_any_import_order(tmp_path, first):
    code = f"{first}\n" + (
        "from transformers import AutoConfig, AutoModelForCausalLM\n"
        "config = AutoConfig.for_model('gpt2scratch', n_embd=32, n_layer=1, n_head=2)\n"
        "print(type(AutoModelForCausalLM.from_config(config)).__module__)\n"
    )
    assert run(code, cwd=tmp_path) == "modeling_gpt2scratch.modeling_gpt2scratch"


def test_the_text_generation_pipeline_runs_on_the_directory(checkpoint, tmp_path):
    code = (
        "import sys, modeling_gpt2scratch, transformers\n"
        "write = transformers.pipeline('text-generation', model=sys.argv[1])\n"
        "print(write('The', max_new_tokens=5, do_sample=False)[0]['generated_text'][:3])\n"
    )
    assert run(code, str(checkpoint), cwd=tmp_path) == "The"


@pytest.mark.gate
@pytest.mark.parametrize("options", ["", ", trust_remote_code=False"])
def test_without_the_package_a_tokenizer_needs_no_code_and_no_question_is_asked_without_trust(
    checkpoint, tmp_path, options
):
    code = WITHOUT_PACKAGE + (
        "import json\n"
        "from transformers import AutoTokenizer\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(checkpoint)!r}{options})\n"
        "print(f\"ids: {json.dumps(tokenizer('class for a function')['input_ids'])}.\")\n"
    )
    with terminal([sys.executable, "-c", code], cwd=tmp_path) as person:
        if not options:  # transformers asks; once it does not, the docs can say less
            assert person.wait_for(r"run the custom code\? \[y/N\]")
            person.type("n\r")
        assert person.wait() == 0, person.output
    assert "custom code" not in person.output
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    expected = tokenizer("class for a function")["input_ids"]
    assert json.loads(re.search(r"ids: (.*)\.", person.output)[1]) == expected
