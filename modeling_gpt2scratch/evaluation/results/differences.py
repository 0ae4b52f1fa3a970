"""How each model differs from the baseline, task by task."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from modeling_gpt2scratch.evaluation.tasks.task import TaskResult

from .measurements import ModelMeasurements
from .paired_tests import PairedTest, holm, paired_test

# What differs where two models read different examples, as windows cut by other tokenizers.
SAME_DETAILS = ("window_tokens", "n_target_bytes", "text_sha256")


@dataclass(frozen=True)
class Difference:
    """A model's value minus the baseline's; the test is None where examples cannot be paired.

    Where one of the two leaves examples out, both count on those that they have in common.
    """

    value: float
    test: PairedTest | None = None
    p_corrected: float | None = None  # by Holm's method over all tests of the model
    ratio: float | None = None  # of two perplexities, the model's over the baseline's


def differences_of(
    model: ModelMeasurements, baseline: ModelMeasurements, metrics: Mapping[str, Iterable[str]]
) -> dict[tuple[str, str], Difference]:
    """By task and metric; rows that one of the two models lacks are left out.

    Args:
        model: whose values are compared.
        baseline: with which.
    """
    values, ratios, tests, same = {}, {}, {}, {}
    for task, names in metrics.items():
        for metric in names:
            row = task, metric
            first, second = model.value(*row), baseline.value(*row)
            if first is None or second is None:
                continue
            values[row] = first - second
            if metric.endswith("perplexity") and second > 0:
                ratios[row] = first / second
            results = model.tasks[task].result, baseline.tasks[task].result
            if has_same_examples(*results, metric):
                pair = np.array([result.samples[metric] for result in results])
                common = pair[:, np.isfinite(pair).all(axis=0)]  # that both have a value of
                if common.size:
                    # Loss and perplexity of a task differ in the same samples: that is one test.
                    first_row = same.setdefault((task, np.subtract(*common).tobytes()), row)
                    tests[row] = tests[first_row] if first_row != row else paired_test(*common)
                    is_mean = np.allclose(np.nanmean(pair, axis=1), (first, second))
                    if common.size < pair.size and is_mean:
                        values[row] = float(np.subtract(*common.mean(axis=1)))
    distinct = {id(test): test.p for test in tests.values()}
    by_test = dict(zip(distinct, holm([*distinct.values()]), strict=True))
    corrected = {row: by_test[id(test)] for row, test in tests.items()}
    return {
        row: Difference(value, tests.get(row), corrected.get(row), ratios.get(row))
        for row, value in values.items()
    }


def has_same_examples(first: TaskResult, second: TaskResult, metric: str) -> bool:
    """Whether the values of two results of one task belong to the same examples, one by one."""
    if metric not in first.samples or metric not in second.samples:
        return False
    return len(first.samples[metric]) == len(second.samples[metric]) > 0 and all(
        first.details.get(name) == second.details.get(name) for name in SAME_DETAILS
    )
