"""What the stand-in hub answers to an upload: a mixin for its handler. What came is in `hub.pushed`."""

from __future__ import annotations

import base64
import json
import re
from typing import Any
from urllib.parse import unquote, urlsplit


class Uploads:
    """Hugging Face's and ModelScope's ways to make a repository, to send large files, and to commit."""

    def do_POST(self: Any) -> None:  # noqa: N802 - http.server's name
        self._write()

    def do_PUT(self: Any) -> None:  # noqa: N802
        self._write()

    def _write(self: Any) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.writes.append((self.command, path, self.headers.get("Authorization")))
        for ending, status in self.hub.write_faults.items():
            if path.endswith(ending):
                return self._answer(status, b'{"error":"refused","Code":1,"Message":"refused"}')
        for pattern, answer in _ROUTES:
            if match := re.fullmatch(pattern, path):
                return answer(self, body, *match.groups())
        return self._answer(404, b"{}")

    def _blob(self: Any, body: bytes, oid: str) -> None:
        self.hub.blobs[oid] = body
        self._answer(200, b"")

    def _batch(self: Any, body: bytes, ms_name: str | None, hf_name: str | None) -> None:
        wanted = [
            {"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": f"{self.hub.url}/blob/{o['oid']}"}}}
            for o in json.loads(body)["objects"]
        ]
        objects = {"objects": wanted, "transfer": "basic"}
        self._json({"Code": 200, "Data": objects, "Success": True} if ms_name else objects)

    # Hugging Face

    def _hf_create(self: Any, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization', 'me')}/{asked['name']}"
        if name in self.hub.created:
            already = {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
            return self._answer(409, json.dumps(already).encode())
        self.hub.created[name] = {"private": asked.get("private") or asked.get("visibility") == "private"}
        return self._json({"url": f"{self.hub.url}/{name}", "name": name, "id": "1"})

    def _hf_preupload(self: Any, body: bytes, name: str) -> None:
        large = (".safetensors", ".gguf")
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(large) else "regular", "shouldIgnore": False}
            for f in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def _hf_commit(self: Any, body: bytes, name: str) -> None:
        files = self.hub.pushed.setdefault(("hf", name), {})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        self._json({"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.hub.url}/{name}/commit/{'0' * 40}"})

    def _hf_card(self: Any, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    # ModelScope

    def _ms_create(self: Any, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['Path']}/{asked['Name']}"
        if name in self.hub.created:
            return self._answer(409, b'{"Code":10020101001,"Message":"already exists"}')
        self.hub.created[name] = {"private": asked["Visibility"] == 1, "licence": asked["License"]}
        return self._json({"Code": 200, "Data": {"Path": asked["Path"], "Name": asked["Name"]}, "Success": True})

    def _ms_commit(self: Any, body: bytes, name: str) -> None:
        files = self.hub.pushed.setdefault(("ms", name), {})
        for action in json.loads(body)["actions"]:
            large = action["type"] == "lfs"
            content = self.hub.blobs[action["sha256"]] if large else base64.b64decode(action["content"])
            files[action["path"]] = content
        self._json({"Code": 200, "Data": {"CommitId": "0" * 40}, "Success": True})


_NAME = r"([^/]+/[^/]+)"
_ROUTES: tuple[tuple[str, Any], ...] = (
    (r"/blob/(\w+)", Uploads._blob),
    (rf"/api/v1/repos/models/{_NAME}/info/lfs/objects/batch|/{_NAME}\.git/info/lfs/objects/batch", Uploads._batch),
    (r"/api/repos/create", Uploads._hf_create),
    (rf"/api/models/{_NAME}/preupload/main", Uploads._hf_preupload),
    (rf"/api/models/{_NAME}/commit/main", Uploads._hf_commit),
    (r"/api/validate-yaml", Uploads._hf_card),
    (r"/api/v1/models", Uploads._ms_create),
    (rf"/api/v1/repos/models/{_NAME}/commit/master", Uploads._ms_commit),
)
