"""`accelerate launch` without its tracebacks: `gpt2scratch launch --config_file FILE SCRIPT ...`.

It takes the arguments of `accelerate launch` and starts the same processes. What goes wrong in a
script is one line of the script. Ctrl-C waits until the processes have saved what they had.

The exit code is the script's. With several processes it is 130 after Ctrl-C and 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from modeling_gpt2scratch.common.console import activity, tell
from modeling_gpt2scratch.common.errors import in_words, named
from modeling_gpt2scratch.common.interruptions import EXIT_CODE, Interruptible

if TYPE_CHECKING:  # loaded after Ctrl-C is taken care of
    from accelerate.commands.config.config_args import BaseConfig

PROGRAM = "gpt2scratch launch"
USAGE = "%(prog)s [--config_file FILE] [options of accelerate launch] SCRIPT [its arguments]"
DISTRIBUTED = ("multi_gpu", "tpu", "use_deepspeed", "use_fsdp", "use_megatron_lm")
# Where one of these is not 1, mpirun or another launcher starts this one several times.
MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE")
SAID = (1, 2, 130)  # exit codes with which our scripts have already said why


def main(argv: Sequence[str] | None = None) -> None:
    """Starts the processes, waits for them and exits with their code."""
    with Interruptible(PROGRAM) as ctrl_c, ctrl_c.ending_at_once():
        with activity("loading the launcher"):
            from accelerate.commands.launch import launch_command, launch_command_parser
            from torch.distributed.elastic.agent.server import api as agent
            from torch.distributed.elastic.multiprocessing import SignalException
            from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        parser = launch_command_parser()
        parser.prog, parser.usage = PROGRAM, USAGE
        arguments = parser.parse_args(argv)
        config = read_config(arguments)
        if arguments.num_processes not in (None, 1) and is_one_cpu_process(arguments, config):
            sys.exit(
                f"{PROGRAM}: error: expected --num_processes 1, as Accelerate starts a single "
                f"process on a CPU, found {arguments.num_processes}; for more, use "
                f"--config_file accelerate_configs/cpu_2proc.yaml without --cpu"
            )
    signal.signal(signal.SIGINT, leave_to_the_processes)
    signal.signal(signal.SIGTERM, hand_on)  # torch's launcher does so itself
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup's, which torch would end
        arguments.signals_to_handle = "SIGTERM,SIGINT,SIGQUIT"
    else:
        signal.signal(signal.SIGHUP, hand_on)
    # Their warnings announce each signal that is handed on; the agent's has a level of its own.
    for logger in (logging.getLogger("torch.distributed.elastic"), agent.logger):
        logger.setLevel(logging.CRITICAL)
    try:
        launch_command(arguments)
    except subprocess.CalledProcessError as error:
        end("the process", error.returncode)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        end(f"process {rank}", failure.exitcode)
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except Exception as error:
        # A configuration that does not fit, or another machine that cannot be reached: Accelerate
        # and torch raise whatever they meet.
        sys.exit(f"{PROGRAM}: error: {in_words(error)}")


def read_config(arguments: argparse.Namespace) -> BaseConfig | None:
    """The configuration that Accelerate will read; exits with one line if it cannot be read."""
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    path = arguments.config_file
    if path is None and (arguments.cpu or not Path(default_config_file).is_file()):
        return None
    try:
        return load_config_from_file(path)
    except Exception as error:  # Accelerate does not say what is wrong with it
        path = path or default_config_file
        sys.exit(f"{PROGRAM}: error: --config_file: {path}: {config_problem(error)}")


def config_problem(error: Exception) -> str:
    """What is wrong with a configuration that Accelerate cannot read; it looks for keys at once."""
    if (kind := re.fullmatch(r"'(\w+)' object has no attribute 'get'", str(error))) is None:
        return f"cannot be read: {named(error)}"
    found = "nothing" if kind[1] == "NoneType" else f"a {kind[1]}"
    return f"expected a YAML mapping, found {found}; take one of accelerate_configs/"


def is_one_cpu_process(arguments: argparse.Namespace, config: BaseConfig | None) -> bool:
    """Whether Accelerate will start a single process on a CPU, whatever number it is given."""
    import torch
    from accelerate.utils import DistributedType

    if arguments.mpirun_hostfile or any(os.environ.get(name, "1") != "1" for name in MPI_SIZES):
        return False
    n_machines, on_cpu = arguments.num_machines, arguments.cpu
    if config is not None:
        if config.distributed_type is not DistributedType.NO:
            return False
        n_machines, on_cpu = n_machines or config.num_machines, on_cpu or config.use_cpu
    if (n_machines or 1) > 1 or any(getattr(arguments, flag) for flag in DISTRIBUTED):
        return False
    return on_cpu or not torch.accelerator.is_available()


def leave_to_the_processes(number: int, frame: FrameType | None) -> None:
    """Ctrl-C reaches them from the terminal or through torch's launcher; here it does nothing."""
    import psutil

    if not psutil.Process().children():
        with contextlib.suppress(OSError):  # of a terminal that is gone, or a full disk
            os.write(2, f"{PROGRAM}: interrupted\n".encode())
        os._exit(EXIT_CODE)


def hand_on(number: int, frame: FrameType | None) -> None:
    """Sends a signal to the processes, as Accelerate does not to a single one."""
    import psutil

    children = psutil.Process().children()
    if not children:  # none has begun
        os._exit(128 + number)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(number)


def end(process: str, code: int) -> None:
    """Exits as a shell would after this process, and says what it could not say itself."""
    if code not in SAID:
        reason = signal.Signals(-code).name if code < 0 else f"code {code}"
        tell(f"{PROGRAM}: {process} ended with {reason}", file=sys.stderr)
    sys.exit(128 - code if code < 0 else code)
