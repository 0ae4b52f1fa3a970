"""An HTTP server on the loopback interface that serves a directory, badly if told to.

    with serve(directory) as server:
        server.faults["train_000001.bin"] = [status(503), drop, corrupt]
        fetch(server.address)
        assert server.requests["train_000001.bin"] == 4

A path's faults happen one per request, in their order; then the file is served as it is.
"""

import contextlib
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Fault = Callable[[BaseHTTPRequestHandler, bytes], None]


class Server:
    """What is served, how badly, and what was asked for."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.address = ""
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.requests: Counter = Counter()  # by path
        self.authorization: str | None = None  # header without which the answer is 401
        self.query = ""  # without which it is 403
        self.lock = threading.Lock()


@contextlib.contextmanager
def serve(directory: Path) -> Iterator[Server]:
    """Serves the files of a directory while the block runs."""
    state = Server(directory)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name, _, query = self.path.lstrip("/").partition("?")
            with state.lock:
                state.requests[name] += 1
                faults = state.faults[name]
                fault = faults.pop(0) if faults else send
            file = state.directory / name
            if not file.is_file():
                fault = status(404)
            if query != state.query:
                fault = status(403)
            if state.authorization not in (None, self.headers["Authorization"]):
                fault = status(401)
            content = file.read_bytes() if file.is_file() else b""
            with contextlib.suppress(ConnectionError):
                fault(self, content)

        def log_message(self, *arguments) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        state.address = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield state
        finally:
            http.shutdown()
            thread.join()


def send(handler: BaseHTTPRequestHandler, content: bytes, *, announced: int | None = None) -> None:
    """The file as it is; `announced` is another length than its own."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content) if announced is None else announced))
    handler.end_headers()
    handler.wfile.write(content)


def status(code: int) -> Fault:
    """An answer of this status without a body."""

    def answer(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def delay(seconds: float) -> Fault:
    """The file as it is, but late."""

    def answer(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        time.sleep(seconds)
        send(handler, content)

    return answer


def drop(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Half of the file, then the connection closes."""
    send(handler, content[: len(content) // 2], announced=len(content))
    handler.close_connection = True


def hang_up(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """The connection closes without an answer."""
    handler.close_connection = True


def truncate(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Half of the file as if it were the whole."""
    send(handler, content[: len(content) // 2])


def flood(n_bytes: int, *, is_announced: bool = True) -> Fault:
    """As many bytes, of which only the first are the file's; `sent` counts what was taken."""

    def answer(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        handler.send_response(200)
        if is_announced:
            handler.send_header("Content-Length", str(n_bytes))
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(content)
        answer.sent = len(content)
        while answer.sent < n_bytes:
            answer.sent += handler.wfile.write(bytes(min(2**16, n_bytes - answer.sent)))

    answer.sent = 0
    return answer


def corrupt(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """The file with one changed bit in the middle."""
    middle = len(content) // 2
    send(handler, content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
