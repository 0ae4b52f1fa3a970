"""A Hub of one repository on the loopback interface.

It answers what `load_dataset(streaming=True)`, `from_pretrained`, `push_to_hub` and our own
publishing and downloads ask for, on the main branch and on others that are made or given. Writing
takes a token; `hf_status_403` is one that gets the answer 403. Shards, parquet, weights and
compressed files are in large file storage, as on the Hub.

    with serve("someone/fables", {"data/train.jsonl": content}) as hub:
        run(command, env=os.environ | hub.environment(tmp_path))

    with serve("someone/tiny", {}, kind="models") as hub:
        run(command, env=os.environ | hub.environment(tmp_path) | {"HF_TOKEN": "hf_secret"})
        assert "config.json" in hub.files

    with serve("someone/fables", files) as hub:
        hub.use_here(monkeypatch, tmp_path)
        hub.fail("GET .*train.parquet", "corrupt", times=2)  # then it is well again
        list_files("someone/fables")[0].fetch(tmp_path)

Every other address answers like the Hub does for a repository or file that is not there, and is
noted in `hub.not_found`: read it when a new version of a library asks for something else.
"""

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

from support.servers.fake_hub_handler import FIRST_COMMIT, Handler, commit_of

COMMIT = FIRST_COMMIT


@dataclass
class Fault:
    """What goes wrong with the next requests that match.

    The answer is one of

    - an HTTP status, with `headers`;
    - "drop": the connection ends without an answer;
    - "truncate": it ends after half of the body;
    - "reset": it breaks after half of the body;
    - "short": half of the body comes as if that were all;
    - "corrupt": the body has one wrong bit;
    - a number of seconds as a float: the right answer comes so much later;
    - a `threading.Event`: the right answer comes when it is set.
    """

    pattern: str  # a regular expression for "GET /path", from its beginning
    answer: int | float | str | threading.Event
    times: float
    headers: dict[str, str]


class Hub:
    """The served repository, where it is served, and what was asked for in vain."""

    def __init__(
        self,
        repository: str,
        files: dict[str, bytes],
        kind: str,
        revisions: dict[str, dict[str, bytes]],
    ):
        self.repository = repository
        self.files = files
        self.kind = kind
        self.commit = COMMIT
        self.commits: list[dict[str, list[str]]] = []  # paths "added" and "deleted", oldest first
        self.branch_commits: dict[str, list[dict[str, list[str]]]] = {}  # the same of others
        self.address = ""
        self.not_found: list[str] = []
        self.requests: list[str] = []  # "GET /path", oldest first
        self.revisions = revisions  # files by branch, the main one left out
        self.heads: dict[str, str] = {}  # commits of branches that were written to
        self.first_files = files
        self.objects: dict[str, bytes] = {}  # uploads to large file storage by sha256
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def fail(
        self,
        pattern: str,
        answer: int | float | str | threading.Event,
        *,
        times: float = 1,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Lets the next `times` requests that match go wrong; see `Fault`."""
        self._faults.append(Fault(pattern, answer, times, headers or {}))

    @property
    def went_wrong(self) -> bool:
        """Whether everything that was to go wrong has done so."""
        return not any(fault.times for fault in self._faults)

    def forgive(self) -> None:
        """Lets nothing go wrong any more."""
        self._faults.clear()

    def fault_of(self, request: str) -> Fault | None:
        """Notes a request and returns what is to go wrong with it."""
        with self._lock:
            self.requests.append(request)
            for fault in self._faults:
                if fault.times > 0 and re.match(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None

    def environment(self, home: Path) -> dict[str, str]:
        """Variables that lead a fresh process here, with its caches in `home`."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home / "huggingface"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }

    def use_here(self, monkeypatch, home: Path) -> None:
        """Leads this process here, whose libraries have read the variables already.

        Their short waits between two requests are left out.
        """
        import datasets
        from huggingface_hub import HfFileSystem, constants, file_download
        from huggingface_hub.utils import _http
        from transformers.utils import hub

        cache = str(home / "huggingface")
        for name, value in self.environment(home).items():
            monkeypatch.setenv(name, value)
        for name, value in {
            "ENDPOINT": self.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.address
            + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": cache,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
            "HF_TOKEN_PATH": f"{cache}/token",
        }.items():
            monkeypatch.setattr(constants, name, value)
        for name, value in {
            "HF_ENDPOINT": self.address,
            "HUB_DATASETS_URL": self.address + "/datasets/{repo_id}/resolve/{revision}/{path}",
            "HF_DATASETS_CACHE": Path(cache),
            "HF_CACHE_HOME": cache,
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(datasets.config, name, value)
        # transformers keeps a client, which would ask the server of an earlier test.
        monkeypatch.setattr(hub, "_hf_api", None, raising=False)
        for module in (_http, file_download):
            impatient = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})
            monkeypatch.setattr(module, "time", impatient)
        HfFileSystem.clear_instance_cache()

    def commit_at(self, branch: str) -> str:
        """The commit that a branch other than the main one stands at."""
        return self.heads.get(branch, commit_of(branch))

    def files_at(self, revision: str) -> dict[str, bytes] | None:
        """The files of a branch, or of its commit; None if there is no such branch."""
        for name, files in self.revisions.items():
            if revision in (name, self.commit_at(name)):
                return files
        is_main = revision in ("", "main") or re.fullmatch("[0-9a-f]{40}", revision)
        return self.files if is_main else None


@contextlib.contextmanager
def serve(
    repository: str,
    files: dict[str, bytes],
    kind: str = "datasets",
    revisions: dict[str, dict[str, bytes]] | None = None,
) -> Iterator[Hub]:
    """Serves `files` (content by path) as `repository` while the block runs.

    Args:
        kind: "datasets" or "models", as in the addresses of the Hub.
        revisions: files of other branches, such as "refs/convert/parquet".
    """
    hub = Hub(repository, files, kind, revisions or {})
    handler = type("HandlerOfHub", (Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True  # a client may keep its connection
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
