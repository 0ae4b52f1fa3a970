"""The picture of loss curves."""

import json
import math

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modeling_gpt2scratch.commands.plot import main
from modeling_gpt2scratch.reports.loss_plot import _draw, points_alone
from modeling_gpt2scratch.reports.run_html import _trace


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
    drawn = []
    plot = Axes.plot

    def record(self, x, *arguments, **options):
        drawn.append(x)
        return plot(self, x, *arguments, **options)

    monkeypatch.setattr(Axes, "plot", record)
    output = tmp_path / "new" / "place" / "loss.png"
    main(["--runs", *map(str, runs), "--output", str(output), "--x", x])
    assert drawn == expected
    assert output.read_bytes().startswith(b"\x89PNG")


def test_a_number_without_a_number_beside_it_is_drawn_as_a_point(tmp_path):
    assert points_alone([5.0]) == [0]
    assert points_alone([5.0, math.nan, 4.0, math.nan, 3.0, 2.0]) == [0, 2]
    axes = Figure().subplots()
    line = _draw(axes, [{"step": 1, "loss": 5.0}], "loss", "-")
    assert (line.get_marker(), line.get_markevery()) == (".", [0])
    trace = _trace([{"step": 1, "loss": 5.0}], "loss", "loss", axis="y", mode="lines")
    assert (trace["mode"], trace["marker"]["size"]) == ("lines+markers", [5])


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    runs = [tmp_path / name / "_final" for name in ("_a", "b")]
    for run in runs:
        run.mkdir(parents=True)
        write_rows(run, [{"step": 1, "loss": 5.0}])
    main(["--runs", *map(str, runs), "--output", str(tmp_path / "loss.svg")])
    picture = (tmp_path / "loss.svg").read_text()
    assert "_a/_final: training -->" in picture and "<!-- b/_final: training -->" in picture


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("loss.foo", "expected a picture that ends in .png, .svg or .pdf, found .foo"),
        ("loss.pgf", "expected a picture that ends in .png, .svg or .pdf, found .pgf"),
        ("new/loss", "expected a picture that ends in .png, .svg or .pdf, found no ending"),
        ("file/loss.png", "file: expected to read or write it, found File exists"),
        ("file/new/loss.png", "file/new: expected to read or write it, found Not a directory"),
        ("folder.png", "folder.png: expected to read or write it, found Is a directory"),
    ],
)
def test_a_picture_that_cannot_be_written_is_one_line(runs, tmp_path, output, problem):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(SystemExit) as stop:
        main(["--runs", str(runs[0]), "--output", str(tmp_path / output)])
    assert stop.value.code.startswith("gpt2scratch plot: error: ")
    assert stop.value.code.endswith(problem)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("file", "folder.png", "large", "small")
    ]


def test_a_run_that_counted_no_tokens_is_one_line(runs, tmp_path):
    write_rows(runs[0], [{"step": 1, "loss": 5.0}])
    arguments = ["--runs", str(runs[0]), "--output", str(tmp_path / "loss.png")]
    with pytest.raises(SystemExit, match="metrics.jsonl: expected tokens in each line"):
        main([*arguments, "--x", "tokens"])


def test_names_are_no_formulas_and_letters_that_the_font_lacks_no_warnings(tmp_path, recwarn):
    runs = [tmp_path / name for name in (r"q$\frac$z", "日本", "plain")]
    for run in runs:
        run.mkdir()
        write_rows(run, [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0}])
    main(["--runs", *map(str, runs), "--output", str(tmp_path / "loss.svg")])
    assert (tmp_path / "loss.svg").stat().st_size > 0
    assert not recwarn.list
