"""The model card of a published run: Markdown, with the metadata that the Hub reads.

It says what the run recorded, and that the rest was not recorded.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from tabulate import tabulate

from modeling_gpt2scratch.common.command_line import goes_with
from modeling_gpt2scratch.data.sources.docstrings import DOCSTRINGS
from modeling_gpt2scratch.data.tokens.names import BYTES, GPT2, TRAINED_PREFIX
from modeling_gpt2scratch.evaluation.results.published_numbers import OPENAI_MODELS
from modeling_gpt2scratch.evaluation.results.table import format_number
from modeling_gpt2scratch.training.configuration import TrainConfig

from .scores import (
    NATS,
    estimates_of,
    has_left_out,
    is_official,
    is_partial,
    protocol_of,
    samples_of,
)

if TYPE_CHECKING:  # reading the records takes torch, writing the card does not
    from .records import DataRecord, RunRecords, SourceRecord

PICTURE_NAME = "loss.png"

# Arguments that another section shows, or that the model does not depend on.
HIDDEN_ARGUMENTS = (
    *("model", "n_layer", "n_head", "n_embd", "n_positions", "init_from"),
    *("verify", "data_cache_gb", "data_retry_seconds", "eval_every", "eval_tasks_every"),
    *("eval_tasks_limit", "save_every", "keep_checkpoints", "keep_every", "keep_best"),
    *("save_in_background", "push_every", "private", "overwrite"),
    *("log_every", "max_skipped_steps", "timeout_minutes", "preflight", "expect_processes"),
    "tokens_per_parameter",  # by now it is max_steps
    *("expect_parameters", "strict", "attention", "activation_checkpointing"),
    *("peak_tflops", "profile"),
)
# Those that count only beside certain values of another one.
DEPENDENT_ARGUMENTS = {**TrainConfig.only_with, "spike_threshold": ("rollback_on_spike", (True,))}
USAGE = """\
## How to use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repository}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{repository}", trust_remote_code=True)
inputs = tokenizer("The", return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=40, do_sample=True, top_k=50)
print(tokenizer.decode(output[0]))
```

`trust_remote_code=True` runs the Python files of this repository; add `revision="COMMIT"` to \
stay with files that you have read. Where GPT2Scratch is installed, `import modeling_gpt2scratch` \
first, leave `trust_remote_code` out, and its own code runs instead. GPT2Scratch also turns the \
model into a stock `gpt2`, for programs that run no code from repositories:

```bash
hf download {repository} --local-dir {name}
gpt2scratch convert to-gpt2 {name} {name}-stock
```"""
# What a count among a task's details says of its score.
CAVEATS = {
    "n_truncated": "samples are longer than this model has room for, and were cut at the beginning",
    "n_left_out": "samples are longer than this model has room for, and were left out",
    "n_unknown": "scored tokens are this model's unknown token: its score is of another text",
}
SIZES = {
    "parameters": "Parameters",
    "n_layer": "Layers",
    "n_head": "Attention heads in a layer",
    "n_embd": "Channels",
    "n_positions": "Context length, tokens",
    "vocab_size": "Vocabulary",
}


def model_card(
    records: RunRecords,
    *,
    repository: str,
    license: str | None = None,
    language: str | None = None,
    has_picture: bool = False,
) -> ModelCard:
    """The card of a run's model.

    Args:
        repository: "OWNER/NAME" on the Hub; also what the results call the model.
        license: of the weights, by the Hub's name for it; None states none.
        language: of the training text, by its ISO 639 code; None states none.
        has_picture: whether `loss.png` will stand beside the card.
    """
    name, base_model = repository.rpartition("/")[2], _base_model(records)
    eval_results = list(_eval_results(records.results, repository))
    data = ModelCardData(
        language=language,
        license=license,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["gpt2scratch", "gpt2"],
        datasets=_hub_names(records.data) or None,
        base_model=base_model,
        model_name=name if eval_results else None,
        eval_results=eval_results or None,
    )
    sections = (
        f"# {name}",
        _introduction(records),
        USAGE.format(repository=repository, name=name),
        _results(records.results, repository),
        _training(records, has_picture),
        _data(records.data),
        _limits(records),
        f"## Licence\n\n{_licence(license, base_model)} The Python files are GPT2Scratch's: `mit`.",
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def origin_of_weights(records: RunRecords) -> str:
    """Where training started: "from scratch", or with other weights."""
    name = records.arguments.get("init_from")
    return f"from the weights of `{name}`" if name else "from scratch"


def is_shown(name: str, arguments: dict) -> bool:
    """Whether the model depends on this argument, and no other section has it."""
    other, values = DEPENDENT_ARGUMENTS.get(name, (None, ()))
    is_used = other not in arguments or goes_with(arguments[other], values)
    return name not in HIDDEN_ARGUMENTS and is_used


def data_links(data: DataRecord) -> str:
    """The sources in words."""
    return " and ".join(_source_link(source) for source in data.sources)


def tokenizer_in_words(name: str) -> str:
    """What a card calls the tokenizer of this name."""
    if name == GPT2:
        return "GPT-2's own"
    if name == BYTES:
        return "the 256 bytes and `<|endoftext|>`"
    is_trained = name.startswith(TRAINED_PREFIX)
    return "a byte-level BPE trained on the training split" if is_trained else f"`{name}`"


def pipe_table(headers: list[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with every cell as it is given."""
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


def _licence(license: str | None, base_model: str | None) -> str:
    """A sentence about the weights."""
    if license:
        return f"The weights: `{license}`."
    if base_model:
        return f"None is stated for the weights; see those of the data and of `{base_model}`."
    return "None is stated for the weights; see that of the data."


def _base_model(records: RunRecords) -> str | None:
    """The model of the Hub that training began with, if it was one: of a path, no owner is left."""
    name = str(records.arguments.get("init_from") or "").partition("@")[0]
    if name in OPENAI_MODELS:
        return f"openai-community/{name}"
    return name if "/" in name else None


def _introduction(records: RunRecords) -> str:
    """What the model is, and how large."""
    origin = "in GPT2Scratch's format; how it was trained was not recorded"
    if records.tokens_seen is not None:
        data = f" of {data_links(records.data)}" if records.data else ""
        start = origin_of_weights(records)
        origin = f"trained {start} with GPT2Scratch on {records.tokens_of_weights:,} tokens{data}"
    sizes = [[text, f"{records.sizes[name]:,}"] for name, text in SIZES.items()]
    return (
        f"A GPT-2 language model of {records.sizes['parameters']:,} parameters, {origin}. It is a "
        f"base model: it continues a text, and was not taught to answer or to follow "
        f"instructions.\n\n{pipe_table(['', ''], sizes)}"
    )


def _results(results: dict | None, repository: str) -> str:
    """Every measured number with its protocol, or that there is none."""
    if not results or not results["models"][repository]["results"]:
        return "## Results\n\nNot measured: the run has no results of `evaluate/compare.py`."
    rows: dict[tuple, list] = {}  # by task and metric, so that models stand below each other
    arguments = results["arguments"]
    for name, measured in results["models"].items():
        model = "**this model**" if name == repository else name
        for task, cell in measured["results"].items():
            protocol = protocol_of(measured, task)
            samples = samples_of(measured, task)
            for key, (value, stderr) in estimates_of(cell).items():
                metric = key.removesuffix(NATS)
                arrow = "↑" if measured["higher_is_better"][task][metric] else "↓"
                text = format_number(value)
                text += "" if stderr is None else f" ± {format_number(stderr)}"
                text = f"e^{text}" if key != metric else text  # too large for a number
                row = [task, protocol, samples, f"{metric} {arrow}", model, text]
                rows.setdefault((task, metric), []).append(row)
    headers = ["Task", "Protocol", "Samples", "Metric", "Model", "Value"]
    table = pipe_table(headers, [row for group in rows.values() for row in group])
    partial = ""
    own = results["models"][repository]
    if any(is_partial(own, task) for task in own["results"]):
        partial = (
            f"**Partial scores**: `first {arguments['limit']:,}` says that `--limit` cut a task; "
            f"these are not scores of the whole task.\n\n"
        )
    cut = "".join(
        f"`{task}`: {n:,} {what}.\n\n"
        for task, details in own["details"].items()
        for name, what in CAVEATS.items()
        if (n := details.get(name))
    )
    other = "".join(
        f"`{task}`: measured on {_plain(str(config['dataset_path']))} "
        f"({config['data_status'] or 'not compared'}), which is not known to be the official data: "
        f"so this is not a score on `{config['official_dataset']}`.\n\n"
        for task, config in own["configs"].items()
        if task in own["results"] and config["official_dataset"] and not is_official(config)
    )
    return (
        f"## Results\n\n{table}\n\n{partial}{cut}{other}± is one standard error. Measured with "
        f"GPT2Scratch's `evaluate/compare.py` on {results['date'][:10]} in {arguments['dtype']}, "
        f"torch {results['torch_version']}, transformers {results['transformers_version']}. Scores "
        f"compare within one protocol and version. On `val`, loss and perplexity are per token; "
        f"only `bits_per_byte` compares models with different tokenizers."
    )


def _eval_results(results: dict | None, repository: str) -> Iterator[EvalResult]:
    """The numbers of this model as the metadata has them."""
    if not results:
        return
    measured = results["models"][repository]
    for task, cell in measured["results"].items():
        if is_partial(measured, task) or has_left_out(measured, task):
            continue  # a part is no result to be listed; the card's table has it
        config = measured["configs"][task]
        dataset = config["official_dataset"] or config["dataset_path"]
        if config["official_dataset"] and not is_official(config):
            continue
        protocol, samples = protocol_of(measured, task), f"{samples_of(measured, task)} samples"
        for metric, (value, stderr) in estimates_of(cell).items():
            if metric.endswith(NATS):
                continue
            yield EvalResult(
                task_type="text-generation",
                dataset_type=dataset or "unknown",
                dataset_name=dataset or "unknown",
                metric_type=metric,
                metric_value=value,
                metric_name=f"{task} {metric} ({protocol}, {samples})",
                metric_args=None if stderr is None else {"stderr": stderr},
            )


def _training(records: RunRecords, has_picture: bool) -> str:
    """Tokens, losses and arguments of the training."""
    if not records.arguments:
        return "## Training\n\nNot recorded."
    rows = [["Steps", f"{records.steps:,}"], ["Tokens of all steps", f"{records.tokens_seen:,}"]]
    if records.passes is not None:
        rows.append(["Passes over the training split", f"{records.passes:.2f}"])
    if records.metrics:
        for row in [row for row in records.metrics if "loss" in row][-1:]:
            title = f"Training loss up to step {row['step']:,}, nats per token"
            rows.append([title, f"{row['loss']:.4f}"])
        if row := records.validated:
            title = f"Validation loss after step {row['step']:,}, nats per token"
            rows.append([title, f"{row['eval_loss']:.4f}"])
        if records.arguments.get("final") == "best":
            rows.append(["Weights", "those of that step, the best of those that were kept"])
        speed = statistics.median(row["tokens_per_second"] for row in records.metrics)
        rows.append(["Tokens per second, median of the log", f"{speed:,.0f}"])
    else:
        rows.append(["Losses", "not recorded"])
    arguments = [
        [f"`{name}`", f"{value:g}" if isinstance(value, float) else f"{value}"]
        for name, value in records.arguments.items()
        if is_shown(name, records.arguments)
    ]
    where = "The hardware was not recorded."
    if records.environment:
        text = ", ".join(f"{name} {value}" for name, value in records.environment.items())
        where = f"Where it ran: {text}."
    picture = f"![Loss over the steps]({PICTURE_NAME})\n\n" if has_picture else ""
    return (
        f"## Training\n\n{pipe_table(['', ''], rows)}\n\n{picture}{where} "
        f"Arguments of `train_accelerate.py`:\n\n{pipe_table(['Argument', 'Value'], arguments)}"
    )


def _data(data: DataRecord | None) -> str:
    """The data set and its splits."""
    if data is None:
        return "## Data\n\nNot recorded."
    tokenizer = tokenizer_in_words(data.tokenizer)
    rows = [
        [name, f"{split.n_documents:,}", f"{split.n_tokens:,}", f"{split.n_bytes:,}"]
        for name, split in data.splits.items()
    ]
    table = pipe_table(["Split", "Documents", "Tokens", "Bytes of text"], rows)
    return f"## Data\n\nText: {data_links(data)}. Tokenizer: {tokenizer}.\n\n{table}"


def _hub_names(data: DataRecord | None) -> list[str]:
    """The sources that are data sets of the Hub."""
    sources = data.sources if data else ()
    return list(dict.fromkeys(source.name for source in sources if source.is_on_hub))


def _plain(name: str) -> str:
    """A name for code quotes, which it cannot end."""
    return name.replace("`", "'")


def _source_link(source: SourceRecord) -> str:
    """A source in words, with its share if it has one."""
    share = f" ({source.weight:.0%} of the text)" if source.weight is not None else ""
    if source.is_named:
        is_prose = source.name == DOCSTRINGS
        what = "docstrings of Python packages" if is_prose else f"preset `{source.name}`"
        return f"the {what}{share}"
    if not source.is_on_hub:
        return f"local files (`{_plain(source.name)}`){share}"
    subset = f", subset `{_plain(source.subset)}`" if source.subset else ""
    return f"[{source.name}](https://huggingface.co/datasets/{source.name}){subset}{share}"


def _limits(records: RunRecords) -> str:
    """What not to expect."""
    points = [
        "A base model without instruction tuning or safety tuning: it may write anything that its "
        "training text could contain, and what it states need not be true.",
        "GPT2Scratch takes training text as it is. Biases, personal data and offensive language in "
        "it, which text from the web always has, come back in what the model writes.",
        f"Prompt and output together are at most {records.sizes['n_positions']:,} tokens.",
    ]
    if records.tokens_seen is not None and not records.arguments.get("init_from"):
        points.append(
            f"It has seen {records.tokens_of_weights:,} tokens. OpenAI's GPT-2 models were trained "
            f"on WebText, 40 GB of text or some ten billion tokens; how often was not published."
        )
    return "## Limits\n\n" + "\n".join(f"- {point}" for point in points)
