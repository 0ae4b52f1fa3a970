"""The parts of a comparison: names of tasks, table, published numbers, files, cache."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from support import evaluation as tiny  # noqa: F401
from support.evaluation import LAMBADA_METRICS as METRICS
from support.evaluation import measured

from modeling_gpt2scratch.common.atomic_files import write_json
from modeling_gpt2scratch.evaluation import TASKS
from modeling_gpt2scratch.evaluation.results.cache import ResultCache
from modeling_gpt2scratch.evaluation.results.differences import differences_of
from modeling_gpt2scratch.evaluation.results.measurements import Measurement, ModelMeasurements
from modeling_gpt2scratch.evaluation.results.paired_tests import holm, paired_test
from modeling_gpt2scratch.evaluation.results.published_numbers import numbers_beside, read_published
from modeling_gpt2scratch.evaluation.results.results_json import model_content
from modeling_gpt2scratch.evaluation.results.table import (
    Shown,
    format_number,
    markdown_table,
    table_notes,
)
from modeling_gpt2scratch.evaluation.tasks.registry import resolve_tasks
from modeling_gpt2scratch.evaluation.tasks.task import Estimate, TaskResult

NAMES_OF_TASKS = ["val", "lambada", "lambada:bos", "lambada:generate", "hellaswag"]
NAMES_OF_TASKS += ["cbt-cn", "cbt-cn:query-only", "cbt-v"]


def test_all_means_every_task_and_a_wrong_name_gets_the_nearest():
    assert resolve_tasks(["all"], NAMES_OF_TASKS) == NAMES_OF_TASKS
    assert resolve_tasks(["lambada:bos"], NAMES_OF_TASKS) == ["lambada:bos"]
    for name, meant in (
        ("helaswag", "did you mean hellaswag?"),
        ("lambada:generates", "did you mean lambada:generate?"),
        ("lambada_openai", "found 'lambada_openai'; did you mean lambada?"),
        ("lambada_openai:bos", "did you mean lambada:bos?"),
        ("cbt", "found 'cbt'; did you mean one of cbt-cn, cbt-v?"),
        ("hellaswag:bos", "expected hellaswag, which has only one protocol"),
    ):
        with pytest.raises(ValueError, match=r"--tasks: ") as caught:
            resolve_tasks([name], NAMES_OF_TASKS)
        assert meant in str(caught.value)


def test_differences_are_tested_on_the_same_passages_and_corrected(pair):
    baseline, model = pair
    rows = differences_of(model, baseline, METRICS)
    tests = [
        paired_test(*(m.tasks["lambada"].result.samples[metric] for m in (model, baseline)))
        for metric in METRICS["lambada"]
    ]
    assert [row.test for row in rows.values()] == tests
    assert [row.p_corrected for row in rows.values()] == holm([test.p for test in tests])
    assert [test.name for test in tests] == ["mcnemar", "bootstrap"]
    assert rows["lambada", "acc"].value == 1 - 15 / 40


def test_models_that_read_other_windows_are_not_tested(pair):
    baseline, _ = pair
    other = measured("other", [1] * 40, [2.0] * 40, window_tokens=16)
    rows = differences_of(other, baseline, METRICS)
    assert {row.test for row in rows.values()} == {None}
    assert rows["lambada", "acc"].value == 1 - 15 / 40
    note = (
        "No test for lambada acc, lambada perplexity: a model and the baseline did not read the "
        "same samples, as where windows are of another length."
    )
    assert notes_of([baseline, other]).count(note) == 1
    assert not any("No test" in line for line in notes_of(pair))


def test_examples_that_one_model_could_not_take_are_left_out_of_the_test(pair):
    baseline, model = pair
    result = model.tasks["lambada"].result
    result.samples["perplexity"][:3] = np.nan
    test = differences_of(model, baseline, METRICS)["lambada", "perplexity"].test
    others = baseline.tasks["lambada"].result.samples["perplexity"]
    assert test == paired_test(result.samples["perplexity"][3:], others[3:])


def test_the_difference_of_accuracies_counts_the_examples_that_both_models_took(pair):
    baseline, _ = pair  # wrong on the first 25 of 40
    right = [np.nan] * 25 + [1.0] * 14 + [0.0]
    model = measured("short", np.nan_to_num(right), np.ones(40))
    result = model.tasks["lambada"].result
    result.samples["acc"] = np.array(right)
    result.estimates["acc"] = Estimate(14 / 15, 0.1)
    row = differences_of(model, baseline, METRICS)["lambada", "acc"]
    assert row.value == pytest.approx(-1 / 15)  # and not 14 / 15 - 15 / 40
    assert row.test.details == {"n_better_first": 0, "n_better_second": 1}


@pytest.mark.parametrize(("limit", "original"), [(39, None), (40, None), (41, 30)])
def test_a_limit_counts_the_samples_that_were_read(pair, limit, original):
    model, _ = pair
    cell = model.tasks["lambada"]
    result = replace(cell.result, n_samples=30)  # the protocol left ten out
    model = replace(model, tasks={"lambada": replace(cell, result=result)})
    config = {"batch_size": 1, "device": "cpu", "limit": limit, "dtype": "float32"}
    content = model_content(
        model, {"lambada": TASKS["lambada"]}, config=config, sources={}, date=0.0
    )
    assert content["n-samples"]["lambada"] == {"original": original, "effective": 30}


def test_the_table_has_differences_in_parentheses_and_published_numbers_apart(pair):
    baseline, model = pair
    tasks = {"lambada": TASKS["lambada"]}
    differences = {"second": differences_of(model, baseline, METRICS)}
    numbers, sources = read_published()
    published = numbers_beside(
        numbers, tasks=tasks, models=["first", "openai-community/gpt2-xl@main"]
    )
    shown = Shown(tasks, pair, "first", None, differences, published)
    header, _, acc, perplexity = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in markdown_table(shown).splitlines()
    )
    assert header[-1] == "lm-evaluation-harness (published, not measured here)"
    assert acc[4:] == ["0.3750 ± 0.1000", "1.0000 ± 0.1000 (+0.6250, p < 0.001)", "gpt2-xl 0.5121"]
    assert perplexity[-1] == "gpt2-xl 10.6340"
    values = [float(cell.split()[0]) for cell in perplexity[4:6]]
    assert f" (× {values[1] / values[0]:.3g}" in perplexity[5]
    far = measured("far", [0] * 40, np.full(40, 600.0))  # nats: a difference would hide the ratio
    (row,) = (
        row for row in differences_of(far, baseline, METRICS).items() if "perplexity" in row[0]
    )
    assert row[1].ratio == pytest.approx(far.value(*row[0]) / baseline.value(*row[0]))
    assert "45.99" not in " ".join(acc) and "0.4599" not in " ".join(acc)
    notes = " ".join(notes_of(pair, published=published, sources=sources))
    assert (
        "the difference from first (for perplexities, the ratio); p from a test on the same"
        in notes
    )
    assert "Published, not measured here: lm-evaluation-harness" in notes


def notes_of(models, *, baseline="first", tasks=("lambada",), published=(), sources=None):
    """The lines below the table of these models."""
    (compared,) = (model for model in models if model.name == baseline)
    differences = {
        model.name: differences_of(model, compared, {task: TASKS[task].metrics for task in tasks})
        for model in models
        if model is not compared
    }
    kinds = {task: TASKS[task] for task in tasks}
    return table_notes(Shown(kinds, models, baseline, None, differences, published, sources or {}))


def test_contexts_that_a_model_has_no_room_for_are_counted(pair):
    pair[1].tasks["lambada"].result.details.update(n_truncated=3, n_left_out=2, n_unknown=1)
    assert notes_of(pair)[-3:] == [
        "lambada: second has no room for 3 of 40 contexts; their beginnings were cut off.",
        "lambada: second has no room for 2 samples, which are left out; its score covers the rest.",
        "lambada: second has no token for parts of the text; 1 scored tokens are its unknown "
        "token, so its score is of another text.",
    ]


def test_columns_have_the_shortest_names_and_the_notes_whole_ones(pair):
    models = [replace(pair[0], name="runs/a/final"), replace(pair[1], name="runs/b/final")]
    models.append(replace(pair[1], name="gpt2"))
    tasks = {"lambada": TASKS["lambada"]}
    table = markdown_table(Shown(tasks, models, "gpt2"))
    titles = [cell.strip() for cell in table.splitlines()[0].strip("|").split("|")]
    assert titles[4:] == ["a/final", "b/final", "gpt2"]
    notes = notes_of(models, baseline="runs/b/final")
    assert notes[:3] == [
        "a/final: runs/a/final",
        "b/final: runs/b/final",
        "± is one standard error.",
    ]
    assert notes[3].startswith("In parentheses: the difference from b/final (for perplexities")


def test_a_precision_other_than_float32_is_said(pair):
    note = "Weights and activations are in bfloat16 (--dtype)."
    for dtype, n in (("bfloat16", 1), ("float32", 0)):
        for model in pair:
            model.description["model_dtype"] = dtype
        assert notes_of(pair).count(note) == n
    broken = ModelMeasurements("broken", tasks={"lambada": Measurement(error="no such model")})
    assert not any("--dtype" in line for line in notes_of([*pair, broken]))


def test_a_baseline_without_numbers_is_said(pair):
    broken = ModelMeasurements("first", tasks={"lambada": Measurement(error="no such model")})
    assert notes_of([broken, pair[1]])[-1] == (
        "No differences: the baseline, first, has no number to compare with."
    )
    assert not any("No differences" in note for note in notes_of(pair))
    assert not any("ifference" in note for note in notes_of([broken]))


def test_a_row_in_which_only_the_baseline_has_no_number_is_said(pair):
    baseline, model = pair
    for estimates, where in (
        ({"acc": Estimate(0.5, 0.1), "perplexity": Estimate(math.inf, None, 800)}, " perplexity"),
        (None, ""),
    ):
        result = None if estimates is None else TaskResult(40, estimates)
        tasks = {
            "lambada": Measurement(result, error="full disk"),
            "hellaswag": baseline.tasks["lambada"],
        }
        other = replace(model, tasks=model.tasks | {"hellaswag": model.tasks["lambada"]})
        notes = notes_of([replace(baseline, tasks=tasks), other], tasks=("lambada", "hellaswag"))
        assert notes[-2].startswith("In parentheses: the difference from first")
        assert notes[-1] == (
            f"No differences for lambada{where}: "
            "the baseline, first, has no number to compare with."
        )


def test_rows_per_token_are_named_where_vocabularies_differ(pair):
    note = (
        "Per token: val loss, val perplexity, wikitext:disjoint token_perplexity. These models "
        "have different vocabularies, and only bits per byte compares them."
    )
    names = ("loss", "perplexity", "bits_per_byte", "token_perplexity")
    cell = Measurement(TaskResult(1, dict.fromkeys(names, Estimate(2.0, None))))
    tasks = ("val", "lambada", "wikitext:disjoint")
    first, second = (
        replace(model, tasks=dict.fromkeys(tasks, cell), description={"vocabulary_sha256": digest})
        for model, digest in zip(pair, "ab", strict=True)
    )
    assert notes_of([first, second], tasks=tasks)[-1] == note
    same = replace(second, description=first.description)
    assert note not in notes_of([first, same], tasks=tasks)
    lambada_alone = replace(second, tasks={"lambada": cell})
    assert not any("Per token" in note for note in notes_of([first, lambada_alone], tasks=tasks))


def test_a_filtered_accuracy_of_the_paper_stands_beside_the_filtered_protocol_only():
    numbers, sources = read_published()
    filtered = [number for number in numbers if number.value == 0.4599]
    assert [number.task for number in filtered] == ["lambada:stopword-filter"]
    own = [number.task for number in numbers if number.model == "predecessor's own"]
    assert own == ["lambada_standard", "cbt-cn-test:predecessor", "cbt-ne-test:predecessor"]
    assert {number.source for number in numbers} <= set(sources)
    inferred = [n for n in numbers if n.source == "predecessor" and n.task.startswith("cbt")]
    assert {n.note for n in inferred} == {"its protocol is inferred from its numbers"}
    assert all(0 <= number.value <= 1 for number in numbers if number.metric.startswith("acc"))


def test_published_numbers_name_tasks_and_metrics_that_there_are():
    numbers, _ = read_published()
    for number in numbers:
        assert number.metric in TASKS[number.task].metrics, number


def test_an_error_stands_whole_below_the_table_and_once():
    first, second = ModelMeasurements("first"), ModelMeasurements("second")
    first.tasks = {"lambada": Measurement(error="a | b")}
    second.tasks = {"lambada": Measurement(error="c"), "val": Measurement(error="a | b")}
    third = ModelMeasurements("third")
    shown = Shown({n: TASKS[n] for n in ("val", "lambada")}, [first, second, third], "first")
    assert shown.errors == ["a | b", "c"]
    assert shown.cell(first, "lambada", "acc") == "error [1]"
    assert shown.cell(second, "lambada", "acc") == "error [2]"
    assert shown.cell(second, "val", "perplexity") == "–"
    assert shown.cell(third, "lambada", "acc") == "interrupted"
    notes = notes_of([first, second], tasks=("val", "lambada"))
    assert notes[:2] == ["error [1]: a | b", "error [2]: c"]


def test_the_perplexity_of_an_untrained_model_fits_its_cell():
    assert [format_number(value) for value in (40.05541, 2.4e17)] == ["40.0554", "2.4000e+17"]


def test_a_failed_write_leaves_the_old_results_and_nothing_beside_them(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"value": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"value": float("nan")}, allow_nan=False)
    assert json.loads(path.read_text()) == {"value": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_cache_returns_what_was_written_under_the_same_key_and_nothing_else(pair, tmp_path):
    cache, (model, _) = ResultCache(tmp_path / "cache"), pair
    key = {"model": {"model.safetensors": "00"}, "limit": None}
    assert cache.read(key) is None
    cache.write(key, model.tasks["lambada"], {"model_class": "A"})
    found, description = cache.read(key)
    result, expected = found.result, model.tasks["lambada"].result
    assert (found.seconds, found.is_from_cache, description) == (1.5, True, {"model_class": "A"})
    assert (result.estimates, result.n_samples) == (expected.estimates, expected.n_samples)
    for metric, values in expected.samples.items():
        np.testing.assert_array_equal(result.samples[metric], values)
    assert cache.read(key | {"limit": 3}) is None
    (path,) = (tmp_path / "cache").iterdir()
    path.write_text(path.read_text()[:100])  # as no write of ours leaves it
    assert cache.read(key) is None
    assert ResultCache(None).read(key) is None


def test_the_cache_keeps_samples_that_were_left_out(pair, tmp_path):
    cache, (model, _) = ResultCache(tmp_path), pair
    measurement = model.tasks["lambada"]
    samples = measurement.result.samples
    samples["acc"][[0, 38, 39]] = np.nan, np.inf, np.nan
    cache.write({}, measurement, {})
    found = cache.read({})[0].result.samples
    for metric, values in samples.items():
        assert found[metric].dtype == np.float64
        np.testing.assert_array_equal(found[metric], values)


def test_a_cached_file_that_nests_too_deep_is_no_measurement(pair, tmp_path):
    cache, (model, _) = ResultCache(tmp_path), pair
    cache.write({}, model.tasks["lambada"], {})
    (path,) = tmp_path.iterdir()
    path.write_text("[" * 200_000)
    assert cache.read({}) is None
