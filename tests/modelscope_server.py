"""A small ModelScope on 127.0.0.1 for its real client, modelscope_hub.

It serves folders as repositories: the list of files, and files whole or from a byte on. Large files are redirected to
storage, as the real one does, and it misbehaves when asked to:

    with ModelScopeServer(models={"ZhipuAI/chatglm2-6b": folder}) as server:
        server.cut("config.json", after_bytes=10)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.endpoint)
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, urlsplit

from serving import serve, stop

LARGE_BYTES = 100_000
_PATH = re.compile(r"/(api/v1|storage)/(models|datasets)/([^/]+/[^/]+)/(repo/files|repo/tree|repo)")


class ModelScopeServer:
    """ModelScope as a context manager.

    Attributes:
        endpoint: its address, for `MODELSCOPE_ENDPOINT`; set inside the `with` block.
        log: method and path of every request so far, and its `Range`.
        extra_paths: names that the lists of files have besides the real ones.
        page: a body that answers every request, as a proxy's does.

    Args:
        models: repository id to folder.
        datasets: repository id to folder.
        token: the one token that is accepted.
        private: ids that cannot be seen without the token.
    """

    def __init__(
        self,
        models: Mapping[str, Path] | None = None,
        datasets: Mapping[str, Path] | None = None,
        *,
        token: str = "ms-token",
        private: tuple[str, ...] = (),
    ) -> None:
        self.folders = {("models", name): folder for name, folder in (models or {}).items()}
        self.folders |= {("datasets", name): folder for name, folder in (datasets or {}).items()}
        self.token, self.private = token, private
        self.log: list[str] = []
        self.extra_paths: list[str] = []
        self.page: bytes | None = None
        self.cuts: dict[str, list[int]] = {}
        self.stalled = threading.Event()
        self.closing = threading.Event()

    def cut(self, file: str, *, after_bytes: int, times: int = 1) -> None:
        """Hang up in the middle of the next bodies of a file."""
        self.cuts.setdefault(file, []).extend([after_bytes] * times)

    def stall(self, file: str, *, after_bytes: int) -> None:
        """Fall silent in the middle of the next body of a file, and set `stalled`."""
        self.cuts.setdefault(file, []).append(-after_bytes)

    def __enter__(self) -> ModelScopeServer:
        server = self

        class Handler(_Handler):
            modelscope = server

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = serve(self._server)
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        stop(self._server)


class _Handler(BaseHTTPRequestHandler):
    modelscope: ModelScopeServer

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server, url = self.modelscope, urlsplit(self.path)
        server.log.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".rstrip())
        if server.page is not None:
            self._send(200, server.page, "text/html")
        elif url.path.endswith("/internalAccelerationInfo"):
            self._answer(200, {"InternalRegionQueryAddress": ""})
        elif not (match := _PATH.fullmatch(url.path)):
            self._answer(404, None)
        else:
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            self._serve(url, query, *match.groups())

    def _serve(self, url: SplitResult, query: dict[str, str], prefix: str, kind: str, repo: str, what: str) -> None:
        folder = self.modelscope.folders.get((kind, repo))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token != self.modelscope.token:
            self._answer(401, None)
        elif folder is None or query["Revision"] != "master" or (repo in self.modelscope.private and not token):
            self._answer(404, None)
        elif what != "repo":
            self._answer(200, {"Files": self._listed(folder)})
        elif not (file := folder / query["FilePath"]).is_file():
            self._answer(404, None)
        elif prefix == "api/v1" and file.stat().st_size > LARGE_BYTES:
            self.send_response(302)
            self.send_header("Location", f"/storage/{url.path.removeprefix('/api/v1/')}?{url.query}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._send_file(file)

    def _listed(self, folder: Path) -> list[dict[str, object]]:
        files: list[dict[str, object]] = []
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            files.append({"Name": path.name, "Path": name, "Type": "tree" if path.is_dir() else "blob", "Size": 0})
            if path.is_file():
                content = path.read_bytes()
                files[-1] |= {"Size": len(content), "Sha256": hashlib.sha256(content).hexdigest()}
        return files + [{"Path": path, "Type": "blob", "Size": 1} for path in self.modelscope.extra_paths]

    def _answer(self, status: int, data: object) -> None:
        """The envelope of every answer that is no file."""
        body = {"Code": 200 if status == 200 else 10010205001, "Data": data, "Message": "", "Success": status == 200}
        self._send(status, json.dumps(body).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _send_file(self, file: Path) -> None:
        content = file.read_bytes()
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(match[1]), int(match[2] or len(content) - 1)) if match else (0, len(content) - 1)
        body = content[first : last + 1]
        self.send_response(206 if match else 200)
        self.send_header("Content-Length", str(len(body)))
        if match:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = self.modelscope.cuts.get(file.name)
        end = cuts.pop(0) if cuts else len(body)
        self.wfile.write(body[: abs(end)])
        self.wfile.flush()
        if end < 0:
            self.modelscope.stalled.set()
            self.modelscope.closing.wait(60)
        self.close_connection = True
