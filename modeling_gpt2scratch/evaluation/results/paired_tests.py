"""Is one model better than another on the same examples, or was it luck?

For right or wrong answers: McNemar's exact test, which looks only at the examples on which the
models differ. For losses: a paired bootstrap over the examples. Holm's correction keeps the chance
of any false alarm among several rows at that of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

N_RESAMPLES = 10_000
SEED = 1234  # of the bootstrap, for the same p in every run
INDICES_AT_ONCE = 2**22  # 32 MB of them


@dataclass(frozen=True)
class PairedTest:
    """How a model differs from the baseline on the same examples."""

    name: str  # "mcnemar" or "bootstrap"
    p: float  # two-sided
    # McNemar: `n_better_first`, examples that only the first has right, and `n_better_second`.
    # Bootstrap: `mean_difference` (first minus second) with the bounds of its 95 % interval.
    details: dict[str, float]

    @property
    def is_bound(self) -> bool:
        """Whether p is the least that the draws can give, and so at most that."""
        return self.name == "bootstrap" and self.p <= 1 / (1 + N_RESAMPLES)


def paired_test(first: np.ndarray, second: np.ndarray) -> PairedTest:
    """The test that fits the values: McNemar's if all are 0 or 1, else the bootstrap.

    Args:
        first: one value per example, (N,).
        second: of the other model on the same examples, (N,).

    Raises:
        ValueError: for no example, or for arrays of different lengths.
    """
    if first.shape != second.shape or first.ndim != 1 or len(first) == 0:
        raise ValueError(f"expected values of the same examples, found {first.shape, second.shape}")
    if np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all():
        n_first = int(np.sum(first > second))
        n_second = int(np.sum(second > first))
        counts = {"n_better_first": n_first, "n_better_second": n_second}
        return PairedTest("mcnemar", mcnemar_p(n_first, n_second), counts)
    return bootstrap_test(first - second)


def mcnemar_p(n_first: int, n_second: int) -> float:
    """Two-sided exact p of McNemar's test, from the counts of examples only one model has right.

    Twice the binomial tail of the smaller count at one half, at most 1.
    """
    n = n_first + n_second
    term = tail = 1  # binomial coefficients, as whole numbers
    for k in range(1, min(n_first, n_second) + 1):
        term = term * (n - k + 1) // k
        tail += term
    return min(1.0, 2 * tail / 2**n)


def bootstrap_test(differences: np.ndarray) -> PairedTest:
    """Paired bootstrap of a mean difference, (N,): `N_RESAMPLES` draws of N examples each.

    p is the share of draws whose mean is as far from the mean found as that is from zero. It is at
    least 1 / (N_RESAMPLES + 1), and at least 2 / 2**N: so often N differences have one sign by
    chance, while draws from few examples know nothing of what was not drawn.
    """
    random = np.random.default_rng(SEED)
    n = len(differences)
    mean = differences.mean()
    means = []
    rows = max(1, INDICES_AT_ONCE // n)
    for start in range(0, N_RESAMPLES, rows):
        size = (min(rows, N_RESAMPLES - start), n)
        means.append(differences[random.integers(n, size=size)].mean(axis=1))
    means = np.concatenate(means)
    # The rounding of a mean of equal numbers must not decide.
    tolerance = 1e-12 * np.abs(differences).max()
    n_far = np.sum(np.abs(means - mean) >= abs(mean) - tolerance)
    low, high = np.quantile(means, (0.025, 0.975))
    details = {
        "mean_difference": float(mean),
        "mean_difference_low": float(low),
        "mean_difference_high": float(high),
    }
    p_value = max((1 + n_far) / (1 + N_RESAMPLES), 2.0 ** (1 - n))
    return PairedTest("bootstrap", float(p_value), details)


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p corrected for the others (Holm 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected.tolist()
