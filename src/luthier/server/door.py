"""Who may come in: the checks that every request passes before the application reads a byte of it.

- A web page of elsewhere must not use a server that runs on its reader's machine. Its requests carry an `Origin`, which
  is refused; and one that made a name of its own point here (DNS rebinding) gives itself away by `Host`.
- The key is compared in constant time, and is in no message and no log.
- A body is read up to a limit, and not for ever.
"""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.server.errors import ApiError

OPEN = ("/", "/health", "/ready")  # say nothing of the models: no key is asked for


@dataclass(frozen=True)
class Rules:
    """host: what the server is bound to. hosts, origins: further names it has, and pages that may use it.
    body_bytes: a longer body is refused; one that takes longer than body_seconds to come, too."""

    host: str = "127.0.0.1"
    key: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    body_bytes: int = 4 * 2**20
    body_seconds: float = 30
    local: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "local", is_loopback(self.host))


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class Door:
    """ASGI middleware. What it refuses has OpenAI's shape of an error."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check(scope, headers)
            if scope["method"] in ("POST", "PUT", "PATCH"):
                receive = await self._read(headers, receive)
        except ApiError as error:
            scope["state"]["facts"]["error"] = error.code
            response = error.response()
            response.headers["connection"] = "close"  # what is left of the body is not waited for
            await response(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = _name(headers.get("host", ""))
        if self.rules.local and not is_loopback(host) and host not in self.rules.hosts:
            what = f"This server is not {host!r:.100}. Ask it as 127.0.0.1, or start it with --allow-host."
            raise ApiError(403, what, code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and origin not in self.rules.origins and urlsplit(origin).netloc != headers.get("host"):
            what = f"Pages of {origin!r:.100} may not use this server. Start it with --allow-origin to let them."
            raise ApiError(403, what, code="wrong_origin")
        if self.rules.key is None or scope["path"] in OPEN or scope["method"] == "OPTIONS":
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.rules.key.encode()):
            what = "The API key is missing or wrong. Send it as `Authorization: Bearer KEY`."
            raise ApiError(401, what, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    async def _read(self, headers: Headers, receive: Receive) -> Receive:
        """The whole body, and a `receive` that gives it once and then what comes behind it."""
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.rules.body_bytes:
            raise self._too_long()
        try:
            body = await asyncio.wait_for(self._whole(receive), self.rules.body_seconds)
        except asyncio.TimeoutError:
            raise ApiError(408, "The body did not come in time.", code="body_too_slow") from None
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return waiting.pop() if waiting else await receive()

        return again

    async def _whole(self, receive: Receive) -> bytes:
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(400, "The body ended early.", code="body_cut")
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.rules.body_bytes:
                raise self._too_long()
        return bytes(body)

    def _too_long(self) -> ApiError:
        what = f"The body is longer than {self.rules.body_bytes / 2**20:g} MiB."
        return ApiError(413, what, code="body_too_long")


def _name(host: str) -> str:
    """`Host` without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
