"""`luthier serve`: an OpenAI-compatible server and a chat page, for one base model and any number of runs."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Annotated

import typer

from luthier import console
from luthier.errors import InputError, Problem
from luthier.secrets import SHORTEST

NEEDED = {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}
KEY = "LUTHIER_API_KEY"


def serve(
    runs: Annotated[list[Path] | None, typer.Argument(help="Runs' folders: each is a model, by its name.")] = None,
    base: Annotated[bool, typer.Option("--base", help="The base model too, to compare before and after.")] = False,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A model without a run, or where the base is.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto (the run's own), float32, bfloat16 or float16.")] = "auto",
    host: Annotated[
        str, typer.Option(help="The address to listen on; beyond this machine only with a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.", min=0, max=65535)] = 8000,
    api_key: Annotated[str | None, typer.Option(envvar=KEY, help="Clients send it; better as a variable.")] = None,
    adapters: Annotated[Path | None, typer.Option(help="Runs in this folder may be added while it runs.")] = None,
    no_system: Annotated[bool, typer.Option("--no-system", help="Put in no run's own system prompt.")] = False,
    max_batch: Annotated[int, typer.Option(help="Answers computed together.", min=1)] = 64,
    cache: Annotated[float, typer.Option(help="GiB of keys and values kept of earlier requests.", min=0)] = 1.0,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more get 429.", min=0)] = 128,
    max_tokens: Annotated[int, typer.Option(help="Longest answer where a request does not say.", min=1)] = 512,
    max_body: Annotated[float, typer.Option(help="Longest request in MiB; a longer one gets 413.", min=0.001)] = 4.0,
    drain: Annotated[float, typer.Option(help="Seconds that answers have to end when it is stopped.", min=0)] = 30.0,
    allow_host: Annotated[list[str] | None, typer.Option(help="A further name of this server (a proxy's).")] = None,
    allow_origin: Annotated[list[str] | None, typer.Option(help="A web page's origin that may use it.")] = None,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Prompts and answers in the log.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object when it listens.")] = False,
) -> None:
    """Serve runs and their base model: OpenAI's API, and a chat page in the browser."""
    if json:
        console.use_json()
    _check_installed()
    from luthier.server.door import Rules

    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise typer.BadParameter(f"{dtype!r} is not auto, float32, bfloat16 or float16", param_hint="--dtype")
    body = round(max_body * 2**20)
    rules = Rules(host, api_key or None, tuple(allow_host or ()), tuple(allow_origin or ()), body_bytes=body)
    check(local=rules.local, key=rules.key, adapters=adapters)
    if api_key:
        os.environ[KEY] = api_key  # so that nothing prints it

    from luthier.model.load import context_length
    from luthier.server.answering import Limits
    from luthier.server.app import Settings, create_app
    from luthier.server.run import describe_memory, listen, make_models, name_runs, open_base
    from luthier.server.run import serve as run_server

    named = name_runs(runs or [])
    with listen(host, port) as listening:
        name, opened = open_base(list(named.values()), model, dtype)
        models = make_models(
            named,
            name,
            opened,
            show_base=base,
            systems=not no_system,
            folder=adapters,
            max_batch=max_batch,
            cache_bytes=round(cache * 2**30),
        )
        limits = Limits(queue, max_tokens, context_length(opened.base.path))
        app = create_app(models, Settings(rules, limits, log_prompts), console.log_line)
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listening.getsockname()[1]}"

        def ready() -> None:
            names = [served.name for served in models.all()]
            memory = describe_memory(models.batcher)
            console.result({"ok": True, "url": url, "api": f"{url}/v1", "models": names, "memory": memory})
            console.say(f"{', '.join(names)}\nchat in the browser   {url}\nOpenAI's API          {url}/v1")
            console.say(f"memory                {memory}")

        try:
            run_server(app, listening, drain=drain, ready=ready)
        finally:
            models.batcher.close()
    console.say("Stopped.")


def _check_installed() -> None:
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        fix = f"pip install {' '.join(missing)}"
        raise InputError(Problem("luthier serve", f"needs what is not installed: {', '.join(missing)}", fix))


def check(*, local: bool, key: str | None, adapters: Path | None) -> None:
    """Raises InputError with all that is wrong."""
    problems = []
    if not local and key is None:
        fix = f"set {KEY} to a long random text, which clients then send"
        problems.append(Problem("--host", "beyond this machine the server needs a key", fix))
    if key is not None and (len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key):
        what = f"must be at least {SHORTEST} printable ASCII characters without a space"
        problems.append(Problem("--api-key", what, 'python -c "import secrets; print(secrets.token_urlsafe())"'))
    if adapters is not None and not adapters.is_dir():
        problems.append(Problem(f"--adapters {adapters}", "is no folder", "name the folder that holds the runs: runs"))
    if problems:
        raise InputError(*problems)
