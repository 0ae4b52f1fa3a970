"""The pictures of a comparison."""

from dataclasses import replace

import pytest
from support.evaluation import LAMBADA_METRICS as METRICS
from support.evaluation import measured

from modeling_gpt2scratch.evaluation.results import charts
from modeling_gpt2scratch.evaluation.results.charts import (
    draw_bars,
    draw_curves,
    scores_over_tokens,
)
from modeling_gpt2scratch.evaluation.results.measurements import ModelMeasurements


@pytest.mark.slow
def test_charts_are_drawn_where_there_is_something_to_draw(pair, tmp_path):
    assert draw_bars(pair, METRICS, tmp_path / "bars.png", limit=None)
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert not draw_bars([ModelMeasurements("none")], METRICS, tmp_path / "none.png", limit=None)
    lines = ['{"step": 1, "tokens": 4, "loss": 1}', '{"step": 2, "tokens": 8, "lambada/acc": 0.5}']
    lines += [f'{{"step": 3, "tokens": 12, "lambada/acc": {10**400}}}']
    lines += ['{"step": 4, "tokens": 16, "lambada/acc": 0.75, "hellaswag/acc": null}', '{"tok']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert scores_over_tokens(tmp_path) == {"lambada/acc": [(8, 0.5), (16, 0.75)]}
    draw_curves([str(tmp_path), "gpt2"], tmp_path / "curves.png")
    draw_curves(["gpt2"], tmp_path / "none.png")
    assert (tmp_path / "curves.png").exists() and not (tmp_path / "none.png").exists()


@pytest.fixture
def figures(monkeypatch):
    """Every picture that is drawn."""
    figures, make = [], charts._figure
    monkeypatch.setattr(charts, "_figure", lambda n: figures.append(make(n)) or figures[-1])
    return figures


def test_models_have_their_short_names_in_the_pictures(pair, tmp_path, figures):
    runs = [tmp_path / "a" / "final", tmp_path / "b" / "final"]
    for run in runs:
        run.mkdir(parents=True)
        (run / "metrics.jsonl").write_text('{"step": 2, "tokens": 8, "lambada/acc": 0.5}')
    models = [replace(model, name=str(run)) for model, run in zip(pair, runs, strict=True)]
    draw_bars(models, METRICS, tmp_path / "bars.png", limit=None)
    draw_curves([str(run) for run in runs], tmp_path / "curves.png")
    assert len(figures) == 2
    for figure in figures:
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["a/final", "b/final"]


@pytest.mark.parametrize("n_models", [2, 12, 30])
def test_no_two_models_have_the_same_colour(tmp_path, figures, n_models):
    models = [measured(f"model {n}", [1.0], [1.0]) for n in range(n_models)]
    draw_bars(models, METRICS, tmp_path / "bars.png", limit=None)
    (legend,) = figures[0].legends
    colors = [patch.get_facecolor() for patch in legend.get_patches()]
    assert len({*colors}) == n_models
    for axes in figures[0].axes:
        assert [bar.get_facecolor() for bar in axes.patches] == colors


def test_a_panel_in_which_every_bar_is_zero_is_left_out_and_named(tmp_path, figures):
    hopeless = [measured(name, [0.0, 0.0], [9.0, 9.5]) for name in ("random", "trained")]
    assert draw_bars(hopeless, METRICS, tmp_path / "bars.png", limit=None)
    (figure,) = figures
    assert [axes.get_title() for axes in figure.axes] == ["lambada\nperplexity ↓"]
    assert " ".join(figure.get_supxlabel().split()) == "left out, as every bar is zero: lambada acc"
    assert draw_bars(
        [*hopeless, measured("good", [1.0], [1.0])], METRICS, tmp_path / "bars.png", limit=None
    )
    assert len(figures[1].axes) == 2 and not figures[1].get_supxlabel()
    assert not draw_bars(hopeless, {"lambada": {"acc": True}}, tmp_path / "none.png", limit=None)
    assert not (tmp_path / "none.png").exists()


def test_pictures_say_of_how_many_samples_their_scores_are(pair, tmp_path, figures):
    runs = [tmp_path / name for name in ("whole", "part")]
    for run in runs:
        run.mkdir()
        (run / "metrics.jsonl").write_text('{"step": 2, "tokens": 8, "lambada/acc": 0.5}')
    (runs[0] / "train_config.json").write_text('{"eval_tasks_limit": null}')
    (runs[1] / "train_config.json").write_text('{"eval_tasks_limit": 200}')
    draw_bars(pair, METRICS, tmp_path / "bars.png", limit=100)
    assert figures[0].get_supxlabel() == "at most the first 100 samples of each task"
    draw_curves([*map(str, runs)], tmp_path / "curves.png")
    titles = [axes.get_title() for axes in figures[1].axes]
    assert titles == ["lambada/acc", "lambada/acc, first 200 samples"]


def test_pictures_do_not_follow_a_link_out_of_the_directory(pair, tmp_path):
    (tmp_path / "own.txt").write_text("mine")
    (tmp_path / "bars.png").symlink_to("own.txt")
    draw_bars(pair, METRICS, tmp_path / "bars.png", limit=None)
    assert (tmp_path / "own.txt").read_text() == "mine"
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_values_that_are_far_apart_have_a_logarithmic_axis(tmp_path, figures):
    models = [
        measured("random", [0.0, 1.0], [9.0, 9.5]),
        measured("trained", [1.0, 1.0], [2.0, 2.5]),
    ]
    draw_bars(models, METRICS, tmp_path / "bars.png", limit=None)
    assert [axes.get_yscale() for axes in figures[0].axes] == ["linear", "log"]


def test_bars_below_zero_are_drawn_whole(tmp_path, figures):
    models = [measured("random", [-1.0, -2.0], [9.0, 9.5]), measured("trained", [1.0], [2.0])]
    draw_bars(models, {"lambada": {"acc": True}}, tmp_path / "bars.png", limit=None)
    low, high = figures[0].axes[0].get_ylim()
    assert low < -1.5 and high > 1.0
