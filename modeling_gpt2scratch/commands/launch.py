"""`accelerate launch` without its tracebacks: `gpt2scratch launch --config_file FILE SCRIPT ...`.

It takes the arguments of `accelerate launch` and starts the same processes. What goes wrong in a
script is one line of the script. Ctrl-C waits until the processes have saved what they had.

The exit code is the script's. With several processes it is 130 after Ctrl-C and 143 after SIGTERM.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from modeling_gpt2scratch.common.console import activity, tell
from modeling_gpt2scratch.common.errors import in_words, named
from modeling_gpt2scratch.common.interruptions import EXIT_CODE, Interruptible

PROGRAM = "gpt2scratch launch"
SAID = (1, 2, 130)  # exit codes with which our scripts have already said why


def main(argv: Sequence[str] | None = None) -> None:
    """Starts the processes, waits for them and exits with their code."""
    with Interruptible(PROGRAM) as ctrl_c, ctrl_c.ending_at_once():
        with activity("loading the launcher"):
            from accelerate.commands.config.config_args import load_config_from_file
            from accelerate.commands.launch import launch_command, launch_command_parser
            from torch.distributed.elastic.agent.server import api as agent
            from torch.distributed.elastic.multiprocessing import SignalException
            from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        parser = launch_command_parser()
        parser.prog = PROGRAM
        arguments = parser.parse_args(argv)
        if arguments.config_file is not None:
            try:
                load_config_from_file(arguments.config_file)
            except Exception as error:  # Accelerate does not say what is wrong with it
                problem = f"{arguments.config_file}: cannot be read: {named(error)}"
                sys.exit(f"{PROGRAM}: error: --config_file: {problem}")
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
