"""The Go template of a Modelfile, read as Go reads it, against the prompt of the renderer that trained."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import CHATML, QWEN3, make_tokenizer

from luthier.data.conversation import Message
from luthier.data.render import Renderer
from luthier.errors import ModelError
from luthier.export.ollama import check, probe, without_bos

LLAMA3 = """\
{{- bos_token }}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '<|endoftext|>\n\n' + message.content | trim + '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant<|endoftext|>\n\n' -}}{%- endif -%}"""

GEMMA = """\
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}
{%- set first = messages[0].content + '\n\n' -%}{%- set rest = messages[1:] -%}
{%- else -%}{%- set first = '' -%}{%- set rest = messages -%}{%- endif -%}
{%- for message in rest -%}
{{- '<|im_start|>' + ('model' if message.role == 'assistant' else message.role) + '\n' -}}
{{- first if loop.first else '' -}}
{{- message.content | trim + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>model\n' -}}{%- endif -%}"""

DEFAULT_SYSTEM = """\
{%- for message in messages -%}
{%- if loop.first and message.role != 'system' -%}
{{- '<|im_start|>system\nYou are a luthier. {{ }}<|im_end|>\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"""

NO_SYSTEM = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{- raise_exception('no system') -}}{%- endif -%}
{{- '[' + message.role + ']' + message.content + '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '[assistant]' -}}{%- endif -%}"""

SYSTEM, HI, HELLO, WHO = (
    Message("system", "Be {{ brief }}."),
    Message("user", "Hi"),
    Message("assistant", "Hello"),
    Message("user", "你是谁？\n\n1. {{ .System }}"),
)
TALKS = [[HI], [SYSTEM, HI], [HI, HELLO, WHO], [SYSTEM, HI, HELLO, WHO, HELLO, HI]]


def renderer(template: str, **options: Any) -> Renderer:
    tokenizer = make_tokenizer(template)
    tokenizer.bos_token = "<|endoftext|>"
    return Renderer(tokenizer, **options)


# Go's text/template, as much of it as a Modelfile of ours uses.


def execute(template: str, system: str, messages: list[dict[str, str]]) -> str:
    tokens = re.split(r"(\{\{ (?:\"(?:[^\"\\]|\\.)*\"|[^\"{}]|\"[a-z]+\")* \}\})", template)
    return "".join(_run(_parse(iter(tokens))[0], {"$": {"System": system, "Messages": messages}}))


def _parse(tokens: Iterator[str]) -> tuple[list[Any], str]:
    """The nodes up to `else if` or `end`, and that action."""
    nodes: list[Any] = []
    for token in tokens:
        action = token[2:-2].strip() if token.startswith("{{ ") else None
        if action is None:
            nodes.append(("text", token))
        elif action == "end" or action.startswith("else if "):
            return nodes, action
        elif action.startswith(("if ", "range ")):
            branches, condition = [], action
            while condition != "end":
                body, following = _parse(tokens)
                branches.append((condition.removeprefix("else "), body))
                condition = following
            nodes.append(("block", branches))
        else:
            nodes.append(("value", action))
    return nodes, "end"


def _run(nodes: list[Any], scope: dict[str, Any]) -> Iterator[str]:
    for kind, what in nodes:
        if kind == "text":
            yield what
        elif kind == "value":
            yield _value(what, scope)
        elif what[0][0].startswith("range "):
            assert what[0][0] == "range $i, $_ := .Messages"
            for place, message in enumerate(scope["$"]["Messages"]):
                yield from _run(what[0][1], {**scope, "$i": place, ".": message})
        else:
            yield from _run(next((body for condition, body in what if _holds(condition[3:], scope)), []), scope)


def _value(action: str, scope: dict[str, Any]) -> str:
    if action.startswith('"'):
        return str(json.loads(action))
    return str({"$.System": scope["$"]["System"], ".Content": scope.get(".", {}).get("content")}[action])


def _holds(condition: str, scope: dict[str, Any]) -> bool:
    if match := re.fullmatch(r'eq \.Role "(\w+)"', condition):
        return bool(scope["."]["role"] == match[1])
    known = {
        "not .System": not scope["$"]["System"],
        "and $.System (eq $i 1)": scope["$"]["System"] and scope.get("$i") == 1,
    }
    return bool(known[condition])


def as_ollama(template: str, messages: list[Message]) -> str:
    system = "\n\n".join(m.content for m in messages if m.role == "system")
    return execute(template, system, [{"role": m.role, "content": m.content} for m in messages])


KNOWN: dict[str, tuple[str, dict[str, Any], list[list[Message]]]] = {
    "chatml": (CHATML, {}, TALKS),
    "llama3": (LLAMA3, {}, TALKS),
    "gemma": (GEMMA, {}, TALKS),
    "default-system": (DEFAULT_SYSTEM, {}, TALKS),
    "no-system": (NO_SYSTEM, {}, [TALKS[0], TALKS[2]]),
    "qwen3": (QWEN3, {"thinking": False}, TALKS),
}


@pytest.mark.parametrize(("template", "options", "talks"), KNOWN.values(), ids=KNOWN)
def test_the_go_template_writes_the_renderers_prompt(template: str, options: Any, talks: list[list[Message]]) -> None:
    trained = renderer(template, **options)
    pieces = probe(trained)
    check(pieces, trained, talks)
    for messages in talks:
        assert as_ollama(pieces.go(), messages) == pieces.text(messages) == trained.prompt_text(messages)


@pytest.mark.skipif(not shutil.which("go"), reason="Go is not installed")
def test_the_same_by_go_itself() -> None:
    """And so the reader above reads as Go does."""
    chats, expected = [], []
    for template, options, talks in KNOWN.values():
        trained = renderer(template, **options)
        for messages in talks:
            system = "".join(m.content for m in messages if m.role == "system")
            sent = [{"Role": m.role, "Content": m.content} for m in messages]
            chats.append({"Template": probe(trained).go(), "System": system, "Messages": sent})
            expected.append(trained.prompt_text(messages))
    command = ["go", "run", str(Path(__file__).with_name("render.go"))]
    done = subprocess.run(command, input=json.dumps(chats).encode(), capture_output=True, check=True)
    assert json.loads(done.stdout) == expected


def test_chatml_in_go() -> None:
    assert probe(renderer(CHATML)).go() == (
        "{{ range $i, $_ := .Messages }}"
        '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n<|im_start|>assistant\n'
        '{{ else if eq .Role "assistant" }}{{ .Content }}<|im_end|>\n{{ end }}{{ end }}'
    )


def test_a_bos_token_that_ollama_writes_is_left_out() -> None:
    trained = renderer(LLAMA3)
    pieces = probe(trained)
    assert (pieces.bos, pieces.start) == ("<|endoftext|>", "")
    assert without_bos(pieces, trained) == pieces  # this tokenizer adds none
    trained.tokenizer._tokenizer.post_processor = __import__("tokenizers").processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    assert without_bos(pieces, trained).bos == ""


def refusal(template: str, talks: list[list[Message]] = TALKS) -> str:
    trained = renderer(template)
    with pytest.raises(ModelError) as error:
        check(probe(trained), trained, talks)
    (problem,) = error.value.problems
    assert problem.where == "chat template"
    assert problem.fix == "export --to gguf: llama.cpp, LM Studio and others read the template that is in the file"
    return problem.what


def test_templates_that_ollama_cannot_write() -> None:
    dated = CHATML + "{%- if false -%}{{- strftime_now('%d') -}}{%- endif -%}"
    assert refusal(dated) == (
        "cannot be written for Ollama: it writes the date of the day, which an Ollama template cannot"
    )
    numbered = CHATML.replace("message.role + '\n'", "message.role + (loop.index | string) + '\n'")
    assert refusal(numbered).startswith(
        "cannot be written for Ollama: what it writes depends on more than role and content: "
    )
    backwards = CHATML.replace("in messages", "in messages | reverse")
    assert refusal(backwards) == (
        "cannot be written for Ollama: it does not write every message, or not in their order"
    )
    tool = [Message("tool", "42"), HI]
    assert refusal(CHATML, [tool]) == (
        "cannot be written for Ollama: the run's rows hold other roles than system, user and assistant"
    )
