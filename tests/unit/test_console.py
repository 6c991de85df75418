"""What is printed, and what an answer cannot make the terminal do."""

from __future__ import annotations

import io
import json
import sys

import pytest

from luthier import console
from luthier.errors import DataError, Problem


def test_an_answer_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.write("red \x1b[31mwood\x07\x9b2J, 云杉\tand\nmaple 👩‍🔧")
    assert capsys.readouterr().out == "red [31mwood2J, 云杉\tand\nmaple 👩‍🔧"


def test_text_is_taken_literally(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("[bold]wood[/bold] :smile:")
    assert capsys.readouterr().out == "[bold]wood[/bold] :smile:\n"


def test_all_problems_of_an_error_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    console.fail(DataError(Problem("a.json, row 1", "is empty", "delete it"), Problem("b.json", "is no file", "look")))
    assert capsys.readouterr().err == "✗ a.json, row 1: is empty\n  → delete it\n✗ b.json: is no file\n  → look\n"


def test_with_json_people_read_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_json", True)
    console.say("for people")
    console.result({"loss": float("nan"), "name": "甄嬛"})
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ({"loss": None, "name": "甄嬛"}, "for people\n")


def test_a_command_is_what_the_user_can_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LUTHIER_COMMAND", raising=False)
    assert console.command("chat runs/demo") == "luthier chat runs/demo"
    monkeypatch.setenv("LUTHIER_COMMAND", "python start.py")
    assert console.command("chat runs/demo") == "python start.py chat runs/demo"


def test_bytes_that_are_no_text_can_be_typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"wood \xff\n"), encoding="utf-8"))
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    console.set_up_streams()
    assert console.ask("> ") == "wood \ufffd"
