import numpy as np
import pytest
from support import evaluation as tiny  # noqa: F401

from modeling_gpt2scratch.evaluation.results.differences import differences_of
from modeling_gpt2scratch.evaluation.results.measurements import Measurement, ModelMeasurements
from modeling_gpt2scratch.evaluation.results.paired_tests import (
    N_RESAMPLES,
    bootstrap_test,
    holm,
    mcnemar_p,
    paired_test,
)
from modeling_gpt2scratch.evaluation.tasks.task import Estimate, TaskResult


@pytest.mark.parametrize(("b", "c"), [(0, 0), (3, 0), (1, 8), (20, 20), (130, 90), (2000, 1700)])
def test_mcnemar_is_the_exact_binomial_test_of_scipy(b, c):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar_p(b, c) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_p(b, c) == mcnemar_p(c, b)


def test_answers_are_compared_on_the_examples_where_models_differ():
    first = np.array([1, 1, 1, 1, 0, 1.0])
    second = np.array([1, 0, 0, 0, 0, 0.0])
    test = paired_test(first, second)
    assert (test.name, test.details) == ("mcnemar", {"n_better_first": 4, "n_better_second": 0})
    assert test.p == 2 * 0.5**4


def test_losses_are_compared_by_a_bootstrap_that_gives_the_same_p_each_time():
    random = np.random.default_rng(0)
    base = random.normal(3, 1, size=400)
    near, far = base + random.normal(0, 0.1, 400), base + random.normal(0.05, 0.1, 400)
    assert paired_test(near, base) == paired_test(near, base)
    assert paired_test(near, base).p > 0.05
    assert paired_test(far, base).p == 1 / (N_RESAMPLES + 1)
    details = paired_test(far, base).details
    assert details["mean_difference"] == pytest.approx(np.mean(far - base))
    assert 0 < details["mean_difference_low"] < 0.05 < details["mean_difference_high"] + 0.01


def test_the_bootstrap_agrees_with_a_t_test_and_its_interval_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    differences = np.random.default_rng(1).normal(0.02, 0.2, size=300)
    found = bootstrap_test(differences)
    assert found.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.02)
    expected = stats.bootstrap((differences,), np.mean, method="percentile", rng=0)
    low, high = expected.confidence_interval
    assert found.details["mean_difference_low"] == pytest.approx(low, abs=2e-3)
    assert found.details["mean_difference_high"] == pytest.approx(high, abs=2e-3)


def test_models_with_equal_losses_do_not_differ():
    assert paired_test(np.full(7, 0.1 + 0.2), np.full(7, 0.1 + 0.2)).p == 1


def test_holm_corrects_by_the_number_of_rows_that_are_left():
    # Sorted: 0.01 * 4, 0.02 * 3, max(0.03 * 2, 0.06), 0.04 * 1 raised to what came before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_values_of_different_examples_are_refused():
    with pytest.raises(ValueError, match="expected values of the same examples"):
        paired_test(np.ones(2), np.ones(3))


def test_few_examples_are_no_evidence():
    assert bootstrap_test(np.array([1e-7])).p == 1
    assert bootstrap_test(np.array([1e-3, 2e-3])).p == 0.5
    assert bootstrap_test(np.arange(1.0, 6.0)).p == 1 / 16


def test_rows_that_differ_in_the_same_samples_are_one_test():
    nats = np.random.default_rng(0).normal(3, 1, 40)
    right = (nats < 3).astype(float)

    def model(name: str, shift: float) -> ModelMeasurements:
        samples = {"loss": nats + shift, "perplexity": nats + shift, "acc": right}
        estimates = {metric: Estimate(values.mean(), 0.1) for metric, values in samples.items()}
        result = TaskResult(len(nats), estimates, {}, samples)
        return ModelMeasurements(name, tasks={"t": Measurement(result)})

    metrics = {"t": ("loss", "perplexity", "acc")}
    rows = differences_of(model("a", 0.5), model("b", 0.0), metrics)
    loss, perplexity, acc = (rows["t", metric] for metric in metrics["t"])
    assert loss.test is perplexity.test and loss.test.is_bound and not acc.test.is_bound
    assert loss.p_corrected == perplexity.p_corrected == 2 * loss.test.p  # of two tests
    assert acc.p_corrected == 1
