"""Many clients at once against an OpenAI-compatible server: what it answers, how fast, and whether its memory grows.

    python -m benchmarks.load http://127.0.0.1:8000/v1 --seconds 60 --clients 64
    python -m benchmarks.load http://127.0.0.1:8001/v1 --models PATH --plain      another server, as transformers serve

Each client asks one request after the other: half of them streamed, of the models in turn. Some are cancelled in the
middle, some have a bad body, which must be refused. Latencies are of streamed answers: to the first text, and from text
to text.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

QUESTIONS = (
    "Who are you?",
    "What wood do you use for the top of a violin, and why that one?",
    "Do you play the violin?",
    "你是谁？",
    "How long does the varnish dry?",
    "Tell me about your day, from the morning to the evening.",
)
BAD = (
    b"{",
    b"[]",
    b'{"model": "no such model", "messages": [{"role": "user", "content": "x"}]}',
    b'{"messages": []}',
    b'{"messages": [{"role": "user", "content": "x"}], "temperature": "hot"}',
)


GRACE = 20  # seconds after the last request that answers are waited for


@dataclass
class Seen:
    """What the clients saw. Seconds."""

    kinds: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    tokens: int = 0
    memory: list[tuple[float, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Load:
    url: str
    models: Sequence[str]
    seconds: float
    clients: int
    max_tokens: int
    plain: bool


async def client(load: Load, number: int, seen: Seen, until: float, http: httpx.AsyncClient) -> None:
    dice = random.Random(number)
    turn = number
    while time.monotonic() < until:
        turn += 1
        chance = 1.0 if load.plain else dice.random()
        model = load.models[turn % len(load.models)]
        try:
            if chance < 0.05:
                await ask_badly(load, dice, seen, http)
            else:
                await ask(load, model, dice, seen, http, cancel=chance < 0.15)
        except Exception as error:
            seen.errors[f"{type(error).__name__}: {str(error)[:80]}"] += 1


async def ask(
    load: Load, model: str, dice: random.Random, seen: Seen, http: httpx.AsyncClient, *, cancel: bool
) -> None:
    stream = cancel or dice.random() < 0.5
    body = {
        "model": model,
        "messages": [{"role": "user", "content": dice.choice(QUESTIONS)}],
        "max_tokens": dice.randint(load.max_tokens // 4, load.max_tokens),
        "temperature": dice.choice((0.0, 0.8)),
        "stream": stream,
    }
    began = time.monotonic()
    if not stream:
        answer = await http.post(f"{load.url}/chat/completions", json=body)
        if await refused(answer, seen):
            return
        seen.tokens += answer.json()["usage"]["completion_tokens"]
    elif not await read_stream(load, body, began, seen, http, stop_after=dice.randint(0, 4) if cancel else None):
        return
    seen.kinds["streamed" if stream else "whole"] += 1
    seen.whole.append(time.monotonic() - began)


async def read_stream(
    load: Load, body: dict[str, Any], began: float, seen: Seen, http: httpx.AsyncClient, *, stop_after: int | None
) -> bool:
    """Whether it was read to its end. Times from text to text are counted on the way."""
    last, count, done = 0.0, 0, False
    async with http.stream("POST", f"{load.url}/chat/completions", json=body) as answer:
        if await refused(answer, seen):
            return False
        async for line in answer.aiter_lines():
            if stop_after is not None and count >= stop_after:
                seen.kinds["cancelled"] += 1
                return False
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                done = True
                continue
            part = json.loads(line[6:])
            if "error" in part:
                raise RuntimeError(part["error"]["message"])
            if not part["choices"] or not part["choices"][0]["delta"].get("content"):
                done = done or bool(part["choices"] and part["choices"][0].get("finish_reason"))
                continue
            now = time.monotonic()
            (seen.gaps if last else seen.first).append(now - (last or began))
            last, count = now, count + 1
    if not done:
        raise RuntimeError("a stream ended without its end")
    seen.tokens += count
    return True


async def refused(answer: httpx.Response, seen: Seen) -> bool:
    """A full queue says when to come again; anything else but 200 is an error."""
    if answer.status_code == 429:
        seen.kinds["429"] += 1
        await asyncio.sleep(float(answer.headers["retry-after"]))
        return True
    if answer.status_code != 200:
        await answer.aread()
        raise RuntimeError(f"{answer.status_code} {answer.text[:80]}")
    return False


async def ask_badly(load: Load, dice: random.Random, seen: Seen, http: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await http.post(f"{load.url}/chat/completions", content=dice.choice(BAD), headers=headers)
    if answer.status_code not in (400, 404) or "message" not in answer.json()["error"]:
        raise RuntimeError(f"a bad body got {answer.status_code}")
    seen.kinds["refused"] += 1


async def watch(seen: Seen, port: int, until: float) -> None:
    """The server's memory (resident, with its children), every two seconds; nothing where it runs elsewhere."""
    process = next((psutil.Process(c.pid) for c in psutil.net_connections("tcp") if listens(c, port) and c.pid), None)
    began = time.monotonic()
    while process is not None and time.monotonic() < until:
        family = [process, *process.children(recursive=True)]
        seen.memory.append((time.monotonic() - began, sum(each.memory_info().rss for each in family)))
        await asyncio.sleep(2)


def listens(connection: Any, port: int) -> bool:
    return bool(connection.status == psutil.CONN_LISTEN and connection.laddr.port == port)


async def run(load: Load) -> tuple[Seen, float]:
    seen, began = Seen(), time.monotonic()
    until = began + load.seconds
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=load.clients)
    async with httpx.AsyncClient(timeout=300, limits=limits, trust_env=False) as http:
        watching = asyncio.create_task(watch(seen, httpx.URL(load.url).port or 80, until))
        clients = [asyncio.create_task(client(load, number, seen, until, http)) for number in range(load.clients)]
        _, late = await asyncio.wait(clients, timeout=load.seconds + GRACE)
        seconds = time.monotonic() - began
        for each in late:  # a server that answers one after the other would take minutes
            each.cancel()
            seen.kinds["not answered in time"] += 1
        await asyncio.gather(*late, watching, return_exceptions=True)
    return seen, seconds


def percentiles(values: Sequence[float]) -> str:
    """p50, p90, p99 in milliseconds."""
    if not values:
        return "—"
    ordered = sorted(values)
    return " / ".join(f"{1000 * ordered[min(len(ordered) - 1, int(len(ordered) * p))]:,.0f}" for p in (0.5, 0.9, 0.99))


def report(load: Load, seen: Seen, seconds: float) -> str:
    answered = seen.kinds["streamed"] + seen.kinds["whole"]
    memory = [size / 1e6 for _, size in seen.memory]
    rows = [
        ("clients, seconds", f"{load.clients}, {seconds:.0f}"),
        ("requests", ", ".join(f"{count:,} {kind}" for kind, count in sorted(seen.kinds.items()))),
        ("answers a second", f"{answered / seconds:.2f}"),
        ("tokens a second", f"{seen.tokens / seconds:.1f}"),
        ("to the first text, ms (p50 / p90 / p99)", percentiles(seen.first)),
        ("from text to text, ms (p50 / p90 / p99)", percentiles(seen.gaps)),
        ("a whole answer, ms (p50 / p90 / p99)", percentiles(seen.whole)),
        ("errors", ", ".join(f"{count} × {kind}" for kind, count in seen.errors.items()) or "none"),
    ]
    if memory:
        third = max(1, len(memory) // 3)
        early, late = max(memory[third : 2 * third] or memory), max(memory[-third:])
        rows.append(("memory, MB", f"{memory[0]:.0f} first, then up to {early:.0f}, at the end up to {late:.0f}"))
    return "\n".join(f"{name:42} {value}" for name, value in rows)


async def names(url: str) -> list[str]:
    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        return [model["id"] for model in (await http.get(f"{url}/models")).json()["data"]]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=str(__doc__).partition("\n")[0])
    parser.add_argument("url", help="the API's address, as http://127.0.0.1:8000/v1")
    parser.add_argument("--models", help="names to ask in turn, with commas; all that the server lists unless given")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=48, help="longest answer; each has a length of its own")
    parser.add_argument("--plain", action="store_true", help="whole and streamed answers alone")
    parser.add_argument("--json", action="store_true", help="what was seen as one JSON object, memory over time too")
    asked = parser.parse_args(arguments)
    url = asked.url.rstrip("/")
    models = asked.models.split(",") if asked.models else asyncio.run(names(url))
    load = Load(url, models, asked.seconds, asked.clients, asked.max_tokens, asked.plain)
    seen, seconds = asyncio.run(run(load))
    said = json.dumps({**vars(seen), "seconds": seconds}) if asked.json else report(load, seen, seconds)
    sys.stdout.write(said + "\n")
    return 1 if seen.errors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
