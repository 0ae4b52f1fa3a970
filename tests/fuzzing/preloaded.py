"""What the commands import, loaded once in the process from which each attempt is forked."""

import importlib
import threading

from tqdm import tqdm

for module in (
    *("matplotlib.figure", "transformers.pipelines", "pyarrow.csv", "pyarrow.parquet"),
    *("modeling_gpt2scratch.evaluation.comparison", "modeling_gpt2scratch.training.loop"),
    *("modeling_gpt2scratch.data.preparation.prepare", "modeling_gpt2scratch.hub.datasets"),
    *("modeling_gpt2scratch.hub.runs", "modeling_gpt2scratch.reports.run_page"),
    *("modeling_gpt2scratch.reports.loss_plot", "modeling_gpt2scratch.interchange.conversion"),
    *(
        "modeling_gpt2scratch.interchange.foreign_checkpoints",
        "modeling_gpt2scratch.commands.shards",
    ),
    *("modeling_gpt2scratch.data.shards.adoption", "modeling_gpt2scratch.data.shards.conversion"),
    *("modeling_gpt2scratch.data.shards.verification", "modeling_gpt2scratch.generation.writer"),
    *("modeling_gpt2scratch.commands.convert", "modeling_gpt2scratch.commands.sample"),
    "fuzzing.attempts",
):
    importlib.import_module(module)

tqdm.set_lock(
    threading.RLock()
)  # the usual one belongs to all processes, and who is killed keeps it
