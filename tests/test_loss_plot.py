"""The picture of loss curves."""

import json

import pytest

from modeling_gpt2scratch import loss_plot


@pytest.fixture
def runs(tmp_path):
    """Two runs of two logged steps; a step of the second has half the tokens."""
    for name, tokens in (("large", 2048), ("small", 1024)):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "train_config.json").write_text(json.dumps({"total_batch_tokens": tokens}))
        rows = [{"step": 1, "loss": 5.0}, {"step": 10, "loss": 4.0, "eval_loss": 4.1}]
        (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [tmp_path / "large", tmp_path / "small"]


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
    loss_plot.main(["--runs", *map(str, runs), "--output", str(output), "--x", x])
    assert drawn == expected
    assert output.stat().st_size > 0


def test_tokens_of_a_run_without_arguments_are_one_line(runs, tmp_path):
    pytest.importorskip("matplotlib")
    (runs[0] / "train_config.json").write_text("{}")
    with pytest.raises(SystemExit, match="train_config.json: expected total_batch_tokens"):
        arguments = ["--runs", str(runs[0]), "--output", str(tmp_path / "loss.png")]
        loss_plot.main([*arguments, "--x", "tokens"])
