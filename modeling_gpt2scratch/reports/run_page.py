"""One page about a run, with its curves: `report.md` and `curves.png`, or `report.html` alone.

They say what the run recorded, without names and paths of the machine.
"""

import math
import statistics
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

from modeling_gpt2scratch.checkpoints.checkpoint import WEIGHTS_NAME, find_checkpoint
from modeling_gpt2scratch.checkpoints.weight_files import WeightsError, open_tensors
from modeling_gpt2scratch.common.atomic_files import write_file
from modeling_gpt2scratch.common.console import tell
from modeling_gpt2scratch.common.errors import one_line
from modeling_gpt2scratch.common.json_lines import read_json_lines
from modeling_gpt2scratch.tracking.metrics import EVENTS_NAME, METRICS_NAME, read_metrics
from modeling_gpt2scratch.tracking.status import KILLED, read_status
from modeling_gpt2scratch.training.configuration import RUN_CONFIG_NAME

from .loss_plot import PlotError, draw_curves
from .measured_records import RESULTS_NAME
from .model_card import data_links, is_shown, origin_of_weights, pipe_table
from .records import RecordsError, RunRecords, read_json, read_training
from .run_html import HTML_NAME, run_html

TITLE = "Report of a training run"
REPORT_NAME = "report.md"
CURVES_NAME = "curves.png"
MAX_SECONDS = 1e9  # of a training, three decades; more is a damaged number

# What decided the result, in one line; the rest is in train_config.json.
SETTINGS = (
    *("optimizer", "learning_rate", "muon_learning_rate", "schedule", "warmup_steps"),
    *("total_batch_tokens", "sequence_length", "weight_decay", "dropout", "seed", "compile"),
)
SIZES = {"n_layer": "layers", "n_embd": "channels", "n_positions": "positions"}
EVENTS = {"skipped": "Skipped steps", "spike": "Loss spikes", "rollback": "Returns after a spike"}
EVENTS |= {"pushed": "Checkpoints sent to the Hub", "push_failed": "Uploads that failed"}
EVENTS |= {"gap": "Gaps in metrics.jsonl", "overflow": "Steps left out for fp16's loss scale"}
SKIPS = ("skipped", "overflow")
MEMORY = {
    "peak_device_memory_gib": "Peak memory of one GPU",
    "peak_resident_memory_gib": "Peak memory of one process",
}
FILES = {
    WEIGHTS_NAME: "the model, with its configuration and tokenizer beside it",
    METRICS_NAME: "every logged step",
    EVENTS_NAME: "skipped steps, loss spikes and returns, with the place of their data",
    RUN_CONFIG_NAME: "every argument",
    RESULTS_NAME: "results of `evaluate/compare.py`",
    "tensorboard": "for `tensorboard --logdir`",
    "wandb": "wandb's copy; `wandb sync` uploads the runs that were offline",
    HTML_NAME: "this report, with curves to hover over and zoom, and all samples",
    "profile": "traces of a few steps",
}


def report_at_end(run: Path) -> str:
    """Writes the report, and says in one line where it is or why there is none.

    It raises nothing, because a training that is done must not end in an error. The main process
    alone calls it.
    """
    try:
        return f"report: {write_report(run)}"
    except Exception as error:
        return f"no report: {one_line(error)}"


def write_report(run: Path) -> Path:
    """Writes `report.md`, `curves.png` and `report.html`.

    Args:
        run: output directory of the training script.

    Returns:
        The report.

    Raises:
        RecordsError: without a logged step, or with records that cannot be read.
        OSError: if the directory cannot be written.
    """
    logged = read_metrics(run / METRICS_NAME)
    records = read_training(run, sizes=_sizes(run), logged=logged)
    if not records.metrics:
        raise RecordsError(f"{run / METRICS_NAME}: expected logged steps of a run, found none")
    events = read_json_lines(run / EVENTS_NAME)
    has_model = (run / "config.json").is_file()
    results = [*_status(run), *_results(records, _counts(events), has_model=has_model)]
    summary = _summary(records)
    try:
        write_file(run / CURVES_NAME, draw_curves(run, logged))
        curves = f"![Losses and more over the steps]({CURVES_NAME})"
    except PlotError as error:
        curves = f"No curves: {error}."
    try:
        page = run_html(
            title=TITLE,
            summary=summary,
            results=results,
            settings=records.arguments | records.environment,
            files=_files(run).items(),
            logged=logged,
            events=[(_name_of(event), event) for event in events],
        )
        write_file(run / HTML_NAME, page)
    except ImportError as error:  # on a machine with little more than torch
        tell(f"no {HTML_NAME}: {error}", file=sys.stderr)
    sections = [
        f"# {TITLE}",
        summary,
        *_settings(records),
        "## Results",
        pipe_table(["", ""], results),
        curves,
        *_sample(logged),
        "## Where things are",
        "\n".join(f"- `{name}`: {text}" for name, text in _files(run).items()),
    ]
    path = run / REPORT_NAME
    write_file(path, ("\n\n".join(sections) + "\n").encode(errors="replace"))
    return path


def _summary(records: RunRecords) -> str:
    """What was trained on what."""
    sizes = records.sizes
    parameters = f" of {sizes['parameters']:,} parameters" if "parameters" in sizes else ""
    shape = ", ".join(f"{sizes[name]:,} {word}" for name, word in SIZES.items() if name in sizes)
    data = f" of {data_links(records.data)}" if records.data else ""
    training = "; how it was trained was not recorded"
    if records.arguments:
        n_tokens = f"{records.tokens_seen:,} tokens"
        training = f", trained {origin_of_weights(records)} on {n_tokens}{data}"
        if records.passes is not None:
            training += f" ({records.passes:.2f} passes over its training split)"
    return f"A GPT-2{parameters}{f' ({shape})' * bool(shape)}{training}."


def _settings(records: RunRecords) -> Iterator[str]:
    """How it was trained, and where."""
    settings = [
        f"{name} {value}"
        for name, value in records.arguments.items()
        if name in SETTINGS and is_shown(name, records.arguments)
    ]
    if settings:
        yield f"Settings: {', '.join(settings)}."
    if records.environment:
        where = ", ".join(f"{name} {value}" for name, value in records.environment.items())
        yield f"Where it ran: {where}."


def _status(run: Path) -> Iterator[tuple[str, str]]:
    """How the run stands, if that is recorded; messages may have paths in them, but for our own."""
    if status := read_status(run):
        killed = f": {KILLED}" if status.get("message") == KILLED else ""
        yield "Status", f"{status['status']}{killed}"


def _results(
    records: RunRecords, events: dict[str, int], *, has_model: bool
) -> Iterator[tuple[str, str]]:
    """What came out, and what it cost; what was not logged is left out."""
    rows = records.metrics
    max_steps = records.arguments.get("max_steps", rows[-1]["step"])
    yield "Steps", f"{rows[-1]['step']:,} of {max_steps:,}"
    for row in [row for row in rows if "loss" in row][-1:]:
        yield "Training loss, last", f"{row['loss']:.4f} nats per token after step {row['step']:,}"
    measured = [row for row in rows if "eval_loss" in row]
    if measured:
        last, best = measured[-1], min(measured, key=lambda row: row["eval_loss"])
        yield "Validation loss, last", f"{_loss(last)}, perplexity {_perplexity(last)}"
        yield "Validation loss, best", f"{_loss(best)}, perplexity {_perplexity(best)}"
        if has_model and records.arguments.get("final") == "best" and records.validated:
            step = f"{records.validated['step']:,}"
            yield "Weights", f"of step {step}, the best of those that were kept"
    for name in dict.fromkeys(n for row in rows for n in row if n.startswith("eval_loss/")):
        row = [row for row in rows if name in row][-1]
        text = f"{row[name]:.4f} nats per token after step {row['step']:,}"
        yield f"Validation loss of {name.partition('/')[2]}, last", text
    benchmarks = {name: row for row in rows for name in row if "/" in name and name[:5] != "eval_"}
    limit = records.arguments.get("eval_tasks_limit")
    partial = f", first {limit:,} examples" if limit else ""
    for name, row in benchmarks.items():
        yield name.replace("/", ", ") + partial, f"{row[name]:.4f} after step {row['step']:,}"
    yield from _costs(rows)
    for event, name in EVENTS.items():
        if event in events:
            yield name, f"{events[event]:,}"


def _costs(rows: Sequence[dict]) -> Iterator[tuple[str, str]]:
    """Time, speed and memory."""
    seconds = rows[-1].get("elapsed_seconds")
    if seconds is not None and 0 <= seconds < MAX_SECONDS:
        yield "Time in training", str(timedelta(seconds=round(seconds)))
    shares = {"mfu": "Model FLOP/s utilisation, median", "data_wait": "Waiting for data, median"}
    if speeds := _values(rows, "tokens_per_second"):
        yield "Tokens per second, median", f"{statistics.median(speeds):,.0f}"
    for name, text in shares.items():
        if values := _values(rows, name):
            yield text, f"{statistics.median(values):.1%}"
    for name, text in MEMORY.items():
        if values := _values(rows, name):
            yield text, f"{max(values):.2f} GiB"
    if stalls := _values(rows, "save_stall_seconds"):
        yield "Pause for a checkpoint, longest", f"{max(stalls):.1f} s"
    if graphs := _values(rows, "compiled_graphs"):
        yield "Compiled graphs", f"{graphs[-1]:,}"


def _values(rows: Sequence[dict], name: str) -> list[float]:
    """What was logged under a name."""
    return [row[name] for row in rows if name in row]


def _loss(row: dict) -> str:
    """The validation loss of a row."""
    return f"{row['eval_loss']:.4f} nats per token after step {row['step']:,}"


def _perplexity(row: dict) -> str:
    """The validation perplexity per token; a loss that is lost has none worth printing."""
    return f"{math.exp(row['eval_loss']):,.2f}" if row["eval_loss"] < 100 else "none"


def _counts(events: Iterable[dict]) -> dict[str, int]:
    """How often what happened; a step that a resumed run makes again is skipped once."""
    names = [(str(row.get("event")), str(row.get("step"))) for row in events]
    kept = {(name, step if name in SKIPS else n) for n, (name, step) in enumerate(names)}
    return Counter(name for name, _ in kept)


def _name_of(event: dict) -> str:
    """What the event is called in the table."""
    name = str(event.get("event"))
    return EVENTS.get(name, name)


def _sample(logged: Sequence[dict]) -> Iterator[str]:
    """The last text that the model wrote, if it wrote any."""
    for row in [row for row in logged if row.get("sample")][-1:]:
        yield f"## Sample after step {row['step']:,}"
        yield textwrap.indent(str(row["sample"]), "    ", lambda line: True)


def _files(run: Path) -> dict[str, str]:
    """What is in the directory of the run."""
    found = {name: text for name, text in FILES.items() if (run / name).exists()}
    checkpoint = find_checkpoint(run)
    if checkpoint:
        found[checkpoint.name] = "the last checkpoint, from which `--resume auto` goes on"
    return found


def _sizes(run: Path) -> dict[str, int]:
    """Sizes of the model: those in its configuration, and its parameters."""
    for directory in (run, find_checkpoint(run)):
        if directory and (directory / "config.json").is_file():
            config = read_json(directory / "config.json")
            sizes = {name: config[name] for name in SIZES if isinstance(config.get(name), int)}
            n_parameters = _n_parameters(directory / WEIGHTS_NAME)
            return sizes | ({"parameters": n_parameters} if n_parameters else {})
    return {}


def _n_parameters(path: Path) -> int | None:
    """Numbers in a file of weights, which holds tied ones once; None if it is not there."""
    try:
        with open_tensors(path, framework="np") as weights:
            shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    except (OSError, WeightsError):
        return None
    return sum(math.prod(shape) for shape in shapes)
