"""A training of a few minutes on the data of the day, and what its model scores."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

from gpu_parts.plan import Plan, Record
from modeling_gpt2scratch import compare
from modeling_gpt2scratch.checkpoints.checkpoint import find_model
from modeling_gpt2scratch.tracking.metrics import read_metrics
from modeling_gpt2scratch.training.configuration import TrainConfig
from modeling_gpt2scratch.training.loop import train

TASKS = {
    "lambada_standard": "lambada_test_plain_text.txt",
    "lambada": "lambada_test.jsonl",
    "wikitext": "wiki.test.raw",
    "blimp": "adjunct_island.jsonl",
}
BATCH_TOKENS = 131_072
SCORING_SECONDS = 55  # of this part; the training and its start share the rest
START_SECONDS = 30  # what is compiled already has to be found again
GUESS = 300_000  # tokens/s, where the steps have not been measured
SIZES = {
    **{"model": "gpt2", "sequence_length": 1024, "total_batch_tokens": BATCH_TOKENS},
    **{"learning_rate": 6e-4, "muon_learning_rate": 2.4e-3, "mixed_precision": "bf16"},
    **{"compile": "model", "log_every": 10, "eval_tokens": 1_048_576},
}
SMOKE_SIZES = {
    **{"model": "tiny", "n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 32},
    **{"sequence_length": 32, "total_batch_tokens": 128, "micro_batch_size": 2},
    **{"mixed_precision": "bf16", "log_every": 2, "eval_tokens": 128, "learning_rate": 0.01},
}


def run(plan: Plan, record: Record) -> None:
    """Muon and WSD for as long as there is time, then the benchmarks whose files are there."""
    output_dir = Path(plan.output_dir, "run")
    # Nobody knows how long it takes to compile training and validation, so that comes first.
    few = {"max_steps": 2, "eval_every": 1, "eval_tokens": 1, "warmup_steps": 0, "decay_steps": 1}
    train(TrainConfig(data=plan.shards, output_dir=f"{output_dir}-first", **options(plan) | few))
    record(start_seconds=plan.seconds - plan.seconds_left)
    config = TrainConfig(data=plan.shards, output_dir=str(output_dir), **options(plan))
    record(max_steps=config.max_steps, total_batch_tokens=config.total_batch_tokens)
    if not plan.is_smoke:  # slower than expected, it stops with a checkpoint
        seconds = max(1.0, plan.seconds_left - SCORING_SECONDS)
        timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()
    end = train(config)
    if not plan.is_smoke:
        timer.cancel()
    record(end=end, **last_line(output_dir))
    scores: dict[str, Any] = {}
    for task, file in TASKS.items():
        scores[task] = score(task, file, output_dir, plan)
        record(scores=scores)


def options(plan: Plan) -> dict[str, Any]:
    """The arguments of the training, with the steps that fit into its time."""
    common = {
        **{"optimizer": "muon", "schedule": "wsd", "dropout": 0.0, "preflight": False},
        **{"save_every": 0, "overwrite": True},
    }
    if plan.is_smoke:
        return common | SMOKE_SIZES | {"max_steps": 6, "eval_every": 3}
    steps = plan.found_by("steps").get("contestants", {}).get("ours, Muon, compiled", {})
    speed = steps.get("tokens_per_second", GUESS)
    seconds = plan.seconds_left - SCORING_SECONDS - START_SECONDS
    n_steps = max(20, int(0.95 * seconds * speed / BATCH_TOKENS))
    found = common | SIZES | {"max_steps": n_steps, "eval_every": max(1, n_steps // 4)}
    found |= {"warmup_steps": n_steps // 20, "decay_steps": n_steps * 2 // 5}
    rows = int(steps.get("rows", 16))
    return found | {"micro_batch_size": 1 << rows.bit_length() - 1}  # divides the rows of a step


def last_line(output_dir: Path) -> dict[str, float]:
    """What the run logged last."""
    names = ("step", "loss", "eval_loss", "tokens_per_second", "mfu", "elapsed_seconds")
    rows = read_metrics(output_dir / "metrics.jsonl")
    found = {name: row[name] for row in rows for name in names if row.get(name) is not None}
    return {f"last_{name}": value for name, value in found.items()}


def score(task: str, file: str, run_dir: Path, plan: Plan) -> dict[str, Any]:
    """The estimates of one benchmark, or why there are none."""
    official = Path(plan.data, "official")
    if not any(path.name in (file, f"{task}.zip") for path in official.rglob("*")):
        return {"error": f"no {file} in the data"}
    place = Path(plan.output_dir, "scores", task)
    place.mkdir(parents=True, exist_ok=True)
    compare(
        [str(find_model(run_dir))],  # a checkpoint, if the time was up
        [task],
        data_dir=str(official),
        output_dir=str(place),
        limit=2 if plan.is_smoke else None,
    )
    (model,) = json.loads((place / "results.json").read_text())["models"].values()
    return model["results"].get(task) or {"error": model["errors"].get(task, "no result")}
