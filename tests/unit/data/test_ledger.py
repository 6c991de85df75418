from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.conversation import Source
from luthier.data.ledger import OUTCOMES, Conflict, Entry, Ledger


def place(number: int) -> Source:
    return Source("data/rows.json", number)


def example_ledger() -> Ledger:
    """Seven rows: two simply used, one cut, one dropped, one held out, two duplicates; one prompt in conflict."""
    ledger = Ledger(conflicts=[Conflict("Who?", 2, (place(1), place(4)))])
    ledger.open(place(number) for number in range(1, 8))
    ledger.add(Entry(place(1), "used"))
    ledger.add(Entry(place(2), "duplicate", "repeats an earlier row", "row 1"))
    ledger.add(Entry(place(3), "dropped", "longer than 64 tokens", "70 tokens"))
    ledger.add(Entry(place(4), "used"))
    ledger.add(Entry(place(5), "used", "prompt cut to 64 tokens", cut=True))
    ledger.add(Entry(place(6), "heldout", "held out"))
    ledger.add(Entry(place(7), "duplicate", "repeats an earlier row", "row 1"))
    return ledger


def test_counts_reasons_and_examples() -> None:
    ledger = example_ledger()
    ledger.check()
    assert ledger.to_json() == {
        "read": 7,
        "used": 3,
        "dropped": 1,
        "heldout": 1,
        "duplicate": 2,
        "cut": 1,
        "conflicts": 1,
        "reasons": {
            "repeats an earlier row": 2,
            "longer than 64 tokens": 1,
            "prompt cut to 64 tokens": 1,
            "held out": 1,
        },
        "examples": [
            {"where": "data/rows.json, row 5", "outcome": "used", "reason": "prompt cut to 64 tokens"},
            {"where": "data/rows.json, row 3", "outcome": "dropped", "reason": "longer than 64 tokens (70 tokens)"},
            {"where": "data/rows.json, row 6", "outcome": "heldout", "reason": "held out"},
            {"where": "data/rows.json, row 2", "outcome": "duplicate", "reason": "repeats an earlier row (row 1)"},
            {"where": "data/rows.json, row 7", "outcome": "duplicate", "reason": "repeats an earlier row (row 1)"},
            {
                "where": "data/rows.json, row 1; data/rows.json, row 4",
                "outcome": "conflict",
                "reason": "2 different answers to one prompt",
            },
        ],
    }


def test_the_file_has_a_line_for_each_row_that_was_not_simply_used(tmp_path: Path) -> None:
    example_ledger().write(tmp_path / "ledger.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["where"], line["outcome"]) for line in lines] == [
        ("data/rows.json, row 2", "duplicate"),
        ("data/rows.json, row 3", "dropped"),
        ("data/rows.json, row 5", "used"),
        ("data/rows.json, row 6", "heldout"),
        ("data/rows.json, row 7", "duplicate"),
        ("data/rows.json, row 1; data/rows.json, row 4", "conflict"),
    ]
    assert lines[2] == {
        "where": "data/rows.json, row 5",
        "outcome": "used",
        "reason": "prompt cut to 64 tokens",
        "cut": True,
    }


def test_the_table_shows_each_outcome_with_reason_and_place(capsys: pytest.CaptureFixture[str]) -> None:
    example_ledger().show()
    example_ledger().warn()
    shown = capsys.readouterr()
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in shown.out.splitlines() if "│" in line]
    assert [row[:3] for row in cells if row[0]] == [
        ["read", "7", ""],
        ["used", "2", ""],
        ["used, cut", "1", "prompt cut to 64 tokens"],
        ["dropped", "1", "longer than 64 tokens"],
        ["heldout", "1", "held out"],
        ["duplicate", "2", "repeats an earlier row"],
    ]
    assert "rows.json, row 3" in shown.out
    assert "1 prompts have several different answers" in shown.err
    assert "'Who?': data/rows.json, row 1, data/rows.json, row 4" in " ".join(shown.err.split())


def test_a_row_without_an_outcome_is_a_mistake_of_ours() -> None:
    ledger = Ledger()
    ledger.open([place(1), place(2)])
    ledger.add(Entry(place(1), "used"))
    with pytest.raises(AssertionError, match=r"1 rows have no outcome, the first is data/rows.json, row 2"):
        ledger.check()


@pytest.mark.parametrize("number", [1, 9])
def test_a_second_outcome_or_an_unread_row_is_a_mistake_of_ours(number: int) -> None:
    ledger = Ledger()
    ledger.open([place(1)])
    ledger.add(Entry(place(1), "used"))
    with pytest.raises(AssertionError, match=f"row {number} was never read, or has an outcome already"):
        ledger.add(Entry(place(number), "dropped", "why"))


@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from(OUTCOMES), st.booleans())))
def test_outcomes_add_up_to_the_rows_read(rows: list[tuple[int, str, bool]]) -> None:
    """Also when a file is given twice, so that a place comes twice."""
    ledger = Ledger()
    ledger.open(place(number) for number, _, _ in rows)
    for number, outcome, cut in rows:
        ledger.add(Entry(place(number), outcome, "why", cut=cut))  # type: ignore[arg-type]
    ledger.check()
    counts = ledger.counts()
    assert counts["read"] == len(rows) == sum(counts[outcome] for outcome in OUTCOMES)
    assert counts["cut"] == sum(cut for _, _, cut in rows)
