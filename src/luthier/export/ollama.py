"""Ollama's Modelfile, with the chat template written anew in Ollama's own language, Go's text/template.

Nothing translates Jinja in general. So the template is asked: it writes conversations of marked contents, and what
stands around the marks is what each role is wrapped in. The pieces are then put together for the run's own held-out
conversations, and must give the renderer's prompt to the letter; else there is no Modelfile.

    <|im_start|>user\\n ■1 <|im_end|>\\n<|im_start|>assistant\\n    ->   user: ("<|im_start|>user\\n", "<|im_end|>\\n")
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.data.conversation import Message
from luthier.data.render import Renderer
from luthier.errors import LuthierError, ModelError, Problem
from luthier.export.reference import Reference
from luthier.hub.fetch import LocalModel
from luthier.model.files import read_object
from luthier.model.load import context_length

FILE = "Modelfile"
LONGEST_CONTEXT = 8192  # tokens asked for at most: Ollama sets memory aside for all of them
SAMPLING = ("temperature", "top_p", "top_k", "min_p")
MARKS = [f"■{number}■" for number in range(4)]  # no template writes them by itself


@dataclass(frozen=True)
class Pieces:
    """What a template puts around contents.

    `bos` and `start` begin every prompt, `default_system` follows where no system message is given. A system message is
    wrapped by itself, or with `system_inside` written within the first user turn (Gemma's way).
    """

    bos: str
    start: str
    default_system: str
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str
    system_inside: bool

    def text(self, messages: Sequence[Message]) -> str:
        """The prompt for `messages`, as the Go template writes it."""
        system = next((m.content for m in messages if m.role == "system"), None)
        text = self.bos + self.start + ("" if system is not None else self.default_system)
        for place, message in enumerate(messages):
            if message.role == "system":
                text += "" if self.system_inside else self.system[0] + message.content + self.system[1]
            elif message.role == "user":
                inside = self.system_inside and place == 1 and system is not None
                before = self.system[0] + (system or "") + self.system[1] if inside else ""
                text += self.user[0] + before + message.content + self.user[1]
            else:
                text += self.assistant[0] + message.content + self.assistant[1]
        return text + self.answer

    def go(self) -> str:
        """The same in Go's text/template, over Ollama's `.Messages` and `.System`."""
        system = "" if self.system_inside else f"{_go(self.system[0])}{{{{ .Content }}}}{_go(self.system[1])}"
        within = f"{_go(self.system[0])}{{{{ $.System }}}}{_go(self.system[1])}"
        inside = f"{{{{ if and $.System (eq $i 1) }}}}{within}{{{{ end }}}}" if self.system_inside else ""
        default = f"{{{{ if not .System }}}}{_go(self.default_system)}{{{{ end }}}}" if self.default_system else ""
        return (
            f"{_go(self.bos)}{_go(self.start)}{default}{{{{ range $i, $_ := .Messages }}}}"
            f'{{{{ if eq .Role "system" }}}}{system}'
            f'{{{{ else if eq .Role "user" }}}}{_go(self.user[0])}{inside}{{{{ .Content }}}}{_go(self.user[1])}'
            f'{{{{ else if eq .Role "assistant" }}}}{_go(self.assistant[0])}{{{{ .Content }}}}{_go(self.assistant[1])}'
            f"{{{{ end }}}}{{{{ end }}}}{_go(self.answer)}"
        )


def write(folder: Path, base: LocalModel, reference: Reference) -> None:
    """The Modelfile. Raises ModelError where Ollama's language cannot say what the template says."""
    renderer = reference.renderer
    pieces = probe(renderer)
    check(pieces, renderer, [each.messages for each in reference.asked])
    system = next((m.content for m in reference.asked[0].messages if m.role == "system"), None)
    lines = ["FROM ./model.gguf", f"TEMPLATE {_quoted(without_bos(pieces, renderer).go(), 'chat template')}"]
    if system:
        lines.append(f"SYSTEM {_quoted(system, 'system prompt')}")
    stops = [renderer.tokenizer.convert_ids_to_tokens(token) for token in renderer.stop_ids]
    lines += [f'PARAMETER stop "{stop}"' for stop in stops if stop]
    lines += [f"PARAMETER {name} {value}" for name, value in _parameters(base.path).items()]
    (folder / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def probe(renderer: Renderer) -> Pieces:
    """The pieces of a renderer's template. Raises ModelError where contents do not stand in it one after the other."""
    if "strftime_now" in renderer.tokenizer.chat_template:
        raise _refused("it writes the date of the day, which an Ollama template cannot")
    zero, one, two, three = MARKS
    start, behind = _around(renderer, [Message("user", one)])
    _, after_user, after_assistant, _ = _around(
        renderer, [Message("user", one), Message("assistant", two), Message("user", three)]
    )
    try:
        before, between, _ = _around(renderer, [Message("system", zero), Message("user", one)])
    except LuthierError:  # a template that takes no system message
        before, between = "", ""
    inside = between != "" and before == start
    own_block = bool(between) and not inside
    user_before = _same_end(start, after_assistant, *([between] if own_block else []))
    user_behind = _same_start(after_user, behind)
    opening = start.removesuffix(user_before)
    beginning = _same_start(opening, before) if own_block else opening
    block = (before[len(beginning) :], between.removesuffix(user_before)) if own_block else ("", between)
    return Pieces(
        bos=_bos(renderer),
        start=beginning,
        default_system=opening[len(beginning) :],
        system=block,
        user=(user_before, user_behind),
        assistant=(after_user[len(user_behind) :], after_assistant.removesuffix(user_before)),
        answer=behind[len(user_behind) :],
        system_inside=inside,
    )


def check(pieces: Pieces, renderer: Renderer, conversations: Sequence[Sequence[Message]]) -> None:
    """Raises ModelError where the pieces do not give the renderer's prompt, of these and of a longer conversation."""
    longer = [Message(role, f"{role} {n}") for n in range(3) for role in ("user", "assistant")][:-1]  # type: ignore[arg-type]
    for messages in (longer, [Message("system", "Be brief."), *longer], *conversations):
        try:
            expected = renderer.prompt_text(messages)
        except LuthierError:  # the template takes no such conversation, so nobody asks it
            continue
        if any(m.role not in ("system", "user", "assistant") for m in messages):
            raise _refused("the run's rows hold other roles than system, user and assistant")
        found = pieces.text(_as_written(renderer, messages))
        if found != expected:
            same = len(_same_start(found, expected))
            what = f"what it writes depends on more than role and content: {expected[same : same + 40]!r} where "
            raise _refused(what + f"roles alone would give {found[same : same + 40]!r}")


def prompts(reference: Reference) -> list[str]:
    """What Ollama makes of each prompt, before it puts a BOS token in front."""
    pieces = without_bos(probe(reference.renderer), reference.renderer)
    return [pieces.text(_as_written(reference.renderer, each.messages)) for each in reference.asked]


def without_bos(pieces: Pieces, renderer: Renderer) -> Pieces:
    """Ollama puts the BOS token first by itself where the tokenizer says so: written twice, it would be sent twice."""
    added = renderer.tokenizer("")["input_ids"][:1] == [renderer.tokenizer.bos_token_id]
    return replace(pieces, bos="") if added else pieces


def _bos(renderer: Renderer) -> str:
    """The BOS token where the template writes it. It is no part of a role, whatever letters the two have in common."""
    bos = renderer.tokenizer.bos_token or ""
    return bos if renderer.prompt_text([Message("user", MARKS[0])]).startswith(bos) else ""


def _around(renderer: Renderer, messages: Sequence[Message]) -> list[str]:
    """The texts before, between and behind the contents, without the BOS token."""
    rest, found = renderer.prompt_text(messages).removeprefix(_bos(renderer)), []
    for message in messages:
        text, mark, rest = rest.partition(message.content)
        if not mark:
            raise _refused("it does not write every message, or not in their order")
        found.append(text)
    return [*found, rest]


def _same_start(*texts: str) -> str:
    return os.path.commonprefix(texts)  # noqa: RUF071 - of any text, not of paths


def _same_end(*texts: str) -> str:
    return _same_start(*(text[::-1] for text in texts))[::-1]


def _as_written(renderer: Renderer, messages: Sequence[Message]) -> list[Message]:
    """Without the blank space around a content that some templates take off: Ollama's language cannot."""
    mark = MARKS[0]
    strips = renderer.prompt_text([Message("user", f" {mark} ")]) == renderer.prompt_text([Message("user", mark)])
    return [Message(m.role, m.content.strip()) for m in messages] if strips else list(messages)


def _parameters(base: Path) -> dict[str, Any]:
    """Sampling as the base model's makers advise, else greedy as `luthier chat`; and the context it was made for."""
    file = base / "generation_config.json"
    advised = read_object(file) if file.is_file() else {}
    sampling = {name: advised[name] for name in SAMPLING if isinstance(advised.get(name), int | float)}
    context = min(context_length(base) or LONGEST_CONTEXT, LONGEST_CONTEXT)
    return {"temperature": 0, **sampling, "num_ctx": context}


def _go(text: str) -> str:
    """Literal text in a Go template: as it is, unless it would be read as an action or lose its blank space."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if "{{" in text or "}}" in text else text


def _quoted(text: str, what: str) -> str:
    if '"""' in text:
        raise _refused(f'the {what} holds """, which a Modelfile cannot')
    return f'"""{text}"""'


def _refused(reason: str) -> ModelError:
    fix = "export --to gguf: llama.cpp, LM Studio and others read the template that is in the file"
    return ModelError(Problem("chat template", f"cannot be written for Ollama: {reason}", fix))
