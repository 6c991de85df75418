"""`luthier chat`: ask a run or a model."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier import console


def chat(
    ref: Annotated[str, typer.Argument(help="A run's folder, or a model: bundled:…, a path, ms:…, hf:….")],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="One question, one answer, and done.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Base and tuned model, one after the other.")] = False,
    system: Annotated[str | None, typer.Option(help="Another system prompt than the run's.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 512,
    temperature: Annotated[float, typer.Option(help="0 gives the likeliest answer, each time the same.", min=0)] = 0.0,
    top_p: Annotated[float, typer.Option(help="With a temperature: the likeliest tokens up to this share.")] = 0.95,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output; needs --prompt.")] = False,
) -> None:
    """Chat in the terminal. With the run's own system prompt, template and stop tokens."""
    if json:
        console.use_json()
    if json and prompt is None:
        raise typer.BadParameter("--json needs --prompt", param_hint="--json")
    from luthier.data.conversation import Message
    from luthier.errors import Problem, RunError
    from luthier.inference.chat import Chat
    from luthier.inference.opened import open_ref
    from luthier.inference.sample import Sampling

    opened = open_ref(ref)
    if compare and opened.run is None:
        raise RunError(Problem(ref, "is a plain model: there is nothing to compare it with", "name a run's folder"))
    system = opened.system if system is None else system
    asked = Chat(opened, system, Sampling(max_new_tokens, temperature, top_p))
    if prompt is None:
        asked.converse(compare=compare)
        return
    messages = [*asked.start, Message("user", prompt)]
    if compare:
        answers = dict(zip(("base", "tuned"), asked.both(messages), strict=True))
    else:
        answers = {"tuned" if opened.run else "answer": asked.answer(messages)}
    console.result({"ok": True, "prompt": prompt, "system": system, **answers})
