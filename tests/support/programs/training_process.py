"""A training run in a process that is forked from one which has imported everything already."""

import os
import sys
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path


def start(arguments: list[str], log: Path) -> BaseProcess:
    """Starts `train_accelerate.py` with these arguments; what it prints is appended to `log`."""
    context = get_context("forkserver")
    modules = ["support.programs.training_process", "modeling_gpt2scratch.training.loop"]
    context.set_forkserver_preload(modules)
    process = context.Process(target=run, args=(arguments, log))
    process.start()
    return process


def run(arguments: list[str], log: Path) -> None:
    """The script itself, in a process of its own."""
    import train_accelerate

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["train_accelerate.py", *arguments]
    train_accelerate.main()
