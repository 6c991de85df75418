"""Every input that the fuzzer starts from or once failed on, as a plain test: an answer or a LuthierError."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.readers import READERS, name_of, run_one

CASES = sorted((Path(__file__).parent / "cases").iterdir())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case(case: Path) -> None:
    run_one(case.read_bytes())


def test_the_cases_reach_every_reader() -> None:
    assert {name_of(case.read_bytes()) for case in CASES} == {name_of(bytes([i])) for i in range(len(READERS))}
