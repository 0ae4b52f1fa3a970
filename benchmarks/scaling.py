"""A scaling ladder: how the loss falls with parameters and tokens, and what to train for a budget.

    python benchmarks/scaling.py --data data/scaling --output_dir runs/scaling

Trains every width with every number of tokens, and fits to the last validation losses

    L(N, D) = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D

(Kaplan et al. 2020, equation 1.5). N are the parameters in matrix products, D the tokens, C = 6 N D
the operations. The 90 % intervals come from a bootstrap of the residuals. Then trains some widths
at several of Muon's rates, to see whether the best one moves with the width. Finished runs are not
made again, so the command goes on after an interruption.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import yaml
from scipy.optimize import least_squares
from search import train_once
from tabulate import tabulate

from modeling_gpt2scratch.common.command_line import (
    ArgumentError,
    argument,
    check_numbers,
    parse_config,
)
from modeling_gpt2scratch.tracking.metrics import METRICS_NAME, read_metrics

RECIPE = Path(__file__).with_suffix(".yaml")
N_LAYER, HEAD_CHANNELS = 4, 32
N_RESAMPLES, INTERVAL = 200, (5, 95)  # percentiles
NAMES = ("alpha_N", "alpha_D", "N_c", "D_c")


@dataclass(frozen=True)
class ScalingConfig:
    """Every argument of this script."""

    data: str = argument("directory of shards")
    output_dir: str = argument("directory of the runs")
    widths: list[int] = argument(
        "channels of the models", default_factory=lambda: [64, 96, 128, 192]
    )
    tokens: list[int] = argument(
        "tokens that each of them reads", default_factory=lambda: [500_000, 1_500_000, 4_000_000]
    )
    rate_widths: list[int] = argument(
        "channels of the models whose rate is varied", default_factory=lambda: [64, 128, 256]
    )
    rates: list[float] = argument(
        "their learning rates", default_factory=lambda: [2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2]
    )
    rate_tokens: int = argument("tokens that each of these reads", default=400_000)
    at_once: int = argument("runs at a time, which share the cores", default=1)
    figure: str | None = argument("file of the picture; in output_dir if not given", default=None)

    def __post_init__(self) -> None:
        check_numbers(self, positive=("rate_tokens", "at_once"), non_negative=())
        for flag in ("widths", "rate_widths"):
            if bad := [
                width for width in getattr(self, flag) if width < 1 or width % HEAD_CHANNELS
            ]:
                problem = f"expected multiples of {HEAD_CHANNELS} channels, found {bad[0]}"
                raise ArgumentError(flag, problem=problem)
        if len(self.widths) * len(self.tokens) <= len(NAMES):
            problem = f"expected more than {len(NAMES)} runs with widths x tokens, found fewer"
            raise ArgumentError("tokens", problem=problem)


@dataclass(frozen=True)
class Run:
    """A model of `width` channels that read `tokens` tokens, and where it ended."""

    width: int
    tokens: int
    rate: float | None  # None: the recipe's
    n_parameters: int  # in matrix products: the blocks' and the head's
    loss: float  # of the validation split after the last step, nats per token


@dataclass(frozen=True)
class Law:
    """L(N, D) = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D, the constants as logarithms."""

    alpha_N: float
    alpha_D: float
    log_N_c: float
    log_D_c: float

    @property
    def N_c(self) -> float:
        """Parameters."""
        return np.exp(self.log_N_c)

    @property
    def D_c(self) -> float:
        """Tokens."""
        return np.exp(self.log_D_c)

    def loss(self, n_parameters: np.ndarray, n_tokens: np.ndarray) -> np.ndarray:
        """The loss in nats per token."""
        from_n = np.exp(self.alpha_N / self.alpha_D * (self.log_N_c - np.log(n_parameters)))
        return (from_n + np.exp(self.log_D_c - np.log(n_tokens))) ** self.alpha_D

    def best_size(self, operations: float) -> float:
        """The parameters with which so many operations reach the lowest loss."""
        a = self.alpha_N / self.alpha_D
        log_size = np.log(a * operations / 6) + a * self.log_N_c - self.log_D_c
        return float(np.exp(log_size / (1 + a)))


def main() -> None:
    """Makes the runs that are missing, prints the tables, and draws the picture."""
    config = parse_config(ScalingConfig, description=__doc__)
    grid = [(width, tokens, None) for width in config.widths for tokens in config.tokens]
    sweep = [
        (width, config.rate_tokens, rate) for width in config.rate_widths for rate in config.rates
    ]
    # The dearest first, so that no core waits at the end.
    order = sorted(grid + sweep, key=lambda trial: -(trial[0] ** 2) * trial[1])
    with ThreadPoolExecutor(config.at_once) as pool:
        done = dict(zip(order, pool.map(lambda trial: train(config, *trial), order), strict=True))
    runs, rate_runs = [done[trial] for trial in grid], [done[trial] for trial in sweep]
    law, resampled = fit_with_resamples(runs)
    print_grid(runs, law)
    print_law(runs, law, resampled)
    print_rates(rate_runs)
    draw(config, runs, law, rate_runs)


def train(config: ScalingConfig, width: int, tokens: int, rate: float | None) -> Run:
    """The run of these sizes, made unless it is finished."""
    directory = Path(config.output_dir) / f"{width}_{tokens}{'' if rate is None else f'_{rate:g}'}"
    batch = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["total_batch_tokens"]
    values = {"data": config.data, "n_layer": N_LAYER, "n_embd": width}
    n_steps = tokens // batch
    values |= {"n_head": width // HEAD_CHANNELS, "max_steps": n_steps, "eval_every": n_steps}
    if rate is not None:
        values["muon_learning_rate"] = rate
    train_once(directory, str(RECIPE), values, at_once=config.at_once)
    losses = [
        row["eval_loss"] for row in read_metrics(directory / METRICS_NAME) if "eval_loss" in row
    ]
    vocab_size = json.loads((directory / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    n_parameters = 12 * N_LAYER * width**2 + vocab_size * width
    return Run(width, tokens, rate, n_parameters, losses[-1])


def fit(n_parameters: np.ndarray, n_tokens: np.ndarray, losses: np.ndarray) -> Law:
    """The law with the least squares of the losses' logarithms, the best of several starts."""

    def residuals(theta: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # far from the solution
            return np.log(Law(*theta).loss(n_parameters, n_tokens) / losses)

    starts = itertools.product((0.05, 0.2), (0.05, 0.2), (15, 25), (20, 30))
    bounds = ([1e-3, 1e-3, 0, 0], [2, 2, 100, 100])
    fits = [
        least_squares(residuals, start, x_scale=(0.1, 0.1, 10, 10), bounds=bounds)
        for start in starts
    ]
    return Law(*map(float, min(fits, key=lambda found: found.cost).x))


def fit_with_resamples(runs: list[Run]) -> tuple[Law, list[Law]]:
    """The law of the runs, and those of fitted losses with resampled residuals on them."""
    n, d, losses = (
        np.array([value(run) for run in runs], dtype=float)
        for value in (lambda r: r.n_parameters, lambda r: r.tokens, lambda r: r.loss)
    )
    law = fit(n, d, losses)
    fitted = law.loss(n, d)
    # A fit leaves less than the noise in its residuals.
    residuals = np.log(losses / fitted) * np.sqrt(len(runs) / max(1, len(runs) - len(NAMES)))
    generator = np.random.default_rng(0)
    resampled = [
        fit(n, d, fitted * np.exp(generator.choice(residuals, len(runs))))
        for _ in range(N_RESAMPLES)
    ]
    return law, resampled


def print_grid(runs: list[Run], law: Law) -> None:
    """Each run's loss beside the law's."""
    rows = [
        [run.width, f"{run.n_parameters:,}", f"{run.tokens:,}", run.loss]
        + [float(law.loss(np.float64(run.n_parameters), np.float64(run.tokens)))]
        for run in runs
    ]
    header = ["width", "N", "D", "loss", "law"]
    print(tabulate(rows, header, "pipe", floatfmt=".4f", disable_numparse=[1, 2]), end="\n\n")


def print_law(runs: list[Run], law: Law, resampled: list[Law]) -> None:
    """The law's numbers and what to train for a budget, each with its interval."""

    def with_interval(value: Callable[[Law], float]) -> str:
        low, high = np.percentile([value(other) for other in resampled], INTERVAL)
        return f"{value(law):.3g} ({low:.3g} to {high:.3g})"

    rows = [[name, with_interval(lambda law, name=name: getattr(law, name))] for name in NAMES]
    print(tabulate(rows, ["", "fit (90 % interval)"], "pipe", disable_numparse=True), end="\n\n")
    rows = []
    most = max(6 * run.n_parameters * run.tokens for run in runs)
    for budget in (most / 10, most, 10 * most):  # of the ladder, and one step beyond it
        size = law.best_size(budget)
        tokens = budget / 6 / size
        rows.append([f"{budget:.1e}", with_interval(lambda law, c=budget: law.best_size(c))])
        rows[-1] += [f"{tokens:.3g}", f"{tokens / size:.3g}", f"{law.loss(size, tokens):.3f}"]
    header = ["operations", "best N (90 % interval)", "its D", "D / N", "loss"]
    print(tabulate(rows, header, "pipe", disable_numparse=True), end="\n\n")


def print_rates(runs: list[Run]) -> None:
    """A row for each width, the lowest loss in bold."""
    rows, rates = [], sorted({run.rate for run in runs})
    for width, losses in _losses_by_width(runs):
        best = min(losses.values())
        cells = [f"**{losses[r]:.4f}**" if losses[r] == best else f"{losses[r]:.4f}" for r in rates]
        rows.append([width, *cells])
    print(
        tabulate(rows, ["width", *(f"{rate:g}" for rate in rates)], "pipe", disable_numparse=True)
    )


def _losses_by_width(runs: list[Run]) -> Iterator[tuple[int, dict[float, float]]]:
    """Width, and its losses by rate."""
    for width in sorted({run.width for run in runs}):
        yield width, {run.rate: run.loss for run in runs if run.width == width}


def draw(config: ScalingConfig, runs: list[Run], law: Law, rate_runs: list[Run]) -> None:
    """The losses and the law over operations, and the losses over the learning rate."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for width in sorted({run.width for run in runs}):
        its = [run for run in runs if run.width == width]
        n, d = its[0].n_parameters, np.array(sorted(run.tokens for run in its))
        (points,) = left.plot(
            [6 * n * run.tokens for run in its], [run.loss for run in its], "o", label=f"N = {n:,}"
        )
        more = np.geomspace(d[0] / 1.5, d[-1] * 1.5)
        left.plot(6 * n * more, law.loss(n, more), "-", color=points.get_color(), linewidth=1)
    products = [6 * run.n_parameters * run.tokens for run in runs]
    operations = np.geomspace(min(products), max(products))
    sizes = np.array([law.best_size(c) for c in operations])
    left.plot(
        operations, law.loss(sizes, operations / 6 / sizes), "k--", label="best N", linewidth=1
    )
    left.set(xscale="log", xlabel="operations, 6 N D", ylabel="validation loss, nats per token")
    left.legend(fontsize="small")
    for width, losses in _losses_by_width(rate_runs):
        rates = sorted(losses)
        right.plot(rates, [losses[rate] for rate in rates], "o-", label=f"{width} channels")
    right.set(xscale="log", xlabel="peak learning rate (Muon)", ylabel="validation loss")
    right.set_xticks(config.rates, [f"{rate:g}" for rate in config.rates])
    right.minorticks_off()
    right.legend(fontsize="small", loc="upper center")
    path = Path(config.figure or Path(config.output_dir) / "scaling.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"\npicture: {path}")


if __name__ == "__main__":
    main()
