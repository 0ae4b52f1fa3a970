"""A whole training run that scores benchmarks between its steps."""

import json

import pytest
from support.evaluation import compare
from support.training_runs import flags, run_here

from modeling_gpt2scratch.evaluation import TASKS, in_training
from modeling_gpt2scratch.tracking.metrics import read_metrics
from modeling_gpt2scratch.training import loop, validation
from modeling_gpt2scratch.training.progress import TrainingProgress

NAMES = ("lambada", "hellaswag")


@pytest.fixture
def data_flags(tmp_path):
    """Local files of both benchmarks, as arguments."""
    passages = [{"text": f"Alice looked at the {word}"} for word in ("cat", "rabbit", "queen")]
    question = {"activity_label": "Tea", "ctx_a": "Alice sat down.", "ctx_b": "She", "label": 1}
    questions = [question | {"endings": ["slept.", "drank tea.", f"ran {n}.", "was"]} for n in "ab"]
    for name, rows in zip(NAMES, (passages, questions), strict=True):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    return [part for name in NAMES for part in (f"--{name}_data", str(tmp_path / f"{name}.jsonl"))]


def test_a_run_logs_the_scores_that_compare_finds_in_its_model(
    small_data, data_flags, tmp_path, monkeypatch
):
    output_dir, results_dir = tmp_path / "run", tmp_path / "results"
    n_passages = []  # of each scoring
    score = in_training.score_benchmarks

    def score_and_count(benchmarks, *args, **kwargs):
        n_passages.append(len(benchmarks["lambada"].texts))
        return score(benchmarks, *args, **kwargs)

    monkeypatch.setattr(validation, "score_benchmarks", score_and_count)
    arguments = [*flags(small_data, output_dir), "--eval_tasks", *NAMES, "--eval_tasks_every", "5"]
    assert run_here(monkeypatch, *arguments, *data_flags) == 0
    assert n_passages == [1, 3, 3, 3]  # before the first step, and after the 5th, 10th, and last

    scored = [row for row in read_metrics(output_dir / "metrics.jsonl") if "lambada/acc" in row]
    assert [row["step"] for row in scored] == [5, 10, 12]
    command = ["--models", str(output_dir), "--tasks", *NAMES, "--device", "cpu", *data_flags]
    assert compare.main([*command, "--output_dir", str(results_dir)]) == 0
    (model,) = json.loads((results_dir / "results.json").read_text())["models"].values()
    for name in NAMES:
        for metric in TASKS[name].metrics:
            expected = model["results"][name][f"{metric},none"]
            assert scored[-1][f"{name}/{metric}"] == pytest.approx(expected, rel=1e-5)


def test_a_run_that_ends_early_is_scored_and_one_that_is_to_end_where_it_stands_is_too(
    small_data, data_flags, tmp_path, monkeypatch
):
    output_dir = tmp_path / "run"
    benchmarks = ["--eval_tasks", "lambada", *data_flags[:2]]
    metrics = output_dir / "metrics.jsonl"

    def scored() -> list[int]:
        return [row["step"] for row in read_metrics(metrics) if "lambada/acc" in row]

    options = {"eval_every": 3, "patience": 1, "keep_checkpoints": 0}
    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "is_out_of_patience", lambda self, patience: self.step >= 6)
        arguments = flags(small_data, output_dir, **options)
        assert run_here(patch, *arguments, *benchmarks) == 0
    assert scored() == [6]
    # An earlier checkpoint becomes the end: its line gets what the end of a run has.
    arguments = flags(small_data, output_dir, eval_every=6, max_steps=4)
    resumed = ["--resume", str(output_dir / "checkpoint-4")]
    assert run_here(monkeypatch, *arguments, *benchmarks, *resumed) == 0
    assert scored() == [4]
    assert "eval_loss" in read_metrics(metrics)[-1]
    assert run_here(monkeypatch, *arguments, *benchmarks, *resumed) == 0  # and not twice
    assert [row["step"] for row in read_metrics(metrics)] == [1, 2, 3, 4]


@pytest.mark.parametrize("end", [{"eval_every": 0}, {"eval_every": 1, "patience": 1}])
def test_a_finished_run_is_scored_on_what_it_was_not_asked_for_before(
    small_data, data_flags, tmp_path, monkeypatch, end
):
    def validate(run, **options):
        return {"eval_loss": 1.0 + run.progress.step}  # so the second step's is no better

    monkeypatch.setattr(loop, "validate", validate)
    output_dir = tmp_path / "run"
    options = {"max_steps": 9 if "patience" in end else 2, "resume": "auto"} | end
    arguments = flags(small_data, output_dir, **options)
    assert run_here(monkeypatch, *arguments) == 0
    losses = [row["loss"] for row in read_metrics(output_dir / "metrics.jsonl")]
    # Nothing is trained with the other rate, so the record keeps the one that was.
    scoring = [*arguments, "--learning_rate", "3e-4", "--eval_tasks", *NAMES, *data_flags]
    assert run_here(monkeypatch, *scoring) == 0
    (checkpoint,) = output_dir.glob("checkpoint-2")
    state = json.loads((checkpoint / "training_state.json").read_text())
    for config in (json.loads((output_dir / "train_config.json").read_text()), state["config"]):
        assert config["learning_rate"] == 1e-2 and config["eval_tasks"] == [*NAMES]
        assert config["mixed_precision"] == "no"  # and not "auto"
    rows = read_metrics(output_dir / "metrics.jsonl")
    assert [row["loss"] for row in rows] == losses
    assert {f"{name}/acc" for name in NAMES} <= rows[-1].keys()
    assert (output_dir / "model.safetensors").exists()
    calls, again = [], [*scoring, "--preflight", "false"]
    monkeypatch.setattr(loop, "score", lambda *_, **__: calls.append(1) or {})
    assert run_here(monkeypatch, *again) == 0 and not calls
    assert run_here(monkeypatch, *again, "--eval_tasks_limit", "2") == 0 and calls
    assert json.loads((output_dir / "train_config.json").read_text())["eval_tasks_limit"] == 2


def test_a_stop_in_the_scores_keeps_the_validation_and_sends_nothing_before_its_scores_are_there(
    small_data, data_flags, tmp_path, monkeypatch
):
    benchmarks = ["--eval_tasks", "lambada", *data_flags[:2]]
    options = {"eval_every": 3, "eval_tasks_every": 3, "patience": 1, "max_steps": 9}

    def out_of_patience(progress, patience):
        return progress.step >= 6

    def run(name: str, *arguments: str) -> list[dict]:
        output_dir = tmp_path / name
        monkeypatch.setattr(TrainingProgress, "is_out_of_patience", out_of_patience)
        every = flags(small_data, output_dir, **options)
        assert run_here(monkeypatch, *every, *benchmarks, *arguments) == 0
        return read_metrics(output_dir / "metrics.jsonl")

    whole = run("whole")
    with monkeypatch.context() as patch:
        has_begun, sent = [], []
        is_asked, score, save = loop.is_asked_to_stop, loop.score, loop.save

        def score_and_note(run, benchmarks, **arguments):
            has_begun.append(run.progress.step)
            return score(run, benchmarks, **arguments)

        def save_and_note(run, *, is_sent):
            sent.append((run.progress.step, is_sent))
            return save(run, is_sent=is_sent)

        patch.setattr(loop, "score", score_and_note)
        patch.setattr(loop, "save", save_and_note)
        patch.setattr(
            loop,
            "is_asked_to_stop",
            lambda run, request: is_asked(run, request) or 6 in has_begun,
        )
        rows = run("stopped")
    assert rows[-1]["step"] == 6 and "eval_loss" in rows[-1] and "lambada/acc" not in rows[-1]
    assert (6, True) not in sent and (6, False) in sent
    state = json.loads((tmp_path / "stopped/checkpoint-6/training_state.json").read_text())
    assert state["is_owed"] and state["best"]["last_step"] == 6
    resumed = run("stopped", "--resume", "auto")
    assert [row["step"] for row in resumed] == [row["step"] for row in whole]
    for name in ("loss", "eval_loss", "lambada/acc"):
        assert [row.get(name) for row in resumed] == [row.get(name) for row in whole]
