"""Validation loss of AdamW and of Muon on fewer tokens, each at several peak learning rates.

    python benchmarks/optimizers.py --data data/fineweb --output_dir runs/optimizers

Every run has a whole schedule of its own: a tenth of its steps of warmup, then a cosine down to a
tenth of the peak. Runs that are finished in `output_dir` are not made again, so a grid can be
widened. The rest of the training is the same for all.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from search import train_once
from tabulate import tabulate

from modeling_gpt2scratch.common.command_line import argument, parse_config
from modeling_gpt2scratch.tracking.metrics import METRICS_NAME, read_metrics

EVALUATIONS = 5  # of each run, at the same shares of it


@dataclass(frozen=True)
class BenchmarkConfig:
    """Every argument of this script."""

    data: str = argument("directory made by prepare_data.py")
    output_dir: str = argument("directory of the runs")
    adamw_rates: list[float] = argument(
        "peaks of AdamW", default_factory=lambda: [7.5e-4, 1.5e-3, 3e-3]
    )
    muon_rates: list[float] = argument(
        "peaks of Muon and of the AdamW beside it", default_factory=lambda: [1.5e-3, 3e-3, 6e-3]
    )
    max_steps: int = argument("optimizer updates of AdamW", default=400)
    muon_share: float = argument("of these steps, for Muon", default=0.7)
    n_layer: int = argument("blocks", default=6)
    n_head: int = argument("attention heads", default=6)
    n_embd: int = argument("channels", default=384)
    n_positions: int = argument("tokens of a row", default=256)
    total_batch_tokens: int = argument("tokens of a step", default=2048)
    micro_batch_size: int = argument("rows of a micro-step", default=8)
    eval_tokens: int = argument("validation tokens at most", default=40_960)
    mixed_precision: str = argument("no or bf16", default="bf16")
    csv: str | None = argument("file for the curves of all runs", default=None)


@dataclass(frozen=True)
class Trial:
    """A run of the sweep."""

    optimizer: str
    learning_rate: float
    max_steps: int

    @property
    def name(self) -> str:
        """Its directory."""
        return f"{self.optimizer}_{self.learning_rate:g}_{self.max_steps}"

    @property
    def arguments(self) -> dict:
        """What it has of its own on the command line of train_accelerate.py."""
        return {
            "optimizer": self.optimizer,
            "learning_rate": self.learning_rate,
            "max_steps": self.max_steps,
            "warmup_steps": self.max_steps // 10,
            "eval_every": max(1, self.max_steps // EVALUATIONS),
        }


def main() -> None:
    """Trains what is missing, and prints a row for each run and the ratio of the best two."""
    config = parse_config(BenchmarkConfig, description=__doc__)
    n_muon = round(config.max_steps * config.muon_share)
    trials = [Trial("adamw", rate, config.max_steps) for rate in config.adamw_rates]
    trials += [Trial("muon", rate, n_muon) for rate in config.muon_rates]
    curves = {trial: curve_of(config, trial) for trial in trials}
    if config.csv:
        write_csv(Path(config.csv), config, curves)
    print_table(config, curves)


def curve_of(config: BenchmarkConfig, trial: Trial) -> list[dict]:
    """The logged steps of a run, which is made unless it is there."""
    directory = Path(config.output_dir) / trial.name
    shared = ("data", "n_layer", "n_head", "n_embd", "n_positions", "total_batch_tokens")
    shared += ("micro_batch_size", "eval_tokens", "mixed_precision")
    values = {name: getattr(config, name) for name in shared} | trial.arguments
    train_once(directory, None, values)
    return read_metrics(directory / METRICS_NAME)


def write_csv(path: Path, config: BenchmarkConfig, curves: dict[Trial, list[dict]]) -> None:
    """One line for each logged step of each run."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("optimizer", "learning_rate", "step", "tokens", "loss", "eval_loss"))
        for trial, rows in curves.items():
            for row in rows:
                eval_loss = f"{row['eval_loss']:.4f}" if "eval_loss" in row else ""
                writer.writerow(
                    (
                        *(trial.optimizer, f"{trial.learning_rate:g}", row["step"]),
                        *(row["step"] * config.total_batch_tokens, f"{row['loss']:.4f}", eval_loss),
                    )
                )


def print_table(config: BenchmarkConfig, curves: dict[Trial, list[dict]]) -> None:
    """A row for each run, and what Muon's best has over AdamW's best."""
    final = {trial: rows[-1]["eval_loss"] for trial, rows in curves.items()}
    speed = {t: median(row["tokens_per_second"] for row in rows) for t, rows in curves.items()}
    rows = [
        [
            *(trial.optimizer, f"{trial.learning_rate:g}", trial.max_steps),
            *(f"{trial.max_steps * config.total_batch_tokens:,}", f"{loss:.4f}"),
            f"{speed[trial]:,.0f}",
        ]
        for trial, loss in final.items()
    ]
    headers = ["optimizer", "peak rate", "steps", "tokens", "validation loss", "tokens/s"]
    print(tabulate(rows, headers, "pipe", disable_numparse=True))
    best = {
        name: min((t for t in final if t.optimizer == name), key=final.get)
        for name in ("adamw", "muon")
    }
    share = best["muon"].max_steps / best["adamw"].max_steps
    print(
        f"\nMuon's best on {share:.0%} of the tokens minus AdamW's best: "
        f"{final[best['muon']] - final[best['adamw']]:+.4f}; a step takes "
        f"{speed[best['adamw']] / speed[best['muon']]:.2f} x as long"
    )


if __name__ == "__main__":
    main()
