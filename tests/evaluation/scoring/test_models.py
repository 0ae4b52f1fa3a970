"""Models that cannot be loaded: one line that names the file, and no code of theirs is executed."""

import io
import json
import re
import sys

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from support import evaluation as tiny
from support.damaged_files import DAMAGES, add_hostile_code, damaged, lfs_pointer, spoil_config
from support.servers import fake_hub
from support.tiny_models import tiny_stock_model, tiny_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from modeling_gpt2scratch import GPT2ScratchForCausalLM
from modeling_gpt2scratch.common.errors import in_words
from modeling_gpt2scratch.data.tokens import tokenizer as data_tokenizer
from modeling_gpt2scratch.data.tokens.names import TokenizerError
from modeling_gpt2scratch.evaluation.results.fingerprints import checksums_of
from modeling_gpt2scratch.evaluation.scoring.models import (
    describe_model,
    load_scorer,
    load_tokenizer,
)
from modeling_gpt2scratch.evaluation.scoring.processes import ProcessGroup
from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer

OPTIONS = {"device": "cpu", "dtype": "float32", "batch_tokens": 64, "trust_remote_code": False}


@pytest.fixture
def stock(tmp_path):
    """The directory of a model of transformers."""
    tiny_stock_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def processes():
    """This process alone."""
    return ProcessGroup("cpu")


def problem(directory, processes) -> str:
    """The line that stands in the place of the model's results."""
    with pytest.raises(Exception) as error:
        load_scorer(str(directory), processes=processes, **OPTIONS)
    return in_words(error.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_named_with_what_to_do(stock, processes, damage):
    weights = stock / "model.safetensors"
    weights.write_bytes(damaged(weights.read_bytes(), damage))
    expected = f"{weights}: expected a safetensors file, found {DAMAGES[damage]}"
    assert re.match(expected, problem(stock, processes))


def test_a_configuration_of_fewer_layers_than_there_are_weights_for_is_refused(stock, processes):
    config = json.loads((stock / "config.json").read_text())
    (stock / "config.json").write_text(json.dumps(config | {"n_layer": config["n_layer"] - 1}))
    line = problem(stock, processes)
    last = f"transformer.h.{config['n_layer'] - 1}."
    assert line.startswith(f"expected config.json to be that of the weights, found {last}")
    weights = load_file(stock / "model.safetensors")
    (stock / "config.json").write_text(json.dumps(config))
    # A head of another program and buffers of an earlier transformers change nothing.
    weights["v_head.summary.weight"] = torch.ones(1, config["n_embd"])
    weights["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(weights, stock / "model.safetensors", metadata={"format": "pt"})
    load_scorer(str(stock), processes=processes, **OPTIONS)


def test_a_pointer_is_named_though_there_is_no_tokenizer_either(tmp_path, processes):
    case = lfs_pointer(tmp_path / "clone")
    assert problem(case, processes) == (
        f"{case}/model.safetensors: expected a safetensors file, found a Git-LFS pointer; "
        f"run `git lfs pull` there"
    )


@pytest.mark.parametrize(
    ("file", "todo"),
    [
        ("config.json", "name its directory"),
        ("ckpt.pt", "`gpt2scratch convert from-nanogpt {} OUT` makes one"),
        ("gpt2_124M.bin", "`gpt2scratch convert from-llmc {} OUT` makes one"),
        ("model.gguf", "convert it to a directory with config.json and model.safetensors first"),
    ],
)
def test_a_file_of_a_model_is_no_model(stock, processes, file, todo):
    path = stock / file
    path.touch()
    line = problem(path, processes)
    assert line == f"expected a model directory, found a file; {todo.format(path)}"


def test_code_beside_a_model_is_never_executed_and_nobody_is_asked(stock, processes, monkeypatch):
    touched = add_hostile_code(stock)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 50))
    assert load_scorer(str(stock), processes=processes, **OPTIONS).model.config.n_layer == 2
    spoil_config(stock, {"model_type": "hostile"})
    assert "trust_remote_code" in problem(stock, processes)
    assert not touched.exists() and sys.stdin.read() == "y\n" * 50


@pytest.fixture
def hub(stock, tmp_path_factory, monkeypatch):
    """A Hub with two revisions of a model: the stock one, and one whose weights are all doubled."""
    home = tmp_path_factory.mktemp("home")
    first = {path.name: path.read_bytes() for path in stock.iterdir()}
    doubled = load_file(stock / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in doubled.items()}, home / "doubled")
    second = first | {"model.safetensors": (home / "doubled").read_bytes()}
    revisions = {"step-1": first, "refs/pr/2": second}
    with fake_hub.serve("someone/tiny", {}, kind="models", revisions=revisions) as hub:
        hub.use_here(monkeypatch, home)
        yield hub


def test_a_revision_of_the_hub_is_a_model_of_its_own(hub, stock, processes):
    names = ["someone/tiny@step-1", "someone/tiny@refs/pr/2"]
    first, second = (load_scorer(name, processes=processes, **OPTIONS) for name in names)
    here = load_scorer(str(stock), processes=processes, **OPTIONS)
    own, theirs = first.model.state_dict(), second.model.state_dict()
    for name, tensor in here.model.state_dict().items():
        assert torch.equal(own[name], tensor) and torch.equal(theirs[name], 2 * tensor)
    files = {name: checksums_of(name) for name in [*names, str(stock)]}
    assert files[names[0]] == files[str(stock)] != files[names[1]]


def test_a_revision_that_is_not_there_is_named_and_a_directory_may_be_called_like_one(
    hub, stock, processes, tmp_path, monkeypatch
):
    assert problem("someone/tiny@step-2", processes).startswith(
        "expected a branch, tag or commit of someone/tiny, found no step-2; its page on the Hub"
    )
    monkeypatch.chdir(stock.parent)
    stock.rename("tiny@step-2")
    assert load_scorer("tiny@step-2", processes=processes, **OPTIONS).model.config.n_layer == 2


def test_where_the_hub_cannot_be_reached_the_cache_serves_and_nothing_is_asked_again(
    hub, processes, monkeypatch, caplog
):
    load_scorer("someone/tiny@step-1", processes=processes, **OPTIONS)
    caplog.clear()
    nowhere = "http://127.0.0.1:9"
    template = nowhere + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    scorer = load_scorer("someone/tiny@step-1", processes=processes, **OPTIONS)
    assert scorer.model.config.n_layer == 2
    assert problem("someone/other", processes) == (
        f"expected a model directory, a copy in the cache, or {nowhere} in reach and "
        f"HF_HUB_OFFLINE unset, found none of them"
    )
    with pytest.raises(TokenizerError) as refused:
        data_tokenizer.load_tokenizer("someone/other")
    assert str(refused.value).endswith(f": no copy in the cache, and {nowhere} cannot be reached")
    assert "Retrying" not in caplog.text and not constants.HF_HUB_OFFLINE


def test_vocabularies_are_the_same_whose_tokens_are_whatever_the_special_ones():
    tokenizers = [tiny.tiny_tokenizer(), tiny.bos_tokenizer(), tiny.tiny_tokenizer(n_merges=10)]
    scorers = [CausalScorer(tiny.tiny_gpt2(t), t, batch_tokens=64) for t in tokenizers]
    plain, with_bos, smaller = (describe_model(s)["vocabulary_sha256"] for s in scorers)
    assert plain == with_bos != smaller


def test_a_tokenizer_of_few_letters_is_one_and_an_empty_one_is_none(tmp_path):
    letters = {letter: number for number, letter in enumerate("ACGT")}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(BPE(letters, [])), eos_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(tmp_path / "dna")
    found = load_tokenizer(str(tmp_path / "dna"), trust_remote_code=False)
    assert found("GATTACA")["input_ids"] == [2, 0, 3, 3, 0, 1, 0]
    tiny_stock_model().save_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match="expected a tokenizer beside the model, found none"):
        load_tokenizer(str(tmp_path / "none"), trust_remote_code=False)


def test_a_tokenizer_with_an_id_that_would_fill_the_memory_is_refused(stock, processes):
    path = stock / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"][next(iter(content["model"]["vocab"]))] = 2**31
    path.write_text(json.dumps(content))
    assert f"expected ids below 4,194,304, found {2**31} in tok" in problem(stock, processes)


@pytest.mark.parametrize("is_ours", [False, True])
def test_no_compiled_code_of_the_hub_is_asked_for(stock, processes, monkeypatch, is_ours):
    if is_ours:
        GPT2ScratchForCausalLM.from_pretrained(stock).save_pretrained(stock)
    original, asked = PreTrainedModel.from_pretrained.__func__, []

    def from_pretrained(cls, *arguments, use_kernels=None, **options):
        asked.append(use_kernels)
        return original(cls, *arguments, **options)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(from_pretrained))
    load_scorer(str(stock), processes=processes, **OPTIONS)
    assert asked == [False]


def test_a_tokenizer_that_parts_words_at_random_is_refused(stock, processes):
    path = stock / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["dropout"] = 0.1
    path.write_text(json.dumps(content))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (stock / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "gives a text the same ids each time, found dropout 0.1" in problem(stock, processes)
