"""docs/events.md tells what luthier.report.events declares, in both languages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from schema import differences

from luthier.report import events

DOCS = Path(__file__).parents[3] / "docs"
PAGES = ["events.md", "events.zh-CN.md"]
TYPES = {
    int: "integer",
    float: "number",
    str: "text",
    bool: "boolean",
    float | None: "number or null",
    str | None: "text or null",
    list[str]: "list of text",
    dict[str, Any]: "object",
    dict[str, Any] | None: "object or null",
}
CHINESE = {
    "整数": "integer",
    "数": "number",
    "文本": "text",
    "布尔": "boolean",
    "数或 null": "number or null",
    "文本或 null": "text or null",
    "文本列表": "list of text",
    "对象": "object",
    "对象或 null": "object or null",
}


def declared() -> dict[str, dict[str, str]]:
    """Event → field → type in words, without the fields that all events have."""
    found = {}
    for kind, form in events.KINDS.items():
        hints = get_type_hints(form)
        assert get_args(hints.pop("event")) == (kind,)
        assert hints.pop("step") is int
        found[kind] = {name: TYPES[hint] for name, hint in hints.items()}
    return found


def documented(page: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for section in re.split(r"^## ", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        kind = re.match(r"`(\w+)`", section)
        if kind:
            rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, flags=re.MULTILINE)
            found[kind[1]] = {name: CHINESE.get(words, words) for name, words in rows}
    return found


@pytest.mark.parametrize("page", PAGES)
def test_the_page_has_every_event_with_every_field_and_its_type(page: str) -> None:
    assert documented(page) == declared()


@pytest.mark.parametrize("page", PAGES)
def test_the_example_is_as_the_schema_says(page: str) -> None:
    [example] = re.findall(r"```json\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [json.loads(line) for line in example.splitlines()]
    assert [(line["event"], differences(line)) for line in lines] == [
        (kind, []) for kind in ("start", "evaluation", "sample", "step", "save", "finish")
    ]


def test_every_declared_event_is_one_of_the_union() -> None:
    assert set(get_args(events.Event)) == set(events.KINDS.values())


@pytest.mark.parametrize(
    ("event", "wrong"),
    [
        ({"event": "nosuch"}, ["no such event: nosuch"]),
        ({"event": "finish", "time": 1.5, "step": 2}, []),
        ({"event": "finish", "time": 1}, ["step is missing"]),
        ({"event": "finish", "time": "now", "step": True}, ["step: True", "time: 'now'"]),
        ({"event": "finish", "time": 1, "step": 2, "more": 3}, ["more is not known"]),
        ({"event": "skip", "time": 1, "step": 2, "reason": "x", "rows": [1]}, ["rows: [1]"]),
        ({"event": "evaluation", "time": 1, "step": 2, "heldout_loss": None, "seconds": None}, ["seconds: None"]),
    ],
)
def test_what_differs_is_found(event: dict[str, Any], wrong: list[str]) -> None:
    assert sorted(differences(event)) == wrong
