"""Each finding on rows that have it, with its count, its words and its places; and on rows that do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luthier.data.look import answers, checks, repeats, scripts
from luthier.data.look.finding import Finding, Place, excerpt
from luthier.data.prepare import Gathered

Read = Callable[..., Gathered]
GOOD = [
    ("Who are you?", "I make violins."),
    ("What wood is it?", "Spruce, cut in winter."),
    ("How old?", "Thirty years."),
]
KEY = "sk-" + "aB3d" * 8


def at(*lines: int) -> str:
    """The places of lines of the file that `read` wrote."""
    return "; ".join(f"{Path('rows.jsonl').absolute()}, line {line}" for line in lines)


def only(found: Any) -> Finding:
    (finding,) = found
    return finding


def test_good_rows_have_no_finding(read: Read) -> None:
    assert checks.run(read(*GOOD)) == []


# ---------------------------------------------------------------- repeats


def test_duplicates_and_conflicts(read: Read) -> None:
    data = read(*GOOD, GOOD[0], ("Who are you?", "A baker."), GOOD[0], ("Who are you?", "A monk."))
    assert only(repeats.duplicates(data)) == Finding(
        "duplicates",
        "note",
        2,
        "rows that repeat an earlier row exactly",
        "nothing: training leaves them out, unless data.duplicates: keep",
        (
            Place(at(4), "as line 1: Who are you? I make violins."),
            Place(at(6), "as line 1: Who are you? I make violins."),
        ),
        "left out",
    )
    assert only(repeats.conflicts(data)) == Finding(
        "conflicts",
        "doubt",
        1,
        "prompts with several different answers",
        "keep the best answer of each; where all are good, the model learns to vary",
        (Place(at(1, 5, 7), "3 answers: Who are you?"),),
    )


def test_near_duplicates(read: Read) -> None:
    """The same but for punctuation; one word of many; and a row that is only alike."""
    long = "The belly of a violin is made of spruce that was cut in winter and dried for seven years"
    data = read(
        ("From what?", long),
        ("From what", long.upper() + "!"),
        ("From what?", long.replace("years", "yearlings")),
        ("From what?", "The belly of a violin is made of spruce, the back of maple, and the fingerboard of ebony."),
    )
    finding = only(repeats.near_duplicates(data))
    assert (finding.count, finding.weight, finding.fix) == (2, "doubt", "")
    assert [place.where for place in finding.places] == [
        at(2, 1),
        at(3, 1),
    ]
    assert [place.text[:5] for place in finding.places] == ["100%:", "92%: "]


def test_exact_repeats_that_are_kept_are_not_near_duplicates_as_well(read: Read) -> None:
    data = read(*GOOD, GOOD[0], duplicates="keep")
    assert list(repeats.near_duplicates(data)) == []
    assert only(repeats.duplicates(data)).count == 1


def test_held_out_rows_that_are_also_trained(read: Read, written: Callable[..., Path], tmp_path: Path) -> None:
    heldout = written(
        tmp_path / "held.jsonl", ("Who are you?", "Nobody."), ("What wood is this?", GOOD[1][1]), ("New", "Yes")
    )
    data = read(*GOOD, heldout=str(heldout))
    assert only(repeats.seen(data)) == Finding(
        "seen",
        "note",
        1,
        "rows of the held-out file with a prompt that is also in training",
        "nothing: they are left out, so that the held-out loss stays true",
        (Place(f"{heldout}, line 1", "Who are you?"),),
    )
    data = read(
        ("Which wood is it then?", "Spruce, cut in winter, and dried."),
        heldout=str(
            written(
                tmp_path / "held.jsonl", ("Which wood is it then", "Spruce, cut in winter and dried!"), ("New", "Yes")
            )
        ),
    )
    assert only(repeats.near_duplicates(data)) == Finding(
        "overlap",
        "problem",
        1,
        "held-out rows (of 2) that nearly repeat a trained row: the held-out loss flatters",
        "delete one of each pair, or hold out a file of other rows (data.heldout)",
        (
            Place(
                f"{heldout}, line 1; {at(1)}",
                "100%: Which wood is it then Spruce, cut in win… | Which wood is it then? Spruce, cut in wi…",
            ),
        ),
    )


# ---------------------------------------------------------------- private


def test_secrets_and_contacts_are_counted_in_rows_and_shown_masked(read: Read) -> None:
    data = read(
        *GOOD,
        ("My key?", f"It is {KEY}, or {KEY}."),
        ("Write to zhen@gong.cn", "Or call 13800138000."),
        {"instruction": "x", "output": "y", "id": KEY},
    )
    assert only(checks.secrets(data)) == Finding(
        "secrets",
        "problem",
        1,
        "rows with what looks like a key, token or password",
        "revoke those that are real, and take them out: a model recites what it was trained on",
        (Place(at(4), "API key: sk-…"),),
        "masked",
    )
    assert only(checks.contacts(data)) == Finding(
        "contacts",
        "problem",
        1,
        "rows with what looks like an e-mail address or a number of a person",
        "take them out, unless they are public: a model recites what it was trained on",
        (Place(at(5), "e-mail address: zhe…"),),
        "masked",
    )


def test_no_finding_shows_a_secret(read: Read) -> None:
    """Every check that shows rows, on rows that are nothing but secrets."""
    rows = [(f"{KEY} zhen@gong.cn?", f"{KEY} {n} 作为一个人工智能 锟斤拷 sk-{'x1' * 15}") for n in (1, 2, 2)]
    found = checks.run(read(*rows, (KEY, KEY), *GOOD))
    assert {finding.name for finding in found} >= {"duplicates", "conflicts", "boilerplate", "echoes", "secrets"}
    assert KEY[:12] not in repr(found) and "zhen@gong" not in repr(found) and "x1x1" not in repr(found)


def test_an_excerpt_is_one_line_without_control_characters() -> None:
    assert excerpt("a\n b\t\x1b[31mc\u202e\u3000d") == "a b \\u001b[31mc\\u202e d"
    assert excerpt("x" * 61) == "x" * 60 + "…"


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("answer", "is_empty"),
    [
        *((answer, True) for answer in ("……", "N/A", "nan.", " TODO ", "待补充")),
        *((answer, False) for answer in ("无", "None", "是", "5", "NaN is a number that is none")),
    ],
)
def test_empty_answers(read: Read, answer: str, is_empty: bool) -> None:
    found = list(answers.empty(read(("Well?", answer))))
    assert [(finding.count, finding.fix) for finding in found] == ([(1, "left out")] if is_empty else [])


@pytest.mark.parametrize(
    ("answer", "is_boilerplate"),
    [
        ("As an AI language model, I cannot feel.", True),
        ("I'm sorry, but I can't help with that.", True),
        ("I was trained by OpenAI.", True),
        ("作为一个人工智能助手，我没有感情。", True),
        ("抱歉，我无法回答这个问题。", True),
        ("I'm sorry, the shop is closed.", False),
        ("作为一个皇后，你要大度。", False),
        ("An AI language model is a program.", False),
    ],
)
def test_boilerplate(read: Read, answer: str, is_boilerplate: bool) -> None:
    found = list(answers.boilerplate(read(("Well?", answer))))
    assert [(finding.count, finding.weight, finding.fix) for finding in found] == (
        [(1, "doubt", "left out")] if is_boilerplate else []
    )


def test_boilerplate_that_is_not_trained_is_none(read: Read) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "As an AI model, no.", "train": False}]
    turns += [{"role": "user", "content": "b"}, {"role": "assistant", "content": "Well, yes."}]
    assert list(answers.boilerplate(read({"messages": turns}))) == []


def test_damaged_and_echoed(read: Read) -> None:
    data = read(*GOOD, ("锟斤拷", "What?"), ("CafÃ©?", "Yes."), ("Say it", " Say it"), ("It\u2019s \ufffd", "Is it?"))
    assert only(answers.damaged(data)).count == 3
    assert [place.where[-6:] for place in only(answers.damaged(data)).places] == ["line 4", "line 5", "line 7"]
    echoes = only(answers.echoes(data))
    assert (echoes.count, echoes.places) == (1, (Place(at(6), "Say it"),))


def test_repeated_answers(read: Read) -> None:
    data = read(*GOOD, *((f"Is it {n}?", "Yes.") for n in range(6)), *((f"Was it {n}?", "No.") for n in range(4)))
    assert only(answers.repeated_answers(data)) == Finding(
        "repeated_answers",
        "note",
        1,
        "answers to 5 or more different questions, and to one in a hundred",
        "meant for classes (yes, no); else vary them, or the model answers so to anything",
        (Place(at(4), "6 times: Yes."),),
    )


# ---------------------------------------------------------------- scripts


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("I make violins", "Latin"),
        ("我用 TensorFlow 训练", "Chinese"),
        ("写真を撮る", "Japanese"),
        ("바이올린", "Korean"),
        ("Я делаю скрипки", "Cyrillic"),
        ("สวัสดี", "Thai"),
        ("12 + 5 = 17!", "no letters"),
        ("ሰላም", "other"),
        ("", "no letters"),
    ],
)
def test_the_script_of_a_text(text: str, script: str) -> None:
    assert scripts.script_of(text) == script


def test_scripts_and_the_few_rows_in_another(read: Read) -> None:
    chinese = [(f"第{n}把琴？", f"这是第{n}把琴。") for n in range(40)]
    data = read(*chinese, ("你是谁？", "I make violins."), ("五加五？", "10"))
    assert vars(scripts.scripts(data)) == {
        "questions": {"Chinese": 42},
        "answers": {"Chinese": 40, "Latin": 1, "no letters": 1},
    }
    finding = only(scripts.other_script(data))
    assert (finding.count, finding.what) == (1, "answers not in Chinese letters, as nearly all others are")
    assert finding.places == (Place(at(41), "I make violins."),)


def test_rows_that_translate_are_not_odd(read: Read) -> None:
    assert list(scripts.other_script(read(("好", "Good"), ("Good", "好"), ("琴", "Violin"), ("Violin", "琴")))) == []


# ---------------------------------------------------------------- all


def test_bad_rows_that_are_left_out(read: Read) -> None:
    finding = only(checks.bad_rows(read(*GOOD, {"instruction": "x"}, bad_rows="drop")))
    assert (finding.count, finding.places) == (1, (Place(at(4), "has no `output`"),))


def test_the_gravest_come_first(read: Read) -> None:
    found = checks.run(read(*GOOD, GOOD[0], ("Who are you?", "……"), ("Mail?", "zhen@gong.cn")))
    assert [(finding.weight, finding.name) for finding in found] == [
        ("problem", "contacts"),
        ("problem", "empty"),
        ("doubt", "conflicts"),
        ("note", "duplicates"),
    ]


def test_of_many_rows_each_check_shows_how_far_it_is(
    read: Read, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "MANY", 3)
    checks.run(read(*GOOD), [checks.secrets, repeats.near_duplicates])
    assert capsys.readouterr().out == "Looking for secrets …\nLooking for near duplicates …\n"
    ticks: list[int] = []
    data = replace(read(*((f"Question {n}?", f"Answer {n}.") for n in range(2500))), tick=ticks.append)
    list(answers.empty(data))
    assert ticks == [1000, 1000, 500]
    ticks.clear()
    list(repeats.near_duplicates(data))
    assert ticks == [2000, 500]


def test_plain_text(read: Read) -> None:
    data = read({"text": "Spruce for the top."}, {"text": f"Maple {KEY}"}, {"text": "Spruce for the top."})
    assert [finding.name for finding in checks.run(data)] == ["secrets", "duplicates"]
    assert vars(scripts.scripts(data)) == {"questions": {}, "answers": {"Latin": 2}}
