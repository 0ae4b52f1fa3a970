"""The picture of loss curves."""

import json

import pytest

from modeling_gpt2scratch.commands.plot import main


@pytest.fixture
def runs(tmp_path):
    """Two runs of two logged steps; a step of the second has half the tokens."""
    for name, tokens in (("large", 2048), ("small", 1024)):
        (tmp_path / name).mkdir()
        rows = [{"step": 1, "loss": 5.0}, {"step": 10, "loss": 4.0, "eval_loss": 4.1}]
        write_rows(tmp_path / name, [row | {"tokens": row["step"] * tokens} for row in rows])
    return [tmp_path / "large", tmp_path / "small"]


def write_rows(run, rows):
    """What a run logs."""
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("x", "expected"),
    [("step", [[1, 10], [10]] * 2), ("tokens", [[2048, 20480], [20480], [1024, 10240], [10240]])],
)
def test_losses_are_drawn_over_steps_or_over_the_tokens_of_each_run(
    runs, tmp_path, monkeypatch, x, expected
):
    axes = pytest.importorskip("matplotlib.axes")
    drawn = []
    plot = axes.Axes.plot

    def record(self, x, *arguments, **options):
        drawn.append(x)
        return plot(self, x, *arguments, **options)

    monkeypatch.setattr(axes.Axes, "plot", record)
    output = tmp_path / "loss.png"
    main(["--runs", *map(str, runs), "--output", str(output), "--x", x])
    assert drawn == expected
    assert output.stat().st_size > 0


def test_a_run_that_counted_no_tokens_is_one_line(runs, tmp_path):
    write_rows(runs[0], [{"step": 1, "loss": 5.0}])
    arguments = ["--runs", str(runs[0]), "--output", str(tmp_path / "loss.png")]
    with pytest.raises(SystemExit, match="metrics.jsonl: expected tokens in each line"):
        main([*arguments, "--x", "tokens"])
