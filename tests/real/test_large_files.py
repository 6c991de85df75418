"""Files as large as they come: read in bounded memory, and one bad row among a million is named."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from driver import luthier, luthier_process

pytestmark = pytest.mark.real

ROWS = 1_000_000


def test_a_million_rows_with_a_bad_one_at_the_end(tmp_path: Path, tiny_model: Path) -> None:
    """94 MB of rows; torch alone takes 0.4 GB of what is allowed here."""
    file = tmp_path / "million.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        for i in range(ROWS - 1):
            row = {"instruction": f"What is {i} plus {i}?", "output": f"It is {2 * i}, as everybody knows."}
            stream.write(json.dumps(row) + "\n")
        stream.write('{"instruction": "x"}\n')
    process = luthier_process("data", file, "-m", tiny_model)
    assert process.stdout and process.stderr
    process.stdout.read()
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)  # of this one process: RUSAGE_CHILDREN is the most of any that was
    process.returncode = os.waitstatus_to_exitcode(status)
    assert (process.returncode, error) == (
        2,
        f"✗ {file}, line 1000000: has no `output`\n  → add `output`, or delete the row\n",
    )
    unit = 1 if sys.platform == "darwin" else 1024
    assert usage.ru_maxrss * unit < 2e9


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
