"""What a Hugging Face Hub answers: the routes of repositories that are folders, as huggingface_hub reads them.

Served is what huggingface_hub 1.5 to 2.4 asks for when it reads (its `hf_api.py` and `file_download.py`); for what it
writes to, see `hub_writing`.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from hub_server import HubServer

TAG = "v1.0"
LFS_SUFFIXES = {".bin", ".gz", ".model", ".parquet", ".safetensors"}
LFS_BYTES = 10 * 2**20  # whatever its name: git takes no larger files


@dataclass(frozen=True)
class HubFile:
    """A file of a repository: `oid` is its git id; `sha256` is set where the Hub would keep it as a large file."""

    path: str
    content: Path
    size: int
    oid: str
    sha256: str | None

    @classmethod
    def read(cls, folder: Path, content: Path) -> HubFile:
        data = content.read_bytes()
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        large = content.suffix in LFS_SUFFIXES or len(data) > LFS_BYTES
        sha256 = hashlib.sha256(data).hexdigest() if large else None
        return cls(content.relative_to(folder).as_posix(), content, len(data), oid, sha256)

    def entry(self) -> dict[str, Any]:
        """The file as the `tree` and `paths-info` routes list it."""
        entry: dict[str, Any] = {"type": "file", "path": self.path, "size": self.size, "oid": self.oid}
        if self.sha256:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        return entry


class Repository:
    """A folder as it was when it was published: one commit, on the branch `main` and under the tag `v1.0`."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        self.files = {file.path: file for file in (HubFile.read(folder, path) for path in paths)}
        self.commit = hashlib.sha1(repr([(file.path, file.oid) for file in self.files.values()]).encode()).hexdigest()

    def entries(self) -> list[dict[str, Any]]:
        folders = {str(parent) for path in self.files for parent in PurePosixPath(path).parents} - {"."}
        listed = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]
        return listed + [file.entry() for file in self.files.values()]


@dataclass(frozen=True)
class Request:
    """A line of the log; `authorized`: a token came with it, right or wrong."""

    method: str
    path: str
    host: str
    range: str | None
    authorized: bool
    status: int


@dataclass
class Reply:
    """What goes back to the client."""

    status: int
    headers: dict[str, str]
    body: bytes = b""


class HubError(Exception):
    """An answer that is an error, with the headers that huggingface_hub tells them apart by."""

    def __init__(self, status: int, message: str, code: str = "", commit: str = "") -> None:
        super().__init__(message)
        headers = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit}
        self.reply = Reply(status, {name: value for name, value in headers.items() if value})


class HubSocket(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer, handler: type[HubHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.hub = hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet: clients that hang up belong to the tests."""


class HubHandler(BaseHTTPRequestHandler):
    server: HubSocket
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes; Nagle would hold the second back for 40 ms

    def do_GET(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        self.body = self._read_body()
        self.query = parse_qs(url.query)
        path = unquote(url.path)
        fault = hub.take_fault(f"{self.command} {path}")
        try:
            if fault and fault.status:
                raise HubError(fault.status, "out of order")
            reply = self._in_range(self._route(url.path))
            if fault and fault.body is not None:
                reply = Reply(200, {"Content-Type": "application/json"}, fault.body)
        except HubError as error:
            reply = error.reply
        reply.headers.update(fault.headers if fault else {})
        asked = self.headers.get("Host", ""), self.headers.get("Range"), "Authorization" in self.headers
        hub.log.append(Request(self.command, path, *asked, reply.status))
        if not (fault and fault.cut_after_bytes == -1):
            self._send(reply, fault.cut_after_bytes if fault else None)
        if fault and fault.silent:
            hub.closing.wait()
            self.close_connection = True
        if fault and fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            socket.close(self.connection.detach())

    do_HEAD = do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: the log is `HubServer.log`."""

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def routes(self) -> dict[str, Any]:
        """What is answered: a pattern of paths to the method that takes its groups."""
        kinds, repo, rest = "(models|datasets)", "([^/]+/[^/]+)", "([^/]+)(?:/(.+))?"
        return {
            f"/api/{kinds}/{repo}(?:/revision/([^/]+))?": self._info,
            f"/api/{kinds}/{repo}/tree/{rest}": self._tree,
            f"/api/{kinds}/{repo}/paths-info/([^/]+)": self._paths_info,
            f"/api/{kinds}/{repo}/refs": self._refs,
            f"/(?:(datasets)/)?{repo}/resolve/{rest}": self._resolve,
            "/large-files/([0-9a-f]{64})": self._large_file,
        }

    def _route(self, path: str) -> Reply:
        for route, answer in self.routes().items():
            if match := re.fullmatch(route, path):
                return answer(*(part and unquote(part) for part in match.groups()))
        raise HubError(404, "no such page")

    def _repository(self, kind: str, repo_id: str, revision: str | None) -> Repository:
        """The repository, if the caller may know of it."""
        hub, token = self.server.hub, self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token != hub.token:
            raise HubError(401, "Invalid credentials in Authorization header")
        if repo_id in hub.private and not token:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        repository = hub.repositories.get((kind, repo_id))
        if repository is None:
            raise HubError(404, "Repository not found", "RepoNotFound")
        if revision not in (None, "main", TAG, repository.commit):
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository

    def _info(self, kind: str, repo_id: str, revision: str | None) -> Reply:
        repository = self._repository(kind, repo_id, revision)
        siblings = [{"rfilename": path} for path in repository.files]
        flags = {"private": repo_id in self.server.hub.private, "gated": repo_id in self.server.hub.gated}
        return json_reply({"id": repo_id, "sha": repository.commit, "siblings": siblings, "tags": [], **flags})

    def _tree(self, kind: str, repo_id: str, revision: str, folder: str | None) -> Reply:
        repository = self._repository(kind, repo_id, revision)
        top = PurePosixPath(folder or ".")
        below = [entry for entry in repository.entries() if top in PurePosixPath(entry["path"]).parents]
        if not below and folder:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound", repository.commit)
        if self.query.get("recursive") != ["true"]:
            below = [entry for entry in below if PurePosixPath(entry["path"]).parent == top]
        return json_reply(below)

    def _paths_info(self, kind: str, repo_id: str, revision: str) -> Reply:
        entries = self._repository(kind, repo_id, revision).entries()
        return json_reply([entry for entry in entries if entry["path"] in parse_qs(self.body.decode())["paths"]])

    def _refs(self, kind: str, repo_id: str) -> Reply:
        commit = self._repository(kind, repo_id, None).commit
        branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": commit}
        tag = {"name": TAG, "ref": f"refs/tags/{TAG}", "targetCommit": commit}
        return json_reply({"branches": [branch], "tags": [tag], "converts": []})

    def _resolve(self, kind: str | None, repo_id: str, revision: str, path: str) -> Reply:
        repository = self._repository(kind or "models", repo_id, revision)
        if repo_id in self.server.hub.gated:
            status = 403 if "Authorization" in self.headers else 401
            raise HubError(status, f"Access to {repo_id} is restricted", "GatedRepo")
        if path not in repository.files:
            raise HubError(404, "Entry not found", "EntryNotFound", repository.commit)
        file = repository.files[path]
        headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{file.oid}"'}
        if file.sha256 is None:
            return Reply(200, headers, file.content.read_bytes())
        # another host name, so another origin: the client must not take the token along
        location = f"http://localhost:{self.server.server_port}/large-files/{file.sha256}?signature=1"
        linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size), "Location": location}
        return Reply(302, headers | linked)

    def _large_file(self, sha256: str) -> Reply:
        for repository in self.server.hub.repositories.values():
            for file in repository.files.values():
                if file.sha256 == sha256:
                    name = f'inline; filename="{PurePosixPath(file.path).name}";'
                    headers = {"ETag": f'"{sha256}"', "Content-Disposition": name}
                    return Reply(200, headers, file.content.read_bytes())
        raise HubError(404, "no such file")

    def _in_range(self, reply: Reply) -> Reply:
        """The part that the `Range` header asks for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if reply.status != 200 or asked is None:
            return reply
        size, start = len(reply.body), int(asked[1])
        if start >= size:
            return Reply(416, {"Content-Range": f"bytes */{size}"})
        part = reply.body[start : int(asked[2]) + 1 if asked[2] else size]
        return Reply(206, reply.headers | {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{size}"}, part)

    def _send(self, reply: Reply, cut_after_bytes: int | None) -> None:
        self.send_response(reply.status)
        for name, value in (reply.headers | {"Content-Length": str(len(reply.body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        body = reply.body[:cut_after_bytes]
        speed = self.server.hub.bytes_per_second
        step = max(1, int(speed / 20)) if speed else len(body) or 1
        for start in range(0, len(body), step):
            self.wfile.write(body[start : start + step])
            time.sleep(0.05 if speed else 0)
        self.close_connection = self.close_connection or len(body) < len(reply.body)


def json_reply(content: Any) -> Reply:
    """An answer in JSON."""
    return Reply(200, {"Content-Type": "application/json"}, json.dumps(content).encode())
