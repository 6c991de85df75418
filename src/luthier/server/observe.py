"""What the operator sees: one JSON line a request, and Prometheus metrics. No text of prompts or answers in either."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.inference.batcher import Batcher
from luthier.secrets import without_secrets
from luthier.server.errors import ApiError

GONE = 499  # as nginx: the client went away before it had its answer
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
KNOWN = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/adapters", "/metrics", "/health", "/ready", "/")

Log = Callable[[dict[str, Any]], None]


class Metrics:
    """Of one server. Labels come from a closed set: what a client makes up is no label."""

    def __init__(self, batcher: Batcher, models: Callable[[], list[str]]) -> None:
        self.registry = CollectorRegistry()
        self._models = models
        self._requests = Counter(
            "luthier_requests", "Requests, by what became of them.", ["path", "model", "status"], registry=self.registry
        )
        self._tokens = Counter(
            "luthier_tokens", "Tokens: prompt, cached (of the prompt), completion.", ["model", "kind"],
            registry=self.registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "luthier_request_seconds", "From a request's first byte to its answer's last.", ["path"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._first = Histogram(
            "luthier_first_token_seconds", "From a request's acceptance to its first token.",
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._per_token = Histogram(
            "luthier_token_seconds", "Between two tokens of one answer, the mean of each answer.",
            buckets=TOKEN_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.registry.register(_Load(batcher, models))

    def count(self, line: dict[str, Any]) -> None:
        """What a request's log line says."""
        path = next((known for known in KNOWN if line["path"] == known or line["path"].startswith(f"{known}/")), "")
        model = line.get("model") if line.get("model") in self._models() else ""
        self._requests.labels(path, model, line["status"]).inc()
        self._seconds.labels(path).observe(line["seconds"])
        if "completion_tokens" in line:
            for kind in ("prompt", "cached", "completion"):
                self._tokens.labels(model, kind).inc(line[f"{kind}_tokens"])
        if line.get("first_token_seconds") is not None:
            self._first.observe(line["first_token_seconds"])
            if line["completion_tokens"] > 1:
                self._per_token.observe(line["writing_seconds"] / (line["completion_tokens"] - 1))


class _Load(Collector):
    """Asked for when the metrics are."""

    def __init__(self, batcher: Batcher, models: Callable[[], list[str]]) -> None:
        self._batcher, self._models = batcher, models

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily("luthier_waiting", "Requests that wait for their turn.", self._batcher.waiting())
        yield GaugeMetricFamily("luthier_running", "Requests that are being answered.", self._batcher.running())
        yield GaugeMetricFamily("luthier_models", "Models that can be asked.", len(self._models()))


class Observed:
    """ASGI middleware, the outermost: what is learned of a request on its way lies in `request.state.facts`."""

    def __init__(self, app: ASGIApp, log: Log, metrics: Metrics) -> None:
        self.app, self.log, self.metrics = app, log, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        facts: dict[str, Any] = {}
        scope["state"] = {**scope.get("state", {}), "facts": facts}
        began, status, sent_all = time.monotonic(), GONE, False
        id = uuid.uuid4().hex[:16]

        async def note(message: Message) -> None:
            nonlocal status, sent_all
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", id.encode())]
            await send(message)
            sent_all = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self.app(scope, receive, note)
        except Exception as error:  # a mistake of ours: the traceback is for the operator
            facts["error"] = without_secrets(error)
            logging.getLogger(__name__).exception("request %s failed", id)
            if status == GONE:
                await ApiError(500, f"A mistake of the server's; its log tells of request {id}.").response()(
                    scope, receive, note
                )
        finally:
            line = {
                "time": round(time.time(), 3),
                "request": id,
                "client": (scope.get("client") or ("", 0))[0],
                "method": scope["method"],
                "path": scope["path"],
                "status": status if sent_all else GONE,
                "seconds": round(time.monotonic() - began, 4),
                **facts,
            }
            self.metrics.count(line)
            self.log(line)
