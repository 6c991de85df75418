"""A model hub on 127.0.0.1: speaks Hugging Face's and ModelScope's protocols, serves plain files, fails on order."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import threading
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from uploads import Uploads

LARGE = 1000  # from this size on a file has a SHA-256 in the listing of Hugging Face, below it a git blob id


@dataclass
class Fault:
    """What the server does wrong when a file is asked for, `times` times."""

    kind: str  # "cut": `at` bytes come, then the connection ends; "flip": byte `at` is another one; "status"
    at: int = 0
    step: int = 0  # how much further the next cut is
    status: int = 500
    error_code: str = ""
    times: int = 1_000_000


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    authorization: str | None
    cookie: str | None


@dataclass
class Standin:
    """`repos[("hf", "model", "owner/name")] = {path: content}`; `files["/rows.json"] = content`."""

    repos: dict[tuple[str, str, str], dict[str, bytes]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)  # by the file's path in its repository
    listing_faults: dict[str, tuple[int, str, bytes]] = field(default_factory=dict)  # repository: status, code, body
    redirects: dict[str, str] = field(default_factory=dict)  # what a path or query ends with: address
    stalls: tuple[str, ...] = ()  # what a path or query ends with: never answered
    stopped: threading.Event = field(default_factory=threading.Event)
    content_types: dict[str, str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    created: dict[str, dict[str, object]] = field(default_factory=dict)  # by an upload: repository, how it was made
    pushed: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    writes: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, authorization
    write_faults: dict[str, int] = field(default_factory=dict)  # what a path ends with: status
    hanging: threading.Event | None = None
    etags: bool = True
    _scheme: str = "http"

    def start(self, certificate: Path | None = None) -> None:
        standin = self

        class Handler(_Handler):
            hub = standin

        self._server = _Server(("127.0.0.1", 0), Handler)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self._scheme = "https"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.stopped.set()
        if self.hanging:
            self.hanging.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_port}"

    def asked(self, ending: str) -> list[Request]:
        """The GET requests whose path (or ModelScope's FilePath) ends so."""
        return [r for r in self.requests if r.method == "GET" and unquote(r.path).endswith(ending)]

    def add_model(self, hub: str, name: str, files: dict[str, bytes]) -> None:
        self.repos[(hub, "model", name)] = files

    def add_data(self, hub: str, name: str, files: dict[str, bytes]) -> None:
        self.repos[(hub, "dataset", name)] = files


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is part of the tests."""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def commit(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files)).encode()).hexdigest()


class _Handler(Uploads, BaseHTTPRequestHandler):
    hub: Standin
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def _route(self) -> None:
        self.hub.requests.append(
            Request(
                self.command, self.path, self.headers.get("Range"), *map(self.headers.get, ("Authorization", "Cookie"))
            )
        )
        if self.hub.hanging:
            self.hub.hanging.wait(30)
            return
        parts = urlsplit(self.path)
        for ending, address in self.hub.redirects.items():
            if self._asks_for(ending):
                self._answer(302, b"", {"Location": address})
                return
        if any(map(self._asks_for, self.hub.stalls)):
            self.hub.stopped.wait(30)
            return
        path, query = unquote(parts.path), {key: values[0] for key, values in parse_qs(parts.query).items()}
        for pattern, answer in _ROUTES:
            if match := re.fullmatch(pattern, path):
                answer(self, query, *match.groups())
                return
        if path in self.hub.files:
            self._file(self.hub.files[path], path, {})
        else:
            self._answer(200 if path == "/" else 404, b"")

    def _asks_for(self, ending: str) -> bool:
        return urlsplit(self.path).path.endswith(ending) or unquote(self.path).endswith(ending)

    # Hugging Face

    def _hf_listing(self, query: dict[str, str], kinds: str, name: str, revision: str) -> None:
        if name in self.hub.listing_faults:
            return self._listing_fault(name)
        files = self.hub.repos.get(("hf", kinds[:-1], name))
        if files is None:
            return self._answer(404, b'{"error":"Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", commit(files)):
            return self._answer(404, b'{"error":"Invalid rev id"}', {"X-Error-Code": "RevisionNotFound"})
        siblings = [self._sibling(path, content) for path, content in files.items()]
        return self._json({"id": name, "sha": commit(files), "siblings": siblings, "private": False})

    @staticmethod
    def _sibling(path: str, content: bytes) -> dict[str, object]:
        sibling: dict[str, object] = {"rfilename": path, "size": len(content), "blobId": git_blob(content)}
        if len(content) >= LARGE:
            sibling["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
        return sibling

    def _hf_file(self, query: dict[str, str], dataset: str | None, name: str, revision: str, path: str) -> None:
        files = self.hub.repos[("hf", "dataset" if dataset else "model", name)]
        content = files[path]
        etag = sha256(content) if len(content) >= LARGE else git_blob(content)
        self._file(content, path, {"ETag": f'"{etag}"', "X-Repo-Commit": commit(files)})

    # ModelScope

    def _ms_listing(self, query: dict[str, str], kinds: str, name: str) -> None:
        if name in self.hub.listing_faults:
            return self._listing_fault(name)
        files = self.hub.repos.get(("ms", kinds[:-1], name))
        if files is None or query["Revision"] != "master":
            return self._answer(404, json.dumps({"Code": 10010205001, "Message": "not found"}).encode())
        entries = [
            {"Path": path, "Name": path, "Type": "blob", "Size": len(content), "Sha256": sha256(content)}
            for path, content in files.items()
        ]
        entries.append({"Path": "folder", "Name": "folder", "Type": "tree", "Size": 0, "Sha256": ""})
        return self._json({"Code": 200, "Data": {"Files": entries}, "Success": True})

    def _ms_file(self, query: dict[str, str], kinds: str, name: str) -> None:
        path = query["FilePath"]
        self._file(self.hub.repos[("ms", kinds[:-1], name)][path], path, {})

    # answers

    def _listing_fault(self, name: str) -> None:
        status, code, body = self.hub.listing_faults[name]
        self._answer(status, body, {"X-Error-Code": code} if code else {})

    def _file(self, content: bytes, path: str, headers: dict[str, str]) -> None:
        fault = self._fault(path)
        if fault and fault.kind == "status":
            self._answer(fault.status, b"{}", {"X-Error-Code": fault.error_code} if fault.error_code else {})
            return
        if fault and fault.kind == "flip":
            content = content[: fault.at] + bytes([content[fault.at] ^ 1]) + content[fault.at + 1 :]
        if self.hub.etags and "ETag" not in headers:
            headers = {"ETag": f'"{sha256(content)[:16]}"', **headers}
        headers = {"Content-Type": self.hub.content_types.get(path, "application/octet-stream"), **headers}
        start = self._start(headers.get("ETag"))
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        end = fault.at if fault and fault.kind == "cut" else len(content)
        self._answer(206 if start else 200, content[start:], headers, send=max(0, end - start))

    def _start(self, etag: str | None) -> int:
        if self.headers.get("If-Range") not in (None, etag):
            return 0
        match = re.fullmatch(r"bytes=(\d+)-\d*", self.headers.get("Range") or "")
        return int(match[1]) if match else 0

    def _fault(self, path: str) -> Fault | None:
        fault = self.hub.faults.get(path)
        if fault is None or fault.times == 0 or (self.command == "HEAD" and fault.kind != "status"):
            return None
        fault.times -= 1
        now = replace(fault)
        fault.at += fault.step
        return now

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, send: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:send])
        if send is not None and send < len(body):
            self.close_connection = True


_NAME = r"([^/]+/[^/]+)"
_ROUTES = (
    (rf"/api/(models|datasets)/{_NAME}/revision/(.+)", _Handler._hf_listing),
    (rf"/(datasets/)?{_NAME}/resolve/([^/]+)/(.+)", _Handler._hf_file),
    (rf"/api/v1/(models|datasets)/{_NAME}/repo/(?:files|tree)", _Handler._ms_listing),
    (rf"/api/v1/(models|datasets)/{_NAME}/repo", _Handler._ms_file),
)
