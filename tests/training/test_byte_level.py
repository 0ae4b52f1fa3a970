"""Models of bytes: trained, exported, loaded elsewhere and evaluated like any other."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.evaluation import compare, naive_nats
from support.processes import run_process
from support.terminal import terminal
from support.tiny_corpus import stream
from support.tiny_models import WITHOUT_PACKAGE
from support.training_runs import flags, run_here
from transformers import AutoTokenizer, GPT2LMHeadModel

from modeling_gpt2scratch import GPT2ScratchForCausalLM
from modeling_gpt2scratch.commands.convert import main as convert
from modeling_gpt2scratch.data.preparation.configuration import PrepareConfig
from modeling_gpt2scratch.data.preparation.prepare import prepare

TEXT = "Der Fuchs sah die Trauben: „zu sauer“, sagte er. 狐は葡萄を見た。 <|endoftext|\n" * 60
LOAD = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], **json.loads(sys.argv[2]))
print(type(tokenizer).__module__.split(".")[0], tokenizer("é\\n<")["input_ids"], len(tokenizer))
"""
LOADED = "transformers [195, 169, 10, 60] 257"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Directories of the data, of a run on it, and of its export."""
    root = tmp_path_factory.mktemp("bytes")
    (root / "input.txt").write_text(TEXT, encoding="utf-8")
    prepare(
        PrepareConfig(
            dataset=str(root / "input.txt"),
            tokenizer="bytes",
            val_fraction=0.2,
            output_dir=str(root / "data"),
        )
    )
    changes = {"max_steps": 3, "eval_every": 3, "save_every": 3}
    with pytest.MonkeyPatch.context() as patch:
        assert run_here(patch, *flags(root / "data", root / "run", **changes)) == 0
    convert(["to-gpt2", str(root / "run"), str(root / "stock")])
    return root


def test_the_export_is_a_stock_model_of_257_entries(made):
    theirs = GPT2LMHeadModel.from_pretrained(made / "stock").eval()
    ours = GPT2ScratchForCausalLM.from_pretrained(made / "run").eval()
    assert theirs.config.vocab_size == ours.config.vocab_size == 257
    ids = torch.tensor([stream(made / "data", "val")[:32]])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, atol=1e-5, rtol=0)
    tokenizer = AutoTokenizer.from_pretrained(made / "stock")
    text = TEXT[-200:]
    assert tokenizer(text, split_special_tokens=True)["input_ids"] == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text


def test_it_is_evaluated_like_any_other_and_bits_per_byte_are_those_of_its_bytes(made, tmp_path):
    models = [str(made / "run"), str(made / "stock")]
    arguments = ["--models", *models, "--tasks", "val", "text", "--device", "cpu"]
    arguments += ["--val_data", str(made / "data"), "--text_data", str(made / "input.txt")]
    arguments += ["--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache")]
    assert compare.main(arguments) == 0
    content = json.loads((tmp_path / "out" / "results.json").read_text())["models"]
    ours, stock = (content[name]["results"] for name in models)
    for task in ("val", "text"):
        assert ours[task]["bits_per_byte,none"] == pytest.approx(
            stock[task]["bits_per_byte,none"], rel=1e-5
        )
    model = GPT2ScratchForCausalLM.from_pretrained(made / "run").eval()
    ids = np.array(stream(made / "data", "val"))
    windows = [ids[start : start + 33] for start in range(0, len(ids) - 32, 32)]
    nats = np.concatenate([naive_nats(model, window).numpy() for window in windows])
    # The one end of text is the first id, which is no target: each target is a byte.
    assert 256 not in ids[1:]
    assert ours["val"]["bits_per_byte,none"] == pytest.approx(nats.mean() / math.log(2), rel=1e-5)
    assert content[models[0]]["details"]["val"]["n_target_bytes"] == len(nats)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"trust_remote_code": False}], ids=["plain", "no trust"])
def test_its_tokenizer_loads_without_the_package(made, tmp_path, options):
    command = [sys.executable, "-c", WITHOUT_PACKAGE + LOAD, str(made / "run"), json.dumps(options)]
    finished = run_process(command, cwd=tmp_path, stdin=subprocess.DEVNULL, check=True)
    assert finished.stdout.splitlines()[-1].endswith(LOADED)


@pytest.mark.gate
@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo-terminal")
def test_its_tokenizer_loads_at_a_terminal_without_a_question(made, tmp_path):
    options = json.dumps({"trust_remote_code": False})
    command = [sys.executable, "-c", WITHOUT_PACKAGE + LOAD, str(made / "run"), options]
    with terminal(command, cwd=tmp_path) as there:
        assert there.wait() == 0
        assert LOADED in there.output
        assert "[y/N]" not in there.output
    # What the preparation made has no code that anybody could ask about.
    command[-2:] = [str(made / "data"), "{}"]
    with terminal(command, cwd=tmp_path) as there:
        assert there.wait() == 0
        assert LOADED in there.output
        assert "[y/N]" not in there.output
