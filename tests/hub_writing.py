"""How a Hugging Face Hub takes what is pushed, by the routes that huggingface_hub 1.5 to 2.4 writes to.

A commit makes a new folder out of the repository's last one and serves that. Large files come first, each with a PUT to
a place that knows no token, as on the real Hub; a commit that names one that has not come is refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from typing import Any

from hub_protocol import LFS_BYTES, LFS_SUFFIXES, HubError, HubHandler, Reply, json_reply


class WritableHubHandler(HubHandler):
    """The Hub's reading routes, and these."""

    do_PUT = HubHandler.do_GET  # noqa: N815

    def routes(self) -> dict[str, Any]:
        kinds, repo = "(models|datasets)", "([^/]+/[^/]+)"
        return super().routes() | {
            "/api/whoami-v2": self._whoami,
            "/api/validate-yaml": self._validate_yaml,
            "/api/repos/create": self._create,
            f"/api/{kinds}/{repo}/preupload/([^/]+)": self._preupload,
            f"/(?:(datasets)/)?{repo}.git/info/lfs/objects/batch": self._lfs_batch,
            "/upload/([0-9a-f]{64})": self._upload,
            f"/api/{kinds}/{repo}/commit/([^/]+)": self._commit,
        }

    def _whoami(self) -> Reply:
        self._writer()
        return json_reply({"type": "user", "name": self.server.hub.user, "orgs": []})

    def _validate_yaml(self) -> Reply:
        header = json.loads(self.body)["content"].startswith("---\n")
        return json_reply({"errors": [], "warnings": [] if header else [{"message": "empty or missing yaml metadata"}]})

    def _create(self) -> Reply:
        hub, asked = self.server.hub, json.loads(self.body)
        self._writer()
        repo_id = f"{asked.get('organization') or hub.user}/{asked['name']}"
        kind = f"{asked.get('type') or 'model'}s"
        if (kind, repo_id) in hub.repositories:
            content = {"error": "You already created this model repo", "url": f"{hub.endpoint}/{repo_id}"}
            return Reply(409, {"Content-Type": "application/json"}, json.dumps(content).encode())
        self._check_namespace(repo_id)
        if asked.get("private") or asked.get("visibility") == "private":
            hub.private += (repo_id,)
        folder = hub.new_folder()
        (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        hub.publish(kind, repo_id, folder)
        return json_reply({"url": f"{hub.endpoint}/{repo_id}", "name": repo_id})

    def _preupload(self, kind: str, repo_id: str, revision: str) -> Reply:
        files = self._for_writing(kind, repo_id, revision).files

        def mode(path: str, size: int) -> str:
            return "lfs" if path.endswith(tuple(LFS_SUFFIXES)) or size > LFS_BYTES else "regular"

        def oid(path: str) -> str | None:
            return (files[path].sha256 or files[path].oid) if path in files else None

        asked = json.loads(self.body)["files"]
        answer = [
            {"path": f["path"], "uploadMode": mode(f["path"], f["size"]), "shouldIgnore": False, "oid": oid(f["path"])}
            for f in asked
        ]
        return json_reply({"files": answer})

    def _lfs_batch(self, kind: str | None, repo_id: str) -> Reply:
        self._for_writing(kind or "models", repo_id, None)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if not self.server.hub.uploaded(wanted["oid"]).exists():
                # another host name, so another origin: the client must not take the token along
                href = f"http://localhost:{self.server.server_port}/upload/{wanted['oid']}?signature=1"
                answer["actions"] = {"upload": {"href": href}}
            objects.append(answer)
        return json_reply({"transfer": "basic", "objects": objects})

    def _upload(self, sha256: str) -> Reply:
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise HubError(400, "the content is not what was announced")
        self.server.hub.uploaded(sha256).write_bytes(self.body)
        return Reply(200, {})

    def _commit(self, kind: str, repo_id: str, revision: str) -> Reply:
        hub, repository = self.server.hub, self._for_writing(kind, repo_id, revision)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header, operations = lines[0]["value"], lines[1:]
        if header.get("parentCommit", repository.commit) != repository.commit:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        folder = hub.new_folder()
        for file in repository.files.values():
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.content, folder / file.path)
        for operation in operations:
            key, value = operation["key"], operation["value"]
            path = folder / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if key == "file":
                path.write_bytes(base64.b64decode(value["content"]))
            elif key == "lfsFile" and hub.uploaded(value["oid"]).exists():
                shutil.copyfile(hub.uploaded(value["oid"]), path)
            elif key == "deletedFile" and path.is_file():
                path.unlink()
            else:
                raise HubError(400, f"cannot do {key} {value['path']}")
        commit = hub.publish(kind, repo_id, folder)
        hub.commits.append((repo_id, commit, header["summary"]))
        url = f"{hub.endpoint}/{repo_id}/commit/{commit}"
        return json_reply({"success": True, "commitOid": commit, "commitUrl": url})

    def _for_writing(self, kind: str, repo_id: str, revision: str | None) -> Any:
        self._writer()
        repository = self._repository(kind, repo_id, revision)
        self._check_namespace(repo_id)
        return repository

    def _check_namespace(self, repo_id: str) -> None:
        if repo_id.partition("/")[0] != self.server.hub.user:
            raise HubError(403, "You don't have the rights to write to this namespace")

    def _writer(self) -> None:
        if self.headers.get("Authorization", "").removeprefix("Bearer ") != self.server.hub.token:
            raise HubError(401, "Invalid username or password.")
