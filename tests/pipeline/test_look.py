"""`luthier data` as the tool that is opened first: with no model, on rows with everything wrong, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

from driver import PAIRS, Workplace, files_in, luthier, write_rows

KEY = "sk-" + "aB3d" * 8
SPOILT = [
    *PAIRS,
    *PAIRS[:3],  # duplicates
    ("Who are you?", "A baker."),  # a conflict
    ("who are you", "I make violins, in Cremona!"),  # nearly the first row
    ("Your key?", f"It is {KEY}."),
    ("Your mail?", "Write to zhen@gong.cn, or call 13800138000."),
    ("Do you feel?", "As an AI language model, I do not."),
    ("Well?", "N/A"),
    ("Hä?", "CafÃ© au lait"),
    ("Say it.", "Say it."),
]


def test_all_is_found_without_a_model_and_nothing_secret_is_said(tmp_path: Path) -> None:
    file, page = write_rows(tmp_path / "rows.jsonl", SPOILT), tmp_path / "page.html"
    done = luthier("data", file, "--set", "data.holdout=0", "--html", page, "--json")
    assert done.status == 0, done.err
    found = done.json
    assert found.keys() == {"ok", "files", "schema", "findings", "scripts", "characters"}
    assert [(each["name"], each["count"]) for each in found["findings"]] == [
        ("secrets", 1),
        ("contacts", 1),
        ("empty", 1),
        ("damaged", 1),
        ("conflicts", 1),
        ("near_duplicates", 1),
        ("boilerplate", 1),
        ("echoes", 1),
        ("other_script", 1),
        ("duplicates", 3),
    ]
    for text in (done.out, done.err, page.read_text(encoding="utf-8")):
        assert KEY[:8] not in text and "zhen@gong" not in text and "13800138" not in text
    assert all(each["what"][1:] in done.err and each["todo"] in done.err for each in found["findings"])


def test_the_cleaned_file_has_nothing_left_to_fix(shop: Workplace, tmp_path: Path) -> None:
    file, clean = write_rows(tmp_path / "rows.jsonl", SPOILT), tmp_path / "clean.jsonl"
    with file.open("a", encoding="utf-8") as stream:
        stream.write('{"instruction": "broken\n')
    done = luthier("data", file, "-m", shop.model, "--fix", clean, "--json")
    assert done.status == 0, done.err
    assert done.json["fixed"] == {
        "file": str(clean),
        "log": str(tmp_path / "clean.fixes.jsonl"),
        "read": 36,
        "kept": 30,
        "changes": {
            "left out: duplicate": 3,
            "left out: bad row": 1,
            "masked: API key": 1,
            "masked: e-mail address": 1,
            "masked: phone number": 1,
            "left out: boilerplate": 1,
            "left out: empty answer": 1,
        },
    }
    assert f"Fixed {clean}: 30 of 36 rows, every change in {tmp_path / 'clean.fixes.jsonl'}" in done.err
    log = [json.loads(line) for line in (tmp_path / "clean.fixes.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(log) == 9
    again = luthier("data", clean, "-m", shop.model, "--json").json
    assert [each["name"] for each in again["findings"] if each["fix"]] == []
    assert again["ledger"]["read"] == 30


def test_fix_overwrites_nothing(shop: Workplace, tmp_path: Path) -> None:
    rows = shop.rows.read_bytes()
    done = luthier("data", shop.rows, "--fix", shop.rows)
    assert (done.status, done.out) == (2, "")
    assert done.err == (
        f"✗ {shop.rows}: is there already, and is not overwritten\n  → name another file, or delete it first\n"
    )
    assert shop.rows.read_bytes() == rows
    assert files_in(tmp_path) == set()
