"""A Python with torch and transformers loaded, which forks for each command that a test gives it.

`warm_python(DIRECTORY)` starts it and makes a directory for the front of PATH with `python`,
`accelerate`, `torchrun` and `gpt2scratch`. A command that a shell starts by these names is the same
as ever but for the seconds of its imports. `python -c`, `-m` and `-` are the usual Python's.

Fork is safe here because the server itself computes nothing: it has no threads at work.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PRELOADED = (
    *("accelerate.commands.accelerate_cli", "torch.distributed.run"),
    *("matplotlib.figure", "transformers.pipelines"),
    *("modeling_gpt2scratch.evaluation.comparison", "modeling_gpt2scratch.training.run"),
)
MESSAGE_BYTES = 100_000  # arguments and environment of one command
CLIENT = """#!{python} -SE
import json, os, socket, sys
words = [word for word in sys.argv[1:] if word != "-u"]
if {name!r} == "python" and not words[0].endswith(".py"):
    os.execv({python!r}, [{python!r}, *words])
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect({address!r})
    command = [[{name!r}, *words], os.getcwd(), dict(os.environ)]
    socket.send_fds(server, [json.dumps(command).encode()], [0, 1, 2])
    sys.exit(int(server.recv(16) or 1))
"""


@contextmanager
def warm_python(directory: Path) -> Iterator[Path]:
    """A running server, and the directory of its commands."""
    commands, address = directory / "bin", str(directory / "socket")
    commands.mkdir()
    for name in ("python", "accelerate", "torchrun", "gpt2scratch"):
        client = commands / name
        client.write_text(CLIENT.format(python=sys.executable, name=name, address=address))
        client.chmod(0o755)
    arguments = [sys.executable, __file__, address, str(commands / "python")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as server:
        server.stdout.readline()  # it listens
        try:
            yield commands
        finally:
            server.terminate()


def serve(address: str, python: str) -> None:
    """Listens, and forks for each command, until a signal ends it."""
    for module in PRELOADED:
        importlib.import_module(module)

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        print("listening", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                run(connection, python)
            connection.close()


def run(connection: socket.socket, python: str) -> None:
    """Runs one command in a process of its own, answers with its exit code, and ends."""
    message, streams, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 3)
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    words, directory, environment = json.loads(message)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[1:1] = [part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
    code = 0
    try:
        call(words, python)
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def call(words: list[str], python: str) -> None:
    """What the shell's command line means."""
    name, *arguments = words
    if name == "python":
        sys.argv = arguments
        sys.path[0] = str(Path(arguments[0]).resolve().parent)
        runpy.run_path(arguments[0], run_name="__main__")
    elif name in ("accelerate", "torchrun"):
        from accelerate.commands.accelerate_cli import main as accelerate
        from torch.distributed.run import main as torchrun

        sys.argv, sys.executable = words, python  # what it launches is warm, too
        torchrun() if name == "torchrun" else accelerate()
    else:
        from modeling_gpt2scratch.__main__ import main

        sys.argv = words
        main()


if __name__ == "__main__":
    serve(*sys.argv[1:])
