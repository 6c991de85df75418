"""The application: OpenAI's API, adapters, health, metrics, and the page. It is assembled here, and nowhere else."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from luthier.inference.grammar import Grammar
from luthier.secrets import without_secrets
from luthier.server import errors
from luthier.server.answering import Limits, Writing, begin
from luthier.server.door import Door, Rules
from luthier.server.errors import ApiError
from luthier.server.models import Models, Served
from luthier.server.observe import GONE, Log, Metrics, Observed
from luthier.server.protocol import ChatRequest, CompletionRequest, Generation
from luthier.server.shapes import Chat, Completion, Shape

COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@dataclass(frozen=True)
class Settings:
    rules: Rules
    limits: Limits
    log_prompts: bool = False


class AdapterRequest(BaseModel):
    """folder: one in `--adapters`. name: to ask it by; the folder's own unless given."""

    model_config = ConfigDict(extra="forbid")
    folder: str
    name: str | None = None


def create_app(models: Models, settings: Settings, log: Log) -> FastAPI:
    """The ASGI application. The caller runs it, and closes the batcher behind it."""
    metrics = Metrics(models.batcher, lambda: [served.name for served in models.all()])
    rules = settings.rules
    middleware = [Middleware(Observed, log=log, metrics=metrics)]  # type: ignore[arg-type]
    if rules.origins:
        allowed = {"allow_methods": ["GET", "POST", "DELETE"], "allow_headers": ["Authorization", "Content-Type"]}
        middleware.append(Middleware(CORSMiddleware, allow_origins=rules.origins, **allowed))  # type: ignore[arg-type]
    middleware.append(Middleware(Door, rules=rules))  # type: ignore[arg-type]
    # No /docs: their page would load its scripts from elsewhere.
    app = FastAPI(title="Luthier", docs_url=None, redoc_url=None, openapi_url=None, middleware=middleware)
    errors.install(app)
    _add_asking(app, models, settings)
    _add_models(app, models)
    _add_watching(app, models, settings.limits, metrics)
    html, policy = read_page()

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=policy)

    return app


def _add_asking(app: FastAPI, models: Models, settings: Settings) -> None:
    async def answer(
        request: Request,
        served: Served,
        prompts: Sequence[list[int]],
        asked: Generation,
        grammar: Grammar | None = None,
    ) -> Response:
        shape_of = Chat if isinstance(asked, ChatRequest) else Completion
        tokenizer = served.renderer.tokenizer
        shape = shape_of(served.name, tokenizer, logprobs=asked.alternatives() is not None)
        writing = begin(models.batcher, settings.limits, served, prompts, asked, grammar)
        facts = request.state.facts
        facts |= {"stream": asked.stream}
        if asked.stream:
            return Stream(events(shape, writing, asked, facts), writing, facts, settings.log_prompts)
        try:
            if not await unless_gone(request, writing):
                return Response(status_code=GONE)
            return JSONResponse(shape.whole(writing))
        except ApiError:
            raise
        except Exception as error:
            facts["error"] = without_secrets(error)
            raise ApiError(500, "The answer could not be generated; the server's log says why.") from error
        finally:
            end(writing, facts, settings.log_prompts)

    @app.post(COMPLETIONS[0])
    async def chat(request: Request, asked: Annotated[ChatRequest, Body()]) -> Response:
        served = models.get(asked.model)
        request.state.facts["model"] = served.name
        messages = [message.read() for message in asked.messages]
        if settings.log_prompts:
            request.state.facts["messages"] = [{"role": m.role, "content": m.content} for m in messages]
        thinking, schema = asked.thinking(), asked.response_format.schema_of_answers()
        prompt = await run_in_threadpool(served.prompt_ids, messages, thinking)
        grammar = None
        if schema is not None:
            grammar = await run_in_threadpool(served.grammar, schema, thinking, models.batcher.vocabulary)
        return await answer(request, served, [prompt], asked, grammar)

    @app.post(COMPLETIONS[1])
    async def complete(request: Request, asked: Annotated[CompletionRequest, Body()]) -> Response:
        served = models.get(asked.model)
        request.state.facts["model"] = served.name
        if settings.log_prompts:
            request.state.facts["prompt"] = asked.prompt
        prompts = [p if isinstance(p, list) else await run_in_threadpool(served.text_ids, p) for p in asked.prompts()]
        return await answer(request, served, prompts, asked)


async def events(shape: Shape, writing: Writing, asked: Generation, facts: dict[str, Any]) -> AsyncIterator[str]:
    """Server-sent events, as OpenAI's: chunks, the usage if it is asked for, and `[DONE]`."""
    tell = asked.stream_options.include_usage
    try:
        for draft in writing.drafts:
            if opening := shape.opening(draft.choice):
                yield event(shape.chunk([opening], None, tell_usage=tell))
        async for piece in writing.pieces():
            yield event(shape.chunk([shape.part(piece)], None, tell_usage=tell))
        if tell:
            yield event(shape.chunk([], writing.usage(), tell_usage=True))
        yield "data: [DONE]\n\n"
    except ApiError as error:
        facts["error"] = error.code
        yield event(error.body())
    except Exception as error:  # the status has been sent: the client learns of it here
        facts["error"] = without_secrets(error)
        yield event(ApiError(500, "The answer could not be generated; the server's log says why.").body())


def event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


class Stream(StreamingResponse):
    """Server-sent events. Whatever ends them (the last one, a client that went away), the model is free then."""

    def __init__(self, content: AsyncIterator[str], writing: Writing, facts: dict[str, Any], with_text: bool) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # a proxy passes on what it gets at once
        super().__init__(content, headers=headers, media_type="text/event-stream")
        self._writing, self._facts, self._with_text = writing, facts, with_text

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            end(self._writing, self._facts, self._with_text)


async def unless_gone(request: Request, writing: Writing) -> bool:
    """Until all is written, or the client has gone away: then it is False, and nobody reads the response."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(writing.whole()), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
        return tasks[0].done()
    finally:
        for task in tasks:
            task.cancel()


def end(writing: Writing, facts: dict[str, Any], with_text: bool) -> None:
    """Frees the model, and notes for the log what was written."""
    writing.cancel()
    facts |= writing.facts()
    if with_text:
        facts["answers"] = [draft.text for draft in writing.drafts]


def _add_models(app: FastAPI, models: Models) -> None:
    @app.get("/v1/models")
    async def all_models() -> dict[str, Any]:
        return {"object": "list", "data": [served.to_json() for served in models.all()]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        return models.get(name).to_json()

    # Plain functions: FastAPI runs them in a thread, as they wait for the disk and the batcher.
    @app.get("/v1/adapters")
    def adapters() -> dict[str, Any]:
        served = [each.name for each in models.all() if not each.is_base]
        return {"object": "list", "available": list(models.available()), "served": served}

    @app.post("/v1/adapters", status_code=201)
    def add(asked: Annotated[AdapterRequest, Body()]) -> dict[str, Any]:
        return models.add_named(asked.folder, asked.name).to_json()

    @app.delete("/v1/adapters/{name:path}")
    def remove(name: str) -> dict[str, Any]:
        models.remove(name)
        return {"id": name, "object": "model", "deleted": True}


def _add_watching(app: FastAPI, models: Models, limits: Limits, metrics: Metrics) -> None:
    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """Whether one more request would be taken."""
        free = models.batcher.waiting() < limits.waiting
        return JSONResponse({"ready": free}, 200 if free else 503)

    @app.get("/metrics")
    async def scrape() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def read_page() -> tuple[str, dict[str, str]]:
    """The chat page, and headers under which a browser runs that script alone and loads nothing from elsewhere."""
    folder = resources.files("luthier.server") / "page"
    files = ("index.html", "page.css", "page.js")
    html, style, script = ((folder / name).read_text(encoding="utf-8") for name in files)
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html.replace("{{style}}", style).replace("{{script}}", script), {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
