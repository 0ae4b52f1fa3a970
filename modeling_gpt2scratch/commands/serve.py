"""Lets OpenAI's clients talk to a model: `gpt2scratch serve runs/quickstart`.

DIR is a run or one of its checkpoints. A stock copy of it is made once, in your cache directory,
and `transformers serve` serves it until you press Ctrl-C.
"""

import argparse
import http.client
import importlib.util
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from modeling_gpt2scratch.common.argument_parser import OneLineErrorParser, number
from modeling_gpt2scratch.common.console import activity
from modeling_gpt2scratch.common.errors import ending_in_one_line
from modeling_gpt2scratch.common.interruptions import Interruptible
from modeling_gpt2scratch.common.threads import let_waiting_threads_rest
from modeling_gpt2scratch.common.user_cache import user_cache

PROGRAM = "gpt2scratch serve"
NEEDED = ("fastapi", "uvicorn", "openai", "pydantic")
CACHE_FOLDER = "served"
SERVER = "modeling_gpt2scratch.interchange.serving"
POLL_SECONDS = 0.2
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # to listen on, and to connect to


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, serves, and turns what is wrong with the input into one line and an exit code."""
    arguments = _parse_arguments(argv)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"{PROGRAM}: error: expected {', '.join(NEEDED)}, found no {', '.join(missing)}; "
            f'pip install -e ".[serve]"'
        )
    let_waiting_threads_rest()
    with Interruptible(PROGRAM) as ctrl_c:
        with ending_in_one_line(PROGRAM, ValueError):
            port = _free_port(arguments.host, arguments.port)
            with activity(f"copying {arguments.model} as a stock gpt2"):
                with ctrl_c.ending_at_once():
                    from modeling_gpt2scratch.distributed.processes import quiet_transformers
                    from modeling_gpt2scratch.interchange.serving import copy_for_serving
                quiet_transformers()
                cache, name = copy_for_serving(arguments.model, user_cache() / CACHE_FOLDER)
        _serve(cache, name, arguments.host, port)


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = OneLineErrorParser(prog=PROGRAM, description=__doc__)
    parser.add_argument("model", metavar="DIR", type=Path, help="model to serve")
    help = "address to listen on; 0.0.0.0 lets other machines in"
    parser.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help=help)
    help = "port to listen on, 0 for any that is free"
    parser.add_argument(
        "--port", metavar="INTEGER", type=number(int, 0, 65_535), default=8000, help=help
    )
    return parser.parse_args(argv)


def _free_port(host: str, port: int) -> int:
    """The port, which nobody else uses.

    Raises:
        OSError: if somebody does, or there is no such host.
    """
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return probe.getsockname()[1]
    except OSError as error:
        raise OSError(
            f"expected to listen on {host}, port {port}, found {error.strerror}; choose another "
            f"--host or --port"
        ) from error


def _serve(cache: Path, name: str, host: str, port: int) -> None:
    """Runs the server until it ends, or Ctrl-C ends both."""
    command = [sys.executable, "-m", SERVER, str(cache), name, "--host", host, "--port", str(port)]
    only_cache = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    # Compiled code of the Hub, which transformers 5.25 runs unless told otherwise.
    environment = {"USE_HUB_KERNELS": "NO"} | os.environ | only_cache
    environment["HF_HUB_DISABLE_UPDATE_CHECK"] = "1"
    # In a group of its own, Ctrl-C does not reach it. It ends when its standard input is closed,
    # however this process may end.
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=2, env=environment, process_group=0
    )
    try:
        with activity("starting transformers serve"):
            _wait_until_up(server, ANY_ADDRESS.get(host, host), port)
        if server.poll() is None:
            print(_invitation(name, ANY_ADDRESS.get(host, host), port), flush=True)
        code = server.wait()
    finally:
        server.kill()  # it has nothing to save
        server.wait()
    sys.exit(f"{PROGRAM}: error: transformers serve ended with code {code}; see its lines above")


def _wait_until_up(server: subprocess.Popen, host: str, port: int) -> None:
    """Returns when the server answers, or has ended."""
    while server.poll() is None:
        connection = http.client.HTTPConnection(host, port)
        try:
            connection.request("GET", "/health")
            connection.getresponse()
            return
        except (OSError, http.client.HTTPException):
            time.sleep(POLL_SECONDS)
        finally:
            connection.close()


def _invitation(name: str, host: str, port: int) -> str:
    """What a client must know, and a command to try it."""
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    request = json.dumps({"model": name, "prompt": "Returns the", "max_tokens": 60})
    curl = f"curl {url}/completions -H 'Content-Type: application/json' -d {shlex.quote(request)}"
    return f"{name} answers at {url} (Ctrl-C ends it)\n{curl}"
