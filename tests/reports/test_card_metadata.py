"""What the Hub reads of a card: the model that training began with, and scores of official data."""

import json

import pytest
from support.run_records import REPOSITORY, add_lambada, write_records

from modeling_gpt2scratch.reports.measured_records import read_records
from modeling_gpt2scratch.reports.model_card import model_card

SIZES = dict(parameters=12_345, n_layer=2, n_head=2, n_embd=32, n_positions=64, vocab_size=300)


@pytest.fixture
def run(tmp_path):
    """The records of a finished run."""
    write_records(tmp_path / "run")
    return tmp_path / "run"


def card_of(run):
    return model_card(read_records(run, repository=REPOSITORY, sizes=SIZES), repository=REPOSITORY)


def test_a_fine_tuned_model_names_the_one_it_began_with(run):
    arguments = json.loads((run / "train_config.json").read_text())
    for name, expected in (
        ("gpt2", "openai-community/gpt2"),
        ("someone/tales@step-100", "someone/tales"),
        ("/home/me/runs/old", None),
        ("/home/me/runs/gpt2", None),
    ):
        (run / "train_config.json").write_text(json.dumps(arguments | {"init_from": name}))
        assert card_of(run).data.base_model == expected
        others = f"those of the data and of `{expected}`" if expected else "that of the data"
        assert f"None is stated for the weights; see {others}." in card_of(run).text


def test_a_model_that_began_with_a_local_one_names_none_wherever_it_is_published(run):
    arguments = json.loads((run / "train_config.json").read_text())
    arguments |= {"init_from": "runs/gpt2", "init_from_is_local": True}
    (run / "train_config.json").write_text(json.dumps(arguments))
    card = card_of(run)
    assert card.data.base_model is None and "runs/gpt2" not in str(card)
    assert "trained from the weights of `gpt2 (local)`" in card.text
    content = json.loads((run / "data_manifest.json").read_text())
    for name, said in (("gpt2", "GPT-2's own"), ("/home/me/gpt2", "`gpt2 (local)`")):
        content["tokenizer"]["name"] = name
        (run / "data_manifest.json").write_text(json.dumps(content))
        assert f"Tokenizer: {said}." in card_of(run).text


@pytest.mark.parametrize(
    ("status", "is_official"), [("12 of 5153 samples, unchecked", False), ("official", True)]
)
def test_scores_of_other_data_are_said_to_be_that_and_not_listed(run, status, is_official):
    add_lambada(run, dataset_path="/x/mine.jsonl", data_status=status)
    card = card_of(run)
    listed = {result.dataset_type for result in card.data.eval_results or []}
    assert ("some/lambada" in listed) == is_official and "mine.jsonl" not in listed
    line = f"`lambada`: measured on mine.jsonl ({status}), which is not known to be the official"
    assert (line in card.text) != is_official
