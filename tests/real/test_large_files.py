"""Files as large as they come: read in bounded memory, and one bad row among a million is named."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import psutil
import pytest
from driver import Done, luthier, luthier_process

pytestmark = pytest.mark.real

ROWS = 1_000_000
MANY = 200_000


def measured(*arguments: object) -> tuple[Done, int]:
    """What the command did, and the most bytes that it was seen to hold.

    Looked at while it runs: the system's own peak of a child begins with what its parent held when it started it.
    """
    process = luthier_process(*arguments)
    watched, peak = psutil.Process(process.pid), 0
    while True:
        try:
            out, err = process.communicate(timeout=0.1)
            return Done(process.returncode, out, err), peak
        except subprocess.TimeoutExpired:
            peak = max(peak, watched.memory_info().rss)


def test_a_million_rows_with_a_bad_one_at_the_end(tmp_path: Path, tiny_model: Path) -> None:
    """94 MB of rows; torch alone takes 0.4 GB of what is allowed here."""
    file = tmp_path / "million.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        for i in range(ROWS - 1):
            row = {"instruction": f"What is {i} plus {i}?", "output": f"It is {2 * i}, as everybody knows."}
            stream.write(json.dumps(row) + "\n")
        stream.write('{"instruction": "x"}\n')
    done, peak = measured("data", file, "-m", tiny_model)
    assert (done.status, done.err) == (
        2,
        f"✗ {file}, line 1000000: has no `output`\n  → add `output`, or delete the row\n",
    )
    assert 0 < peak < 2e9


def test_what_is_wrong_with_two_hundred_thousand_rows(tmp_path: Path) -> None:
    """Nearly all of them alike, so that every row has thousands that it may repeat; read, compared and cleaned."""
    file, clean = tmp_path / "many.jsonl", tmp_path / "clean.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        for i in range(MANY):
            mail = f" (ask luthier{i}@cremona.it)" if i % 20_000 == 7 else ""
            row = {"instruction": f"What is {i // 2} plus {i // 2}?", "output": f"It is {i}, as everybody knows.{mail}"}
            stream.write(json.dumps(row) + "\n")
        stream.write(json.dumps(row) + "\n")
    done, peak = measured("data", file, "--set", "data.holdout=0", "--fix", clean, "--json")
    assert done.status == 0, done.err
    counts = {finding["name"]: finding["count"] for finding in done.json["findings"]}
    assert {name: counts[name] for name in ("contacts", "conflicts", "duplicates")} == {
        "contacts": 10,
        "conflicts": 100_000,
        "duplicates": 1,
    }
    assert done.json["fixed"]["kept"] == MANY
    assert done.json["fixed"]["changes"] == {"masked: e-mail address": 10, "left out: duplicate": 1}
    assert 0 < peak < 2e9


def test_a_row_of_ten_megabytes(tmp_path: Path, tiny_model: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [{"instruction": "Hi", "output": "Yes"}, {"instruction": "x", "output": "word " * 2_000_000}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = luthier("data", file, "-m", tiny_model, "--rows", 0, "--json", "--set", "data.holdout=0")
    assert done.json["ledger"]["examples"] == [
        {
            "where": f"{file}, line 2",
            "outcome": "dropped",
            "reason": "longer than 256 tokens (10,000,010 tokens)",
        }
    ]
