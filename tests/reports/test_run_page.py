"""The report of a run: every number checkable by hand, and nothing of the machine."""

import json
from pathlib import Path

import pytest
from support.tiny_models import tiny_model, tiny_tokenizer

from modeling_gpt2scratch.checkpoints.checkpoint import save_model
from modeling_gpt2scratch.commands.report import main
from modeling_gpt2scratch.reports.run_page import report_at_end, write_report

ROWS = [
    {"step": 10, "loss": 5.0, "tokens_per_second": 900.0, "learning_rate": 0.1, "grad_norm": 2.0},
    {"step": 20, "loss": 4.0, "tokens_per_second": 1000.0, "eval_loss": 2.0, "sample": "early"},
    {"step": 30, "loss": None, "tokens_per_second": 1200.0, "eval_loss": 3.0},
]
ROWS[1] |= {"lambada/acc": 0.25, "lambada/perplexity": 80.0, "mfu": 0.4, "data_wait": 0.01}
ROWS[2] |= {"sample": "once\n\n`upon`", "lambada/acc": 0.5, "peak_device_memory_gib": 3.5}
ROWS[2] |= {"elapsed_seconds": 3725.2, "save_stall_seconds": 1.25, "eval_loss/one": 3.0}
EVENTS = [{"step": 30, "event": "skipped"}, {"step": 21, "event": "spike"}]


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path):
    """The directory of a run of 40 steps that was stopped after 30."""
    run = tmp_path / "alice"
    save_model(tiny_model(), tiny_tokenizer(), run)
    arguments = {
        "eval_tasks_limit": 7,
        "muon_learning_rate": 0.003,
        "max_steps": 40,
        "total_batch_tokens": 128,
        "learning_rate": 0.003,
    }
    arguments |= {"data": "/home/alice/data", "output_dir": str(run), "optimizer": "adamw"}
    (run / "train_config.json").write_text(json.dumps(arguments))
    (run / "environment.json").write_text(json.dumps({"device": "cpu", "processes": 2}))
    write_lines(run / "metrics.jsonl", ROWS)
    write_lines(run / "events.jsonl", EVENTS)
    return run


def cells_of(report: str) -> set[tuple[str, ...]]:
    """The rows of its table."""
    lines = [line for line in report.splitlines() if line.startswith("|")]
    return {tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in lines}


def test_a_report_says_what_the_run_recorded(run):
    report = write_report(run).read_text()
    assert cells_of(report) >= {
        ("Steps", "30 of 40"),
        ("Training loss, last", "4.0000 nats per token after step 20"),
        ("Validation loss, last", "3.0000 nats per token after step 30, perplexity 20.09"),
        ("Validation loss, best", "2.0000 nats per token after step 20, perplexity 7.39"),
        ("lambada, acc, first 7 examples", "0.5000 after step 30"),
        ("lambada, perplexity, first 7 examples", "80.0000 after step 20"),
        ("Time in training", "1:02:05"),
        ("Tokens per second, median", "1,000"),
        ("Model FLOP/s utilisation, median", "40.0%"),
        ("Waiting for data, median", "1.0%"),
        ("Peak memory of one GPU", "3.50 GiB"),
        ("Pause for a checkpoint, longest", "1.2 s"),
        ("Skipped steps", "1"),
        ("Loss spikes", "1"),
    }
    assert f"of {tiny_model().num_parameters():,} parameters (2 layers, 32 channels" in report
    assert "trained from scratch on 3,840 tokens." in report
    assert "## Sample after step 30\n\n    once\n    \n    `upon`\n" in report
    assert "early" not in report
    assert "Settings: total_batch_tokens 128, learning_rate 0.003, optimizer adamw." in report
    assert "Where it ran: device cpu, processes 2." in report
    assert "- `metrics.jsonl`: every logged step" in report
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "](curves.png)" in report


def test_a_report_says_of_which_step_the_best_weights_are(run):
    path = run / "train_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"final": "best"}))
    weights = ("Weights", "of step 20, the best of those that were kept")
    assert weights in cells_of(write_report(run).read_text())
    # A lower loss whose checkpoint was not kept is in the log, and not in the weights.
    row = {"step": 30, "loss": 3.0, "tokens_per_second": 900.0, "eval_loss": 4.0}
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    (run / "checkpoint-30").mkdir()
    state = {"step": 30, "best": {"step": 20, "loss": 4.25, "n_since": 1}}
    (run / "checkpoint-30" / "training_state.json").write_text(json.dumps(state))
    assert weights in cells_of(write_report(run).read_text())
    (run / "config.json").unlink()  # it goes on, and has no model yet
    assert "Weights" not in dict(cells_of(write_report(run).read_text()))


def test_a_step_that_was_made_twice_was_skipped_once_and_returns_are_all_counted(run):
    events = [{"event": "skipped", "step": step} for step in (12, 15, 12)]
    events += [{"event": "rollback", "step": 18, "to_step": 10}] * 2
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    cells = cells_of(write_report(run).read_text())
    assert ("Skipped steps", "2") in cells and ("Returns after a spike", "2") in cells


def test_a_report_names_no_user_and_no_path(run):
    report = write_report(run).read_text()
    assert "alice" not in report and str(run.parent) not in report


def test_an_old_run_with_losses_only_has_a_report(tmp_path):
    rows = [{"step": 1, "loss": 5.0, "tokens_per_second": 900.0}]
    write_lines(tmp_path / "metrics.jsonl", rows)
    report = write_report(tmp_path).read_text()
    assert report.startswith(
        "# Report of a training run\n\nA GPT-2; how it was trained was not recorded.\n"
    )
    assert ("Steps", "1 of 1") in cells_of(report)


@pytest.mark.parametrize("seconds", [1e300, -5.0, None])
def test_a_time_that_is_none_is_left_out(run, seconds):
    write_lines(run / "metrics.jsonl", [*ROWS, ROWS[2] | {"step": 40, "elapsed_seconds": seconds}])
    assert "Time in training" not in write_report(run).read_text()


def test_what_is_no_run_is_one_line(tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["--run", str(tmp_path)])
    assert "metrics.jsonl: expected logged steps of a run, found none" in stop.value.code
    (tmp_path / "metrics.jsonl").write_text("[1]\n")
    assert report_at_end(tmp_path).startswith("no report: ")


def test_a_report_that_cannot_be_written_is_one_line(run):
    (run / "report.md").mkdir()
    with pytest.raises(SystemExit) as stop:
        main(["--run", str(run)])
    assert stop.value.code == (
        f"gpt2scratch report: error: {run / 'report.md'}: "
        "expected to read or write it, found Is a directory"
    )


def test_the_command_prints_where_the_report_is(run, capsys):
    main(["--run", str(run)])
    assert capsys.readouterr().out == f"written: {run / 'report.md'}\n"
    assert report_at_end(run) == f"report: {run / 'report.md'}"
