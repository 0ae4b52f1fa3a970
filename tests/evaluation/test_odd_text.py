"""Odd text and diverged models cost no other number of their task."""

import json

import pytest
import torch
from support import evaluation as tiny
from support.evaluation import compare

HALF = "\ud83d"  # of an emoji


@pytest.fixture
def measure(tmp_path, capsys):
    """Measures a model, whose weights a function may change, and returns results and output."""

    def measure(*arguments, change=None):
        tokenizer = tiny.tiny_tokenizer()
        model = tiny.tiny_gpt2(tokenizer, n_positions=64)
        if change:
            with torch.no_grad():
                change(model)
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        places = ["--models", str(tmp_path / "model"), "--output_dir", str(tmp_path / "out")]
        places += ["--cache_dir", str(tmp_path / "cache"), "--device", "cpu"]
        assert compare.main([*places, *arguments]) == 0
        content = (tmp_path / "out" / "results.json").read_text()
        # Strict JSON has no infinity.
        (model,) = json.loads(content, parse_constant=pytest.fail)["models"].values()
        return model, capsys.readouterr().out

    return measure


def write_jsonl(path, *rows):
    """With half a surrogate pair as `\\ud83d`."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_half_a_surrogate_pair_ends_no_task(tmp_path, measure):
    passages = [{"text": f"the cat {HALF} sat on the mat"}, {"text": "the dog sat"}]
    scene = {"activity_label": "a", "ctx_a": f"the {HALF} cat", "ctx_b": "", "label": 0}
    scene["endings"] = ["sat", f"{HALF}", "was", "end"]
    goal = {"goal": f"the {HALF}", "sol1": "cat", "sol2": f"dog {HALF}", "label": 1}
    question = {"question": f"{HALF} what", "answerKey": "A"}
    question["choices"] = {"text": [f"cat {HALF}", "dog"], "label": ["A", "B"]}
    files = {
        "lambada": write_jsonl(tmp_path / "lambada.jsonl", *passages),
        "hellaswag": write_jsonl(tmp_path / "hellaswag.jsonl", scene),
        "piqa": write_jsonl(tmp_path / "piqa.jsonl", goal),
        "arc_easy": write_jsonl(tmp_path / "arc.jsonl", question),
        "text": write_jsonl(tmp_path / "text.jsonl", *passages),
    }
    flags = [part for name, path in files.items() for part in (f"--{name}_data", path)]
    model, _ = measure("--tasks", *files, *flags)
    assert (set(model["results"]), model["errors"]) == (set(files), {})


@pytest.mark.parametrize("is_second_call", [False, True], ids=["measured", "from the cache"])
def test_a_diverged_model_has_its_accuracy_and_the_nats_of_its_perplexity(
    tmp_path, measure, is_second_call
):
    def diverge(model):
        model.transformer.ln_f.weight *= 3000

    passages = [{"text": f"the cat sat on {i} the mat"} for i in range(9)]
    path = write_jsonl(tmp_path / "lambada.jsonl", *passages)
    arguments = ["--tasks", "lambada", "--lambada_data", path]
    if is_second_call:
        measure(*arguments, change=diverge)
    model, output = measure(*arguments, change=diverge)
    assert model["from_cache"] == {"lambada": is_second_call}
    scores = model["results"]["lambada"]
    assert 0 <= scores["acc,none"] <= 1
    assert scores["perplexity_nats,none"] > 709
    assert "perplexity,none" not in scores
    assert f"inf (e^{scores['perplexity_nats,none']:,.1f})" in output
    assert "a perplexity too large for a number" in output


def test_text_without_spaces_has_its_bits_per_byte(tmp_path, measure):
    path = write_jsonl(tmp_path / "text.jsonl", {"text": "吾輩は猫である。名前はまだ無い。" * 20})
    model, output = measure("--tasks", "text", "--text_data", path)
    scores = model["results"]["text"]
    assert scores["word_perplexity_nats,none"] == pytest.approx(
        scores["bits_per_byte,none"] * 0.6931472 * 16 * 3 * 20, rel=1e-4
    )
    assert scores["byte_perplexity,none"] > 1
    assert "inf (e^" in output
