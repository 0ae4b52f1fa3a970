"""A Hub of one repository on the loopback interface.

It answers what `load_dataset(streaming=True)`, `from_pretrained`, `push_to_hub` and our own
publishing ask for. Writing takes a token; `hf_status_403` is one that gets the answer 403.

    with serve("someone/fables", {"data/train.jsonl": content}) as hub:
        run(command, env=os.environ | hub.environment(tmp_path))

    with serve("someone/tiny", {}, kind="models") as hub:
        run(command, env=os.environ | hub.environment(tmp_path) | {"HF_TOKEN": "hf_secret"})
        assert "config.json" in hub.files

Every other address answers like the Hub does for a repository or file that is not there, and is
noted in `hub.not_found`: read it when a new version of a library asks for something else.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "5" * 40  # before anything is pushed


class Hub:
    """The served repository, where it is served, and what was asked for in vain."""

    def __init__(self, repository: str, files: dict[str, bytes], kind: str):
        self.repository = repository
        self.files = files
        self.kind = kind
        self.commit = COMMIT
        self.commits: list[dict[str, list[str]]] = []  # paths "added" and "deleted", oldest first
        self.address = ""
        self.not_found: list[str] = []

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


@contextlib.contextmanager
def serve(repository: str, files: dict[str, bytes], kind: str = "datasets") -> Iterator[Hub]:
    """Serves `files` (content by path) as `repository` while the block runs.

    Args:
        kind: "datasets" or "models", as in the addresses of the Hub.
    """
    hub = Hub(repository, files, kind)
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    """The Hub's addresses for one repository; `hub` is set by `serve`."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Metadata of the repository, the whole or a range of one file, or a step of a push."""
        body = self._body()
        path = unquote(urlsplit(self.path).path)
        api = f"/api/{self.hub.kind}/{self.hub.repository}"
        folder = "" if self.hub.kind == "models" else f"/{self.hub.kind}"
        resolve = f"{folder}/{self.hub.repository}/resolve/"
        if path == api or path.startswith(f"{api}/revision/"):
            about = {"id": self.hub.repository, "private": False, "siblings": []}
            self._send_json(about | {"sha": self.hub.commit})
        elif path.startswith(f"{api}/tree/"):
            self._send_tree(path.removeprefix(f"{api}/tree/"))
        elif path.startswith(f"{api}/paths-info/"):
            self._send_paths_info(json.loads(body)["paths"])
        elif path == "/api/repos/create":
            self._receive(self._create, body)
        elif path.startswith(f"{api}/preupload/"):
            self._receive(self._preupload, body)
        elif path.startswith(f"{api}/commit/"):
            self._receive(self._commit, body)
        elif path == "/api/validate-yaml":
            self._send_json({"errors": [], "warnings": []})
        elif path.startswith(resolve):
            self._send_file(path.removeprefix(resolve).partition("/")[2])
        else:
            self._send_not_found("RepoNotFound")

    do_HEAD = do_POST = do_GET

    def log_message(self, *arguments) -> None:
        """Keeps the requests out of the test output."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _receive(self, step: Callable[[bytes], None], body: bytes) -> None:
        """One step of a push, which takes a token."""
        refused = re.fullmatch(r"Bearer hf_status_(\d+)", self.headers.get("Authorization", ""))
        if refused:
            self._send(int(refused[1]), b"", {"X-Error-Message": "No push for this token."})
        elif self.headers.get("Authorization", "").startswith("Bearer hf_"):
            step(body)
        else:
            self._send(401, b"", {"X-Error-Message": "Invalid username or password."})

    def _create(self, body: bytes) -> None:
        """The repository, already there."""
        wanted = json.loads(body)
        if f"{wanted['organization']}/{wanted['name']}" == self.hub.repository:
            self._send_json({"url": f"{self.hub.address}/{self.hub.repository}"})
        else:
            self._send_not_found("RepoNotFound")

    def _preupload(self, body: bytes) -> None:
        """Asks for every file inside the commit; the Hub itself takes large ones apart from it."""
        modes = {"uploadMode": "regular", "shouldIgnore": False}
        files = [{"path": file["path"]} | modes for file in json.loads(body)["files"]]
        self._send_json({"files": files})

    def _commit(self, body: bytes) -> None:
        """Adds and deletes the files of a commit: one JSON object a line, after a header."""
        operations = [json.loads(line) for line in body.splitlines()]
        files, commit = dict(self.hub.files), {"added": [], "deleted": []}
        for operation in operations[1:]:
            file = operation["value"]
            if operation["key"] == "deletedFile":
                commit["deleted"].append(file["path"])
                del files[file["path"]]
            else:
                assert operation["key"] == "file", operation["key"]
                commit["added"].append(file["path"])
                files[file["path"]] = base64.b64decode(file["content"])
        self.hub.files = files
        self.hub.commits.append(commit)
        self.hub.commit = hashlib.sha1(body).hexdigest()
        url = f"{self.hub.address}/{self.hub.repository}/commit/{self.hub.commit}"
        self._send_json({"success": True, "commitUrl": url, "commitOid": self.hub.commit})

    def _send_tree(self, revision_and_folder: str) -> None:
        """Everything below a folder, as `?recursive=true` asks."""
        folder = revision_and_folder.partition("/")[2]
        prefix = f"{folder}/" if folder else ""
        found = [entry for entry in self._entries() if entry["path"].startswith(prefix)]
        if found:
            self._send_json(found)
        else:
            self._send_not_found("EntryNotFound")

    def _send_paths_info(self, paths: list[str]) -> None:
        """Files and folders among the paths; unknown ones are left out."""
        self._send_json([entry for entry in self._entries() if entry["path"] in paths])

    def _entries(self) -> list[dict]:
        """Each file and folder as the Hub describes it."""
        folders = {str(parent) for path in self.hub.files for parent in Path(path).parents}
        entries = [
            {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            for folder in sorted(folders - {"."})
        ]
        for path, content in self.hub.files.items():
            oid = hashlib.sha1(content).hexdigest()
            entries.append({"type": "file", "path": path, "oid": oid, "size": len(content)})
        return entries

    def _send_file(self, path: str) -> None:
        content = self.hub.files.get(path)
        if content is None:
            self._send_not_found("EntryNotFound")
            return
        headers = {
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X-Repo-Commit": self.hub.commit,
            "Accept-Ranges": "bytes",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self._send(200, content, headers)
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(206, content[first : last + 1], headers)

    def _send_json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send_not_found(self, code: str) -> None:
        self.hub.not_found.append(f"{self.command} {self.path}")
        self._send(404, b"", {"X-Error-Code": code})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
