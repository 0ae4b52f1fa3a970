"""A Python that has loaded all that the commands import, and forks for each of them.

`servers(2)` starts it and gives two connections, each for one command at a time. A process that is
forked begins where others are after seconds of imports, so an attempt takes a tenth of a second.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

from support.paths import REPOSITORY
from support.programs.warm_python import call

CPU_SECONDS = 20  # of its own; others may be busy beside it
WALL_SECONDS = 120
MEMORY_BYTES = 2 * 2**30  # beyond what the libraries take
MESSAGE_BYTES = 100_000
PACKAGES = (str(REPOSITORY), str(REPOSITORY / "tests"))
PACKAGE = "modeling_gpt2scratch"
MODULES = (
    *("matplotlib.figure", "transformers.pipelines", "pyarrow.csv", "pyarrow.parquet"),
    *(f"{PACKAGE}.evaluation.comparison", f"{PACKAGE}.training.loop", f"{PACKAGE}.hub.runs"),
    *(f"{PACKAGE}.data.preparation.prepare", f"{PACKAGE}.hub.datasets"),
    *(f"{PACKAGE}.reports.run_page", f"{PACKAGE}.reports.loss_plot"),
    *(f"{PACKAGE}.interchange.conversion", f"{PACKAGE}.interchange.foreign_checkpoints"),
    *(f"{PACKAGE}.data.shards.adoption", f"{PACKAGE}.data.shards.conversion"),
    *(f"{PACKAGE}.data.shards.verification", f"{PACKAGE}.generation.text_generator"),
    *(f"{PACKAGE}.commands.{verb}" for verb in ("convert", "plot", "publish", "report")),
    *(f"{PACKAGE}.commands.{verb}" for verb in ("sample", "shards")),
)


@contextlib.contextmanager
def servers(n: int) -> Iterator[list[socket.socket]]:
    """Connections to one server, which ends with the block."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(n)]
    theirs = [pair[1].fileno() for pair in pairs]
    changes = {
        "PYTHONPATH": os.pathsep.join(PACKAGES),
        "HF_HUB_OFFLINE": "1",
        "TIKTOKEN_CACHE_DIR": "",  # nothing is kept, so that GPT-2's files are not there
        "https_proxy": "http://127.0.0.1:9",  # and nobody fetches them
        "OMP_NUM_THREADS": "1",  # and so there are no threads that a fork would lose
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", "fuzzing.server", *map(str, theirs)]
    with subprocess.Popen(
        command, env=os.environ | changes, pass_fds=theirs, stderr=subprocess.DEVNULL
    ) as process:
        for _, other in pairs:
            other.close()
        try:
            yield [own for own, _ in pairs]
        finally:
            for own, _ in pairs:
                own.close()
            process.wait()


def serve(*numbers: str) -> None:
    """One process for each connection, which is a file of this number."""
    prepare()
    connections = [socket.socket(fileno=int(number)) for number in numbers]
    for own in connections:
        if os.fork() == 0:
            for other in connections:
                if other is not own:
                    other.close()
            answer(own)
            os._exit(0)
    for connection in connections:
        connection.close()
        os.wait()


def prepare() -> None:
    """Loads everything, and does once what only the first model of a process has to wait for."""
    for module in MODULES:
        importlib.import_module(module)
    import torch
    from tqdm import tqdm
    from transformers import AutoModelForCausalLM, GPT2Config

    from modeling_gpt2scratch.common.threads import load_of_others

    load_of_others()
    tqdm.set_lock(threading.RLock())  # the usual one belongs to all processes
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 8, "vocab_size": 8}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    with tempfile.TemporaryDirectory() as directory:
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
        model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=False)
    ids = torch.zeros(1, 4, dtype=torch.int64)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    model.generate(ids, max_new_tokens=2, do_sample=True)
    gc.collect()
    gc.freeze()


def answer(connection: socket.socket) -> None:
    """Runs what comes in and sends back how it ended, until there is no more."""
    while message := connection.recv(MESSAGE_BYTES):
        child = os.fork()
        if child == 0:
            connection.close()
            run(**json.loads(message))
        its_end = os.pidfd_open(child)
        if not select.select([its_end], [], [], WALL_SECONDS)[0]:
            os.kill(child, signal.SIGKILL)
        os.close(its_end)
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(ProcessLookupError):  # what it has left behind
            os.killpg(child, signal.SIGKILL)
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def run(directory: str, words: list[str], draws: bool) -> None:
    """In the new process: limits, streams, the command."""
    os.setsid()
    os.chdir(directory)
    os.fsync = lambda file: None  # nobody pulls the plug here
    if not draws:
        from matplotlib.figure import Figure

        Figure.savefig = curves_only
    for number, name in enumerate(("out", "err"), 1):
        os.dup2(os.open(f"{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))
    sys.stdin = os.fdopen(0, closefd=False)
    code = 0
    try:
        if words[0] == "python":
            words = [words[0], str(REPOSITORY / words[1]), *words[2:]]
        call(words, sys.executable)
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
    except BaseException:
        Path("unexpected.txt").write_text(traceback.format_exc(), errors="replace")
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def curves_only(figure, file, **_) -> None:
    """Writes the numbers of a picture: to draw it would take longer than all the rest."""
    numbers = [line.get_xydata().tolist() for axes in figure.axes for line in axes.lines]
    content = json.dumps(numbers).encode()
    file.write(content) if hasattr(file, "write") else Path(file).write_bytes(content)


if __name__ == "__main__":
    serve(*sys.argv[1:])
