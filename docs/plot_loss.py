"""Draws the loss curves of runs: `python docs/plot_loss.py --runs runs/mine --output loss.png`."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt

from modeling_gpt2scratch.command_line import argument, parse_config
from modeling_gpt2scratch.metrics import METRICS_NAME, read_metrics


@dataclass(frozen=True)
class PlotConfig:
    """Every argument of this script."""

    runs: list[str] = argument("output directories of train_accelerate.py")
    output: str = argument("picture to write; its ending decides the format")


def main() -> None:
    """One line per run for the training loss, and dots for the validation loss."""
    config = parse_config(PlotConfig, description=__doc__)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for run in map(Path, config.runs):
        rows = read_metrics(run / METRICS_NAME)
        (line,) = axes.plot(
            [row["step"] for row in rows],
            [row["loss"] for row in rows],
            linewidth=1,
            alpha=0.6,
            label=f"{run.name}: training",
        )
        measured = [row for row in rows if "eval_loss" in row]
        axes.plot(
            [row["step"] for row in measured],
            [row["eval_loss"] for row in measured],
            "o-",
            markersize=4,
            color=line.get_color(),
            label=f"{run.name}: validation",
        )
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(config.output, dpi=120)


if __name__ == "__main__":
    main()
