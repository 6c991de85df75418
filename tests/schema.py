"""Whether an event is one that luthier.report.events declares."""

from __future__ import annotations

from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from luthier.report.events import KINDS


def differences(event: Mapping[str, Any]) -> list[str]:
    """How a line of events.jsonl differs from the schema; empty where it does not."""
    if event.get("event") not in KINDS:
        return [f"no such event: {event.get('event')}"]
    hints = {**get_type_hints(KINDS[event["event"]]), "time": float}
    missing = [f"{name} is missing" for name in hints if name not in event]
    unknown = [f"{name} is not known" for name in event if name not in hints]
    wrong = [f"{name}: {event[name]!r}" for name in hints.keys() & event.keys() if not fits(event[name], hints[name])]
    return [*missing, *unknown, *wrong]


def fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of a type. JSON has one kind of number, and a count is one without a fraction."""
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, each) for each in get_args(hint))
    if origin is list:
        return isinstance(value, list) and all(fits(item, get_args(hint)[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint
