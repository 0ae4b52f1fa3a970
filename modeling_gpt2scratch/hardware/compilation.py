"""How a model computes: compiled by torch.compile where it can be, activations kept or not."""

import os
import shutil
import sysconfig
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from modeling_gpt2scratch.distributed.processes import LaunchError

NOT_COMPILED = "not compiled"


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keeps only the inputs of the blocks; what is inside is computed again on the way back.

    Losses and gradients stay as they are, with dropout, too: the random state of each block is
    remembered. Costs about a third more time. Call it before `compile_model`.
    """
    # The name before the word of the field became transformers' own, too.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})


def compile_model(model: nn.Module, how: str, *, device: torch.device, strict: bool) -> str:
    """Compiles in place, at the first call that follows, and says in words what will be compiled.

    In place the parameters keep their names, and wrappers around the model find what they expect.
    The blocks of a model are alike, so that compiling one serves all, in a fraction of the time.

    Args:
        model: not wrapped yet, with activation checkpointing switched on if it is wanted.
        how: no, model or blocks.
        device: where the model is going to run.
        strict: refuse what cannot be compiled.

    Raises:
        LaunchError: under `strict`, if something that compiling needs is missing. Processes on
            several machines may differ in that; see `on_all_processes`.
    """
    if how == "no":
        return NOT_COMPILED
    missing = missing_for_compilation(device)
    if missing and strict:
        raise LaunchError(f"expected {missing} for --compile {how}, found none; install it")
    if missing:
        return f"{NOT_COMPILED}: no {missing}"
    if how == "model":
        model.compile()
        return "compiled as a whole"
    for block in model.transformer.h:
        block.compile()
    return "compiled block by block"


def missing_for_compilation(device: torch.device) -> str | None:
    """The first thing that torch.compile's Inductor needs for a device and does not find, or None.

    Without this check a run would end at its first step, in a traceback of many screens.
    """
    # Here and below: loading the compiler takes seconds that other runs need not spend.
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except (InvalidCxxCompiler, RuntimeError):
            return "C++ compiler"
    else:
        from torch.utils._triton import has_triton

        if not has_triton():
            return "Triton for this device"
        # Triton builds a small C library around each of its kernels.
        if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
            return "C compiler"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python.h (Debian calls its package python3-dev)"
    return None


def n_compiled_graphs() -> int:
    """Graphs that this process has compiled so far.

    The difference to what it was after the first step, or the first validation, is the number of
    recompilations, each of which stalls a run for seconds to minutes.
    """
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]
