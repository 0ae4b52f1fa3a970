"""The scripts as functions, for notebooks and programs of your own.

`docs/reference/api.md` has an example. Nothing is loaded before it is needed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling_gpt2scratch.common.threads import let_waiting_threads_rest

if TYPE_CHECKING:
    from modeling_gpt2scratch.data.shards.manifest import Manifest
    from modeling_gpt2scratch.evaluation.report import Comparison


def prepare(**arguments: Any) -> Manifest:
    """Turns text into token shards. Takes the arguments of `prepare_data.py` as keywords.

    The same call resumes an interrupted preparation. A script calls it below
    `if __name__ == "__main__":`, because each worker process imports the script.

    Returns:
        The manifest of the data directory.

    Raises:
        TypeError: for the name of an argument that does not exist, or without one that must be
            given.
        ValueError, RuntimeError, OSError: if an argument, the data, the disk, a worker or the login
            is at fault; the message says what was expected and what was found.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            'expected prepare() below `if __name__ == "__main__":`, found it called while a worker '
            "process imports the script"
        )
    from modeling_gpt2scratch.common.command_line import from_keywords
    from modeling_gpt2scratch.data.preparation.configuration import PrepareConfig
    from modeling_gpt2scratch.data.preparation.prepare import prepare as prepare_with
    from modeling_gpt2scratch.hub.datasets import push_data, require_place

    config = from_keywords(PrepareConfig, arguments)
    if config.push_to_hub:
        require_place(config.push_to_hub, private=config.private)
    manifest = prepare_with(config)
    if config.push_to_hub:
        print(push_data(Path(config.output_dir), config.push_to_hub, private=config.private))
    return manifest


def train(**arguments: Any) -> Path:
    """Trains a GPT-2. Takes the arguments of `train_accelerate.py` as keywords.

    It may be called again in the same process. Ctrl-C, a notebook's stop button and SIGTERM save a
    checkpoint; `resume="auto"` continues from it.

    Returns:
        The directory of the run. Once the run has finished, `from_pretrained` loads it.

    Raises:
        KeyboardInterrupt, SystemExit: after that checkpoint.
        TypeError: for the name of an argument that does not exist, or without one that must be
            given.
        ValueError, RuntimeError, OSError: if an argument, the data, the device or the disk is at
            fault; the message says what was expected and what was found.
    """
    let_waiting_threads_rest()  # to no avail if torch is loaded already
    from modeling_gpt2scratch.common.command_line import from_keywords
    from modeling_gpt2scratch.reports.run_page import report_at_end
    from modeling_gpt2scratch.training.configuration import TrainConfig
    from modeling_gpt2scratch.training.loop import train as train_with

    config = from_keywords(TrainConfig, arguments)
    output_dir = Path(config.output_dir)
    if train_with(config) == "stopped":
        raise SystemExit(128 + signal.SIGTERM)  # what comes next would take it for finished
    if os.environ.get("RANK", "0") == "0":
        print(report_at_end(output_dir))
    return output_dir


def publish(**arguments: Any) -> str:
    """Uploads a run to the Hugging Face Hub. Takes the arguments of `gpt2scratch publish`.

    Returns:
        The address of the repository; with `dry_run`, the directory that was written instead.

    Raises:
        TypeError, ValueError, OSError: if an argument, the run, the login or the disk is at fault;
            the message says what was expected and found. TypeError is for names of arguments.
    """
    from modeling_gpt2scratch.common.command_line import from_keywords
    from modeling_gpt2scratch.hub.configuration import PublishConfig
    from modeling_gpt2scratch.hub.runs import publish as publish_with

    return publish_with(from_keywords(PublishConfig, arguments))


def compare(
    models: str | Path | list[str | Path], tasks: str | list[str], **arguments: Any
) -> Comparison:
    """Measures models on tasks, prints the table and writes results.json.

    Args:
        models: one directory or Hub name, or a list of them.
        tasks: task names, or just "all".
        arguments: the others of `evaluate/compare.py`, as keywords.

    Returns:
        The measurements of every model.

    Raises:
        TypeError: for the name of an argument that does not exist.
        ValueError: for arguments that do not fit.
        OSError: if the results cannot be written, or another comparison writes them (OutputError).
        KeyboardInterrupt: after Ctrl-C; the same call resumes.
    """
    let_waiting_threads_rest()
    from modeling_gpt2scratch.common.command_line import from_keywords
    from modeling_gpt2scratch.evaluation.comparison import run_comparison
    from modeling_gpt2scratch.evaluation.configuration import arguments_for, open_output_dir
    from modeling_gpt2scratch.evaluation.report import Comparison
    from modeling_gpt2scratch.evaluation.results.measurements import ModelMeasurements
    from modeling_gpt2scratch.evaluation.tasks.registry import known_tasks

    arguments |= {"models": models, "tasks": tasks}
    config = from_keywords(arguments_for(known_tasks(arguments.get("include_path"))), arguments)
    output_dir = open_output_dir(config)
    comparison = Comparison([ModelMeasurements(name) for name in config.models])
    run_comparison(config, output_dir, comparison)
    return comparison
