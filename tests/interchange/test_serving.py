"""The stock copy of a run that `transformers serve` serves, and where it is kept."""

import os
import shutil
import time

import pytest
import torch
from huggingface_hub import scan_cache_dir
from safetensors.torch import load_file
from support.tiny_models import random_ids, tiny_stock_model, tiny_tokenizer, tiny_twins
from transformers import AutoTokenizer, GenerationConfig, GPT2LMHeadModel

from modeling_gpt2scratch.interchange.foreign_checkpoints import ConversionError
from modeling_gpt2scratch.interchange.serving import (
    MAX_COPIES,
    copy_for_serving,
    fit_request,
    sound_request,
)


@pytest.fixture
def run_dir(tmp_path):
    """A run of ours whose generation is greedy, as that of earlier versions."""
    ours, _ = tiny_twins(tmp_path / "stock")
    directory = tmp_path / "my run (2)"
    ours.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def snapshot_of(cache):
    """The only model of a cache, as the Hub's client finds it: its name and its directory."""
    (repository,) = scan_cache_dir(cache).repos
    (revision,) = repository.revisions
    assert revision.refs == {"main"}
    return repository.repo_id, revision.snapshot_path


def test_the_copy_is_a_stock_gpt2_with_the_same_weights(run_dir, tmp_path):
    cache, name = copy_for_serving(run_dir, tmp_path / "served")
    repository, directory = snapshot_of(cache)
    assert name == repository == "my-run-2"
    copy = GPT2LMHeadModel.from_pretrained(directory)
    assert copy.config.architectures == ["GPT2LMHeadModel"]
    expected = GPT2LMHeadModel.from_pretrained(tmp_path / "stock").state_dict()
    assert copy.state_dict().keys() == expected.keys()
    assert all(torch.equal(copy.state_dict()[key], value) for key, value in expected.items())
    tokenizer = AutoTokenizer.from_pretrained(directory)
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "the cat"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "the cat"
    assert not (run_dir / "chat_template.jinja").exists()


def test_a_copy_samples_as_the_run_says_or_else_as_suits_small_models(run_dir, tmp_path):
    def settings():
        cache, _ = copy_for_serving(run_dir, tmp_path / "served")
        config = GenerationConfig.from_pretrained(snapshot_of(cache)[1])
        return config.do_sample, config.temperature, config.top_k

    assert settings() == (True, 0.8, 50)
    own = GenerationConfig.from_pretrained(run_dir)
    own.update(do_sample=True, temperature=0.5)
    own.save_pretrained(run_dir)
    assert settings() == (True, 0.5, None)


def test_a_copy_is_made_once_for_the_same_files(run_dir, tmp_path):
    served = tmp_path / "served"
    cache, _ = copy_for_serving(run_dir, served)
    weights = snapshot_of(cache)[1] / "model.safetensors"
    made = os.stat(weights)
    (run_dir / "metrics.jsonl").write_text("{}\n")
    assert copy_for_serving(run_dir, served)[0] == cache
    assert os.stat(weights).st_ino == made.st_ino
    (run_dir / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with_template, _ = copy_for_serving(run_dir, served)
    assert with_template != cache
    shutil.rmtree(with_template)
    tiny_stock_model(n_layer=1).save_pretrained(tmp_path / "other")
    ours, _ = tiny_twins(tmp_path / "other", n_layer=1)
    ours.save_pretrained(run_dir)
    other, name = copy_for_serving(run_dir, served)
    assert other != cache and name == "my-run-2"
    assert GPT2LMHeadModel.from_pretrained(snapshot_of(other)[1]).config.n_layer == 1
    assert sorted(served.iterdir()) == sorted([cache, other])


def test_weights_and_vocabularies_of_any_format_make_another_copy(run_dir, tmp_path):
    served = tmp_path / "served"
    state = load_file(run_dir / "model.safetensors")
    (run_dir / "model.safetensors").unlink()
    torch.save(state, run_dir / "pytorch_model.bin")
    first, _ = copy_for_serving(run_dir, served)
    state["transformer.ln_f.bias"] += 1
    torch.save(state, run_dir / "pytorch_model.bin")
    second, _ = copy_for_serving(run_dir, served)
    (run_dir / "merges.txt").write_text("#version: 0.2\n")
    assert len({first, second, copy_for_serving(run_dir, served)[0]}) == 3


def test_a_checkpoint_has_the_name_of_its_run_and_the_least_recent_copies_go(run_dir, tmp_path):
    served, copies = tmp_path / "served", []
    for number in range(MAX_COPIES + 2):
        checkpoint = tmp_path / "runs" / "Tiny" / f"checkpoint-{number}"
        shutil.copytree(run_dir, checkpoint)
        cache, name = copy_for_serving(checkpoint, served)
        assert name == f"Tiny-checkpoint-{number}"
        copies.append(cache)
        os.utime(cache, (number, number))
        if number == MAX_COPIES:  # the first one is served again
            assert copy_for_serving(checkpoint.with_name("checkpoint-0"), served)[0].is_dir()
    assert copies[-1].is_dir() and len([*served.iterdir()]) == MAX_COPIES


def test_what_an_interrupted_copy_left_is_deleted_the_day_after(run_dir, tmp_path):
    served = tmp_path / "served"
    others = [served / name for name in ("of-today.partial", "left.partial", "tmp-of-others")]
    for path in others:
        (path / "models--x").mkdir(parents=True)
    for path in others[1:]:
        os.utime(path, (1, time.time() - 90_000))
    cache, _ = copy_for_serving(run_dir, served)
    assert sorted(served.iterdir()) == sorted([cache, others[0], others[2]])


def test_what_cannot_be_served_leaves_nothing_behind(run_dir, tmp_path):
    (run_dir / "tokenizer_config.json").unlink()
    with pytest.raises(ConversionError, match="expected a tokenizer beside the model, found none"):
        copy_for_serving(run_dir, tmp_path / "served")
    with pytest.raises(ConversionError, match="expected a gpt2scratch model, found gpt2"):
        copy_for_serving(tmp_path / "stock", tmp_path / "served")
    with pytest.raises(ConversionError, match="one of its checkpoint-N, found no config.json$"):
        copy_for_serving(tmp_path / "none", tmp_path / "served")
    assert [*(tmp_path / "served").glob("*")] == []


@pytest.mark.parametrize(("asked", "n_new"), [(1024, 40), (None, 40), (5, 5)])
def test_a_request_ends_with_the_last_position_of_the_model(asked, n_new):
    model = tiny_stock_model()
    inputs = {"input_ids": random_ids(1, 9)}
    options = GenerationConfig(max_new_tokens=asked, do_sample=False, eos_token_id=None)
    fit_request(model, tiny_tokenizer(), inputs, options)
    assert options.max_new_tokens == n_new  # of 48 positions; the last token needs none
    assert model.generate(**inputs, generation_config=options).shape == (1, 9 + n_new)
    too_long = {"input_ids": random_ids(1, 60)}
    with pytest.raises(ValueError, match="expected a prompt of at most 48 tokens, found 60"):
        fit_request(model, tiny_tokenizer(), too_long, options)


def test_a_request_asks_for_at_least_one_token_and_an_empty_list_of_stops_is_none():
    inputs = {"input_ids": random_ids(1, 9)}
    options = GenerationConfig(max_new_tokens=5, stop_strings=[])
    fit_request(tiny_stock_model(), tiny_tokenizer(), inputs, options)
    assert options.stop_strings is None
    for stops, kept in (("", None), ([""], None), (["", "a"], ["a"]), ("ab", ["ab"])):
        options.stop_strings = stops
        fit_request(tiny_stock_model(), tiny_tokenizer(), inputs, options)
        assert options.stop_strings == kept
    options.max_new_tokens = 0
    with pytest.raises(ValueError, match="expected at least 1 token to generate, found 0; ask for"):
        fit_request(tiny_stock_model(), tiny_tokenizer(), inputs, options)


def test_a_request_without_a_prompt_begins_a_document():
    tokenizer = tiny_tokenizer()
    inputs = tokenizer("", return_tensors="pt")
    fit_request(tiny_stock_model(), tokenizer, inputs, options := GenerationConfig())
    assert inputs["input_ids"].tolist() == [[tokenizer.bos_token_id]]
    assert inputs["attention_mask"].tolist() == [[1]] and options.max_new_tokens == 48


def test_a_request_has_whole_characters_and_not_too_many_of_them():
    model = tiny_stock_model()
    body = {"prompt": "a \ud800 b", "messages": [{"content": "\udc00\U0001f600"}], "seed": 3}
    assert sound_request(model, body) == {
        "prompt": "a \ufffd b",
        "messages": [{"content": "\ufffd\U0001f600"}],
        "seed": 3,
    }
    with pytest.raises(ValueError, match="at most 262,144 characters, found 300,014; shorten it"):
        sound_request(model, {"prompt": "a" * 300_000})
    model.config.n_positions = 2000  # 256 characters for each
    assert len(sound_request(model, {"prompt": "a" * 300_000})["prompt"]) == 300_000
