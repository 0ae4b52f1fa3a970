"""The log of each sample, as lm-evaluation-harness writes it.

A row has the sample (`doc`), the right answer (`target`), what the model was asked (`arguments`),
and what it said (`resps`): for each request the log-likelihood in nats and whether it was the
argmax. Tasks in which the model writes have no `resps`, and those of windows not even a `doc`.
docs/reference/results.md describes every key.

Source of the layout: `simple_evaluate` and `save_results_samples` of lm_eval 0.4.13.
"""

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np

from modeling_gpt2scratch.common.atomic_files import write_json_lines
from modeling_gpt2scratch.common.console import tell
from modeling_gpt2scratch.common.errors import in_words
from modeling_gpt2scratch.evaluation.tasks.cbt import ClozeTask
from modeling_gpt2scratch.evaluation.tasks.documents import DocumentsTask
from modeling_gpt2scratch.evaluation.tasks.lambada import (
    LambadaTask,
    split_last_word,
    straighten_quotes,
)
from modeling_gpt2scratch.evaluation.tasks.multiple_choice import MultipleChoiceTask
from modeling_gpt2scratch.evaluation.tasks.task import Task, TaskResult

from .measurements import ModelMeasurements
from .results_json import FILTER, sanitized

# Protocols of LAMBADA whose requests are known without a tokenizer, and what they do to a passage.
PASSAGES = {"": str, "openai-preprocessing": straighten_quotes}


def write_samples(
    folder: Path, model: ModelMeasurements, tasks: Mapping[str, Task], stamp: str
) -> None:
    """Writes a file for each task of a model, named as lm-evaluation-harness names it.

    Where samples of a task of one's own do not go together, there is no file, and a line says so.

    Args:
        model: everything measured of it.
        tasks: by name.
        stamp: date and time, for the names of the files.
    """
    for name, cell in model.tasks.items():
        if cell.result is not None and cell.result.samples:
            path = folder / f"samples_{sanitized(name)}_{stamp}.jsonl"
            with leaving_out(path.name):
                write_json_lines(path, sample_rows(tasks[name], cell.result), ensure_ascii=False)


@contextlib.contextmanager
def leaving_out(what: str) -> Iterator[None]:
    """Samples that do not go together end the block alone, and a line on stderr says so.

    They may be those of a task of one's own, so the error may be of any kind.

    Raises:
        OSError: if a file cannot be written.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        tell(f"no {what}: {in_words(error)}", file=sys.stderr)


def sample_rows(task: Task, result: TaskResult) -> Iterator[dict[str, Any]]:
    """One row for each sample."""
    metrics = list(result.samples)
    values = {metric: _values(task, metric, own) for metric, own in result.samples.items()}
    n_samples = len(next(iter(values.values())))
    known = list(known_of(task, result)) or [{} for _ in range(n_samples)]
    shared = {"filter": FILTER, "metrics": metrics, "task_hash": task.sha256}  # read once
    for number, (row, *own) in enumerate(zip(known, *values.values(), strict=True)):
        hashes = _hashes(row)
        if "resps" in row:
            row["filtered_resps"] = [response for (response,) in row["resps"]]
        if "target" in row:
            row["target"] = str(row["target"])
        if "arguments" in row:
            row["arguments"] = {
                f"gen_args_{i}": {f"arg_{j}": text for j, text in enumerate(texts)}
                for i, texts in enumerate(row["arguments"])
            }
        row |= shared
        yield {"doc_id": number} | row | hashes | dict(zip(metrics, own, strict=True))


@singledispatch
def known_of(task: Task, result: TaskResult) -> Iterator[dict[str, Any]]:
    """For each sample `doc`, `target`, `arguments` and `resps`, those that are known.

    Numbers and truth values of `resps` are text, as in lm-evaluation-harness's files.
    """
    return iter(())


@known_of.register
def _(task: MultipleChoiceTask, result: TaskResult) -> Iterator[dict[str, Any]]:
    for question, answers in zip(task.questions, _responses(task, result), strict=True):
        arguments = [(question.context, f" {answer}") for answer in question.answers]
        yield _choices(asdict(question), question.right, arguments, answers)


@known_of.register
def _(task: ClozeTask, result: TaskResult) -> Iterator[dict[str, Any]]:
    for question, answers in zip(task.questions, _responses(task, result), strict=True):
        context, choices = task.request(question)
        arguments = [(context, choice) for choice in choices]
        yield _choices(asdict(question), question.right, arguments, answers)


@known_of.register
def _(task: DocumentsTask, result: TaskResult) -> Iterator[dict[str, Any]]:
    nats = next(iter(result.samples.values()))  # the same for all metrics
    for document, value in zip(task.documents, nats.tolist(), strict=True):
        about = {"doc": asdict(document), "target": document.text, "arguments": [(document.text,)]}
        yield about | {"resps": [[str(-value)]]}


@known_of.register
def _(task: LambadaTask, result: TaskResult) -> Iterator[dict[str, Any]]:
    prepare = PASSAGES.get(task.protocol.partition(":")[2])
    nats = result.samples.get("perplexity", ())  # none where the model writes
    for index, text in enumerate(task.texts):
        context, word = split_last_word((prepare or str)(text))
        row: dict[str, Any] = {"doc": {"text": text}, "target": word}
        if prepare is not None:
            row["arguments"] = [(context, word)]
        if len(nats):
            is_greedy = bool(result.samples["acc"][index])
            row["resps"] = [[[str(-float(nats[index])), str(is_greedy)]]]
        yield row


def _responses(task: MultipleChoiceTask | ClozeTask, result: TaskResult) -> Sequence[Any]:
    """For each question what the model said of its answers; a task of one's own may not tell."""
    return result.responses or [()] * len(task.questions)


def _choices(
    doc: dict[str, Any], right: int, arguments: list[tuple[str, str]], answers: Any
) -> dict[str, Any]:
    """What is known of a question with a few answers."""
    responses = [[[str(log_prob), str(bool(is_greedy))]] for log_prob, is_greedy in answers]
    return {"doc": doc, "target": right, "arguments": arguments, "resps": responses}


def _values(task: Task, metric: str, values: np.ndarray) -> list[Any]:
    """The metric's value of each sample; null for one that is not finite.

    Right or wrong and losses are as they are. The harness has log-likelihoods, which are negative,
    for all that is made of likelihoods, and for documents what they are divided by as well.
    """
    numbers = values.tolist()
    if metric.endswith("perplexity") or metric.startswith("bits_per_"):
        numbers = [0.0 - number for number in numbers]
    numbers = [number if np.isfinite(number) else None for number in numbers]
    if isinstance(task, DocumentsTask):
        return [list(pair) for pair in zip(numbers, task.sizes(metric), strict=True)]
    return numbers


def _hashes(row: Mapping[str, Any]) -> dict[str, str]:
    """Checksums of sample, question and answer, as the harness takes them."""
    texts = {}
    if "doc" in row:
        texts["doc_hash"] = json.dumps(row["doc"], indent=2, ensure_ascii=False)
    if "arguments" in row:
        texts["prompt_hash"] = row["arguments"][0][0]
    if "target" in row:
        texts["target_hash"] = str(row["target"])
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
