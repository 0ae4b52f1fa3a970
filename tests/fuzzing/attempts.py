"""One command on one damaged file, in a process of its own, and what became of it."""

import json
import signal
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Attempt:
    """How a command ended."""

    code: int  # negative: the signal that ended it
    out: str
    err: str
    is_unexpected: bool  # an exception left `main`


def attempt(
    server: socket.socket, directory: Path, words: tuple[str, ...], *, draws: bool = False
) -> Attempt:
    """Runs a command of the house in a directory; pictures are only drawn on request."""
    message = {"directory": str(directory), "words": words, "draws": draws}
    server.send(json.dumps(message).encode())
    code = int(server.recv(16))
    out, err = (_text(directory / f"{name}.txt") for name in ("out", "err"))
    unexpected = directory / "unexpected.txt"
    return Attempt(code, out, err + _text(unexpected), unexpected.exists())


def _text(path: Path) -> str:
    """What a stream got."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def name_of_signal(code: int) -> str:
    """SIGXCPU for -24."""
    return signal.Signals(-code).name
