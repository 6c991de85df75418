"""From runs to a listening server, and its end: what cannot be served is said before anything is loaded."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch
import uvicorn
from fastapi import FastAPI

from luthier.errors import InputError, Problem, RunError, Terminated, all_of
from luthier.hub.refs import Local, parse_model
from luthier.inference.adapters import adapter_folder
from luthier.inference.batcher import Batcher
from luthier.inference.opened import Opened, open_model, open_ref
from luthier.inference.together import SMALLEST_POOL, Together
from luthier.model.adapters import read_card
from luthier.recipe.schema import ModelSettings
from luthier.report.record import RunFolder
from luthier.report.words import size
from luthier.server.models import Models, Served


def name_runs(runs: Sequence[Path]) -> dict[str, Path]:
    """The adapter's folder of each run, by the name it is asked by: its own, and a number behind a name that is taken.

    Raises InputError with all runs that have no adapter, or whose base is not the first one's.
    """
    found = list(zip(runs, all_of(*(lambda run=run: _adapter(run) for run in runs)), strict=True))  # type: ignore[misc]
    named: dict[str, Path] = {}
    for run, adapter in found:
        own = name = run.resolve().name
        number = 1
        while name in named:
            number += 1
            name = f"{own}-{number}"
        named[name] = adapter
    _check_one_base(dict(found))
    return named


def _adapter(run: Path) -> Path:
    if not run.is_dir():
        RunFolder.open(run)  # raises, and names the runs beside it
    folder = adapter_folder(run)
    read_card(folder)
    return folder


def _check_one_base(adapters: dict[Path, Path]) -> None:
    cards = {run: read_card(folder) for run, folder in adapters.items()}
    first = next(iter(cards), None)
    problems = [
        Problem(
            str(run),
            f"was trained on {card['base']}, and {first} on {cards[first]['base']}: one server has one base model",
            "serve it by another luthier serve, with a --port of its own",
        )
        for run, card in cards.items()
        if first is not None and card["base_identity"] != cards[first]["base_identity"]
    ]
    if problems:
        raise RunError(*problems)


def open_base(adapters: Sequence[Path], model: str | None, dtype: str = "auto") -> tuple[str, Opened]:
    """The base model's name and the model: that of the adapters, found at `model` if it is given. Raises InputError."""
    if not adapters:
        if model is None:
            raise InputError(Problem("luthier serve", "nothing to serve", "name a run's folder, or --model REF"))
        return base_name(model), open_ref(model, dtype=dtype)
    recipe = adapters[0].parent / "recipe.yaml"
    if recipe.is_file():
        settings = RunFolder(adapters[0].parent).read_recipe().model
    else:
        card = read_card(adapters[0])
        settings = ModelSettings(ref=card["base"], thinking=card.get("thinking"))
    ref = model or settings.ref
    return base_name(ref), open_model(settings.model_copy(update={"ref": ref}), dtype=dtype)


def base_name(ref: str) -> str:
    """A model's reference, or a folder's name: where it lies on this machine is nobody's business."""
    return Path(ref).resolve().name if isinstance(parse_model(ref), Local) else ref


def make_models(
    named: dict[str, Path],
    base: str,
    opened: Opened,
    *,
    show_base: bool,
    systems: bool,
    folder: Path | None,
    max_batch: int,
    cache_bytes: int = 2**30,
) -> Models:
    """The models on a batcher at work. Raises InputError for an adapter that does not fit; then nothing runs."""
    while base in named:
        base = f"{base}-base"
    batcher = Batcher(opened, max_batch=max_batch, base=base, kept_bytes=cache_bytes)
    system = opened.system if systems and not named else None
    served = Served(base, opened.renderer, system, is_base=True)
    models = Models(batcher, served, show_base=show_base or not named, systems=systems, folder=folder)
    try:
        all_of(*(lambda name=name, path=path: models.add(path, name) for name, path in named.items()))  # type: ignore[misc]
    except InputError:
        batcher.close()
        raise
    return models


CHOOSING = 24  # bytes for each token of the vocabulary and each answer: logits and what is made of them


def describe_memory(batcher: Batcher) -> str:
    """What the server takes now and under load: a GPU's memory, without one the process's."""
    decoder = batcher.way.value
    now = torch.cuda.memory_allocated() or psutil.Process().memory_info().rss
    if not isinstance(decoder, Together):
        return f"{size(now)} now"
    pools = 2 * SMALLEST_POOL * decoder.shape.token_bytes  # which grow by doubling
    answers = batcher.max_batch * (pools + CHOOSING * batcher.vocabulary)
    return (
        f"{size(now)} now, about {size(now + decoder.kept.limit + answers)} under load: "
        f"{size(decoder.kept.limit)} for earlier requests (--cache), "
        f"{size(answers)} for {batcher.max_batch} answers of {SMALLEST_POOL} tokens (--max-batch)"
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound; port 0 takes a free one. Raises InputError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named: only then asyncio sends small packets at once, and not 40 ms later.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)
        return listening
    except OSError as error:
        listening.close()
        what = f"cannot be listened on: {error.strerror or error}"
        raise InputError(Problem(f"{host}:{port}", what, "name another: --port 8001")) from None


def serve(app: FastAPI, listening: socket.socket, *, drain: float, ready: Callable[[], None]) -> None:
    """Until Ctrl-C or SIGTERM. Answers then have `drain` seconds to end; a second Ctrl-C ends them at once."""
    server = Server(make_config(app, drain), ready)
    with suppress(KeyboardInterrupt, Terminated):  # uvicorn raises the signal again when it is done
        server.run(sockets=[listening])


def make_config(app: FastAPI, drain: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(drain)),
        h11_max_incomplete_event_size=64 * 1024,
    )


class Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()
