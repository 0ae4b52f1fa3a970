"""What the Hub of `fake_hub.py` answers, address by address."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from support.servers.fake_hub import Fault, Hub

FIRST_COMMIT = "5" * 40  # before anything is pushed
LFS_ENDINGS = (".bin", ".gz", ".parquet", ".safetensors", ".xz", ".zst")


def commit_of(revision: str) -> str:
    """The commit hash of a branch other than the main one."""
    return hashlib.sha1(revision.encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """The Hub's addresses for one repository; `hub` is set by `serve`."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # it adds 40 ms to every answer
    _fault: Fault | None = None  # of the request that is being answered

    def handle(self) -> None:
        """Serves a connection until either side ends it, the client perhaps in the middle."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        """Answers, unless something is to go wrong."""
        body = self._body()
        path = urlsplit(self.path).path
        self._fault = self.hub.fault_of(f"{self.command} {unquote(path)}")
        answer = self._fault.answer if self._fault else None
        if isinstance(answer, float):
            time.sleep(answer)
        elif isinstance(answer, threading.Event):
            answer.wait()
        if answer == "drop":
            self.close_connection = True
        elif isinstance(answer, int):
            self._send(answer, b"", self._fault.headers)
        else:
            self._route(path, body)

    do_HEAD = do_POST = do_PUT = do_GET

    def _route(self, path: str, body: bytes) -> None:
        """Metadata of the repository, the whole or a range of one file, or a step of a push."""
        api = f"/api/{self.hub.kind}/{self.hub.repository}"
        folder = "" if self.hub.kind == "models" else f"/{self.hub.kind}"
        resolve = f"{folder}/{self.hub.repository}/resolve/"
        if path == api or path.startswith(f"{api}/revision/"):
            self._send_about(unquote(path.removeprefix(f"{api}/revision/")) if path != api else "")
        elif path.startswith(f"{api}/tree/"):
            self._send_tree(*_split(path.removeprefix(f"{api}/tree/")))
        elif path.startswith(f"{api}/paths-info/"):
            is_json = "json" in self.headers.get("Content-Type", "")
            paths = (json.loads(body) if is_json else parse_qs(body.decode()))["paths"]
            self._send_paths_info(unquote(path.removeprefix(f"{api}/paths-info/")), paths)
        elif path == "/api/repos/create":
            self._receive(self._create, body)
        elif path.startswith(f"{api}/preupload/"):
            self._receive(self._preupload, body)
        elif path == f"{folder}/{self.hub.repository}.git/info/lfs/objects/batch":
            self._receive(self._lfs_batch, body)
        elif path.startswith("/lfs/"):
            self._store(path.removeprefix("/lfs/"), body)
        elif path.startswith(f"{api}/commit/"):
            branch = unquote(path.removeprefix(f"{api}/commit/"))
            self._receive(partial(self._commit, branch), body)
        elif path.startswith(f"{api}/branch/"):
            branch = unquote(path.removeprefix(f"{api}/branch/"))
            self._receive(partial(self._make_branch, branch), body)
        elif path == f"{api}/auth-check/write":
            self._receive(lambda body: self._send_json({}), body)
        elif path == f"{api}/refs":
            self._send_refs()
        elif path == f"{api}/commits/main":
            self._send_commits()
        elif path == "/api/validate-yaml":
            self._send_json({"errors": [], "warnings": []})
        elif path.startswith(resolve):
            self._send_file(*_split(path.removeprefix(resolve)))
        else:
            self._send_not_found("RepoNotFound")

    def log_message(self, *arguments) -> None:
        """Keeps the requests out of the test output."""

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while n_bytes := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(n_bytes))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

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
            folder = "" if self.hub.kind == "models" else f"/{self.hub.kind}"
            self._send_json({"url": f"{self.hub.address}{folder}/{self.hub.repository}"})
        else:
            self._send_not_found("RepoNotFound")

    def _preupload(self, body: bytes) -> None:
        """Asks for small files inside the commit and for the others apart from it."""
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_ENDINGS) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._send_json({"files": files})

    def _lfs_batch(self, body: bytes) -> None:
        """Says where to upload the objects that are not there yet."""
        objects = json.loads(body)["objects"]
        for entry in objects:
            if entry["oid"] not in self.hub.objects:
                href = f"{self.hub.address}/lfs/{entry['oid']}"
                entry["actions"] = {"upload": {"href": href}}
        self._send_json({"objects": objects, "transfer": "basic"})

    def _store(self, oid: str, body: bytes) -> None:
        """One object of large file storage, if it is what its name says."""
        if hashlib.sha256(body).hexdigest() == oid:
            self.hub.objects[oid] = body
            self._send(200, b"", {})
        else:
            self._send(400, b"", {})

    def _make_branch(self, branch: str, body: bytes) -> None:
        """A branch with the files of the commit that it starts from."""
        if branch in self.hub.revisions:
            self._send(409, b"", {"X-Error-Message": "Reference already exists"})
            return
        is_first = json.loads(body or b"{}").get("startingPoint") == FIRST_COMMIT
        self.hub.revisions[branch] = dict(self.hub.first_files if is_first else self.hub.files)
        self._send_json({})

    def _send_refs(self) -> None:
        """All branches; those that the Hub makes itself stand apart."""
        names = {"main": self.hub.commit}
        names |= {name: self.hub.commit_at(name) for name in self.hub.revisions}
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
            for name, commit in names.items()
            if not name.startswith("refs/")
        ]
        self._send_json({"branches": branches, "converts": [], "tags": []})

    def _send_commits(self) -> None:
        """The newest and the first commit of the main branch."""
        about = {"authors": [], "date": "2026-01-01T00:00:00.000Z", "title": "", "message": ""}
        commits = dict.fromkeys([self.hub.commit, FIRST_COMMIT])
        self._send_json([{"id": commit} | about for commit in commits])

    def _commit(self, branch: str, body: bytes) -> None:
        """Adds and deletes the files of a commit: one JSON object a line, after a header."""
        old_files = self.hub.files_at(branch)
        if old_files is None:
            self._send_not_found("RevisionNotFound")
            return
        operations = [json.loads(line) for line in body.splitlines()]
        files, commit = dict(old_files), {"added": [], "deleted": []}
        for operation in operations[1:]:
            file = operation["value"]
            if operation["key"] == "deletedFile":
                commit["deleted"].append(file["path"])
                del files[file["path"]]
                continue
            commit["added"].append(file["path"])
            if operation["key"] == "lfsFile":
                files[file["path"]] = self.hub.objects[file["oid"]]
            else:
                assert operation["key"] == "file", operation["key"]
                files[file["path"]] = base64.b64decode(file["content"])
        head = hashlib.sha1(f"{branch} {self._commit_at(branch)} ".encode() + body).hexdigest()
        if branch == "main":
            self.hub.commits.append(commit)
            self.hub.files, self.hub.commit = files, head
        else:
            self.hub.branch_commits.setdefault(branch, []).append(commit)
            self.hub.revisions[branch], self.hub.heads[branch] = files, head
        url = f"{self.hub.address}/{self.hub.repository}/commit/{head}"
        self._send_json({"success": True, "commitUrl": url, "commitOid": head})

    def _send_about(self, revision: str) -> None:
        """The commit that a branch stands at."""
        if self.hub.files_at(revision) is None:
            self._send_not_found("RevisionNotFound")
            return
        about = {"id": self.hub.repository, "private": False, "siblings": []}
        self._send_json(about | {"sha": self._commit_at(revision)})

    def _send_tree(self, revision: str, folder: str) -> None:
        """Everything below a folder, as `?recursive=true` asks."""
        prefix = f"{folder}/" if folder else ""
        entries = self._entries(revision)
        found = [entry for entry in entries if entry["path"].startswith(prefix)]
        if found or not prefix:
            self._send_json(found)
        else:
            self._send_not_found("EntryNotFound")

    def _send_paths_info(self, revision: str, paths: list[str]) -> None:
        """Files and folders among the paths; unknown ones are left out."""
        self._send_json([entry for entry in self._entries(revision) if entry["path"] in paths])

    def _commit_at(self, revision: str) -> str:
        for name in self.hub.revisions:
            if revision in (name, self.hub.commit_at(name)):
                return self.hub.commit_at(name)
        return self.hub.commit

    def _entries(self, revision: str) -> list[dict]:
        """Each file and folder as the Hub describes it."""
        files = self.hub.files_at(revision) or {}
        folders = {str(parent) for path in files for parent in Path(path).parents}
        entries = [
            {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            for folder in sorted(folders - {"."})
        ]
        for path, content in files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry = {"type": "file", "path": path, "oid": blob, "size": len(content)}
            if path.endswith(LFS_ENDINGS):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return entries

    def _send_file(self, revision: str, path: str) -> None:
        files = self.hub.files_at(revision)
        if files is None or path not in files:
            self._send_not_found("RevisionNotFound" if files is None else "EntryNotFound")
            return
        content = files[path]
        (entry,) = [entry for entry in self._entries(revision) if entry["path"] == path]
        headers = {
            "ETag": f'"{entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]}"',
            "X-Repo-Commit": self._commit_at(revision),
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
        """The answer, damaged if that is this request's fault."""
        answer = self._fault.answer if self._fault else None
        if answer == "corrupt":
            body = bytes([body[0] ^ 1]) + body[1:]
        if answer == "short":
            body = body[: len(body) // 2]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if answer in ("truncate", "reset"):
            body = body[: len(body) // 2]
            self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(body)
        if answer == "reset":
            no_linger = struct.pack("ii", 1, 0)  # closing then resets the connection
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
            self.connection.close()


def _split(quoted: str) -> tuple[str, str]:
    """Revision and path of an address; the slashes of a revision are quoted."""
    revision, _, path = quoted.partition("/")
    return unquote(revision), unquote(path)
