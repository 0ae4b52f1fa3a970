"""Trains a recipe once for each combination of values, and prints a table, the best run first.

    python benchmarks/search.py --recipe recipes/quickstart.yaml --output_dir runs/search \\
        --vary optimizer=adamw,muon learning_rate=3e-3,1e-2 seed=0,1,2

Runs that are finished in `output_dir` are not made again, so a search can be widened. Runs that
differ in their seed alone are one row: the mean of their losses and its standard deviation.
"""

import itertools
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from modeling_gpt2scratch.common.command_line import ArgumentError, argument, parse_config
from modeling_gpt2scratch.data.shards.manifest import Manifest
from modeling_gpt2scratch.tracking.metrics import METRICS_NAME, read_metrics
from modeling_gpt2scratch.training.configuration import RUN_CONFIG_NAME, TrainConfig
from modeling_gpt2scratch.training.directory import DATA_MANIFEST_NAME

REPOSITORY = Path(__file__).parents[1]
HEADERS = ["lowest loss", "last loss", "bits per byte", "steps", "tokens/s"]


@dataclass(frozen=True)
class SearchConfig:
    """Every argument of this script."""

    recipe: str = argument("what all runs share, a YAML file of training")
    output_dir: str = argument("directory of the runs")
    vary: list[str] = argument(
        "values to combine: NAME=VALUE,VALUE for arguments of training", default_factory=list
    )
    fixed: list[str] = argument("values in place of the recipe's: NAME=VALUE", default_factory=list)
    at_once: int = argument("runs at a time, which share the cores", default=1)

    def __post_init__(self) -> None:
        for flag in ("vary", "fixed"):
            for text in getattr(self, flag):
                name, is_one, _ = text.partition("=")
                if not is_one or name not in TrainConfig.__dataclass_fields__:
                    problem = f"expected NAME=VALUE of an argument of training, found {text!r}"
                    raise ArgumentError(flag, problem=problem)


Trial = tuple[tuple[str, str], ...]  # names and values, in the order of --vary


def main() -> None:
    """Makes the runs that are missing, and prints the table."""
    config = parse_config(SearchConfig, description=__doc__)
    axes = dict(text.split("=", 1) for text in config.vary)
    values = [values.split(",") for values in axes.values()]
    trials = [tuple(zip(axes, chosen, strict=True)) for chosen in itertools.product(*values)]
    with ThreadPoolExecutor(config.at_once) as pool:
        results = list(pool.map(lambda trial: result_of(config, trial), trials))
    print_table(trials, results)


def result_of(config: SearchConfig, trial: Trial) -> list[float]:
    """The values of `HEADERS` for a run, which is made unless it is finished."""
    name = "_".join(f"{name}-{value}" for name, value in trial) or "recipe"
    directory = Path(config.output_dir) / name.replace("/", "-")
    values = dict(text.split("=", 1) for text in config.fixed) | dict(trial)
    train_once(directory, config.recipe, values, at_once=config.at_once)
    rows = read_metrics(directory / METRICS_NAME)
    losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
    val = Manifest.load(directory, DATA_MANIFEST_NAME).splits["val"]
    bits_per_nat = val.n_tokens / val.n_bytes / math.log(2)
    speed = statistics.median(row["tokens_per_second"] for row in rows)
    return [min(losses), losses[-1], min(losses) * bits_per_nat, rows[-1]["step"], speed]


def train_once(directory: Path, recipe: str | None, values: Mapping, *, at_once: int = 1) -> None:
    """Trains in a process of its own, unless `directory` holds a finished run of these values."""
    if (directory / "model.safetensors").is_file():
        recorded = json.loads((directory / RUN_CONFIG_NAME).read_text(encoding="utf-8"))
        for name, value in values.items():
            if _plain(recorded.get(name)) != _plain(value):
                raise SystemExit(
                    f"{directory}: expected a run with {name} = {value}, found one with "
                    f"{recorded.get(name)}; give another --output_dir"
                )
        return
    values = {**values, "output_dir": directory, "save_every": 0, "overwrite": True}
    flags = [f"--{name}={value}" for name, value in values.items()]
    recipes = [] if recipe is None else [recipe]
    n_threads = max(1, (os.cpu_count() or 1) // at_once)
    subprocess.run(
        [sys.executable, REPOSITORY / "train_accelerate.py", *recipes, *flags],
        check=True,
        stdout=sys.stderr,
        env={"OMP_NUM_THREADS": str(n_threads)} | os.environ,
    )


def _plain(value: object) -> float | str:
    """A value to compare, whether it was read or typed."""
    try:
        return float(str(value))
    except ValueError:
        return str(value).lower()


def print_table(trials: list[Trial], results: list[list[float]]) -> None:
    """A row for each trial; those that differ in their seed alone are one."""
    groups: dict[Trial, list[list[float]]] = {}
    for trial, result in zip(trials, results, strict=True):
        key = tuple(pair for pair in trial if pair[0] != "seed")
        groups.setdefault(key, []).append(result)
    rows = []
    for trial, group in sorted(groups.items(), key=lambda item: mean(item[1], 0)):
        shown = [_shown([result[i] for result in group]) for i in range(3)]
        rows.append(
            [value for _, value in trial]
            + [*shown, f"{mean(group, 3):,.0f}", f"{mean(group, 4):,.0f}"]
        )
    names = [name for name, _ in trials[0] if name != "seed"]
    print(tabulate(rows, [*names, *HEADERS], "pipe", disable_numparse=True))


def mean(group: list[list[float]], column: int) -> float:
    """The mean of a column."""
    return statistics.fmean(result[column] for result in group)


def _shown(values: list[float]) -> str:
    """The mean, and the standard deviation of several."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"


if __name__ == "__main__":
    main()
