"""The page of all settings, written from the schema itself: the two cannot drift apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from luthier.recipe.schema import Recipe

_INTRODUCTION = """\
# The recipe: every setting

English | [简体中文](recipe.zh-CN.md)

A recipe is a YAML file that says what to train, on what, and where the result goes. Four lines are enough:

```yaml
model: Qwen/Qwen3-0.6B
data: my-rows.jsonl
system: You are a patient violin teacher.
output: runs/teacher
```

`model: REF`, `data: FILE` and `track: [NAME]` are short for `model: {ref: REF}`, `data: {train: FILE}` and
`track: {to: [NAME]}`; `system` may stand on its own line. Any setting can be changed for one run without touching the
file: `luthier train recipe.yaml --set train.epochs=1`.

A key that does not exist, or a value of the wrong type, is an error that names the line to change. Where a setting is
`auto`, Luthier chooses, prints the value with its reason, and keeps both in the run's `resolved.json`. What you set
yourself is obeyed or refused, never changed. A value of `null` means none.
"""


def document() -> str:
    """docs/recipe.md, all of it: Markdown with one table for the recipe itself and one for each of its sections."""
    schema = Recipe.model_json_schema()
    fields = schema["properties"].items()
    sections = {name: schema["$defs"][_section(field)] for name, field in fields if _section(field)}
    plain = {name: field for name, field in fields if not _section(field)}
    parts = [_INTRODUCTION, "## At the top\n", _table({**schema, "properties": plain})]
    for name, section in sections.items():
        parts += [f"\n## {name}\n", _table(section, prefix=f"{name}.")]
    return "\n".join(parts)


def expected(path: Sequence[str]) -> str:
    """What may be written for a setting, as an error says it: `auto or whole number > 0 (what it means)`."""
    schema = Recipe.model_json_schema()
    *sections, name = path
    table = schema["$defs"][_section(schema["properties"][sections[0]])] if sections else schema
    field = table["properties"][name]
    if _section(field):
        return "a section of settings"
    meaning = f" ({field['description']})" if "description" in field else ""
    return (_kind(field).replace(", ", " or ") + meaning).replace("`", "").replace("\n", " ")


def _section(field: dict[str, Any]) -> str:
    """The section's name in the schema's definitions, "" for a plain setting."""
    return str(field.get("$ref", "")).rpartition("/")[2]


def _table(section: dict[str, Any], prefix: str = "") -> str:
    rows = ["| setting | value | default | meaning |", "|---|---|---|---|"]
    for name, field in section["properties"].items():
        default = "**needed**" if name in section.get("required", ()) else _literal(field["default"])
        cells = [f"`{prefix}{name}`", _kind(field), default, field.get("description", "").replace("\n", " ")]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _kind(field: dict[str, Any]) -> str:
    """What may be written: "`auto`, whole number > 0"."""
    if "anyOf" in field:
        return ", ".join(_kind(option) for option in field["anyOf"])
    if "const" in field:
        return _literal(field["const"])
    if "enum" in field:
        return ", ".join(_literal(value) for value in field["enum"])
    return _KINDS[field["type"]](field)


_KINDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "string": lambda field: "text",
    "boolean": lambda field: "`true`, `false`",
    "null": lambda field: "`null`",
    "integer": lambda field: "whole number" + _bounds(field),
    "number": lambda field: "number" + _bounds(field),
    "array": lambda field: f"list of {_kind(field['items'])}",
    "object": lambda field: "`name: name` pairs",
}

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _bounds(field: dict[str, Any]) -> str:
    return " and".join(f" {sign} {field[key]:,.10g}" for key, sign in _BOUNDS.items() if key in field)


def _literal(value: Any) -> str:
    """As it is written in YAML."""
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value, ensure_ascii=False)}`"
