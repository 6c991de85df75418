"""When a step may be applied, and when the training ends."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.errors import CheckFailed, Problem
from luthier.training.guard import MOST_OVERFLOWS, Guard

REASON = "its loss is not a finite number"


def test_the_third_in_a_row_ends_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[Any] = []
    guard = Guard(lambda *each: told.append(each))
    for step, finite in ((1, False), (2, False), (3, True), (4, False), (5, False)):
        assert guard.passes(step, finite, True, scaled=False) is finite
        if not finite:
            guard.skip(step, REASON, ["rows.json, row 1"])
    assert not guard.passes(6, True, False, scaled=False)  # a gradient counts as a loss does
    with pytest.raises(CheckFailed) as caught:
        guard.skip(6, "its gradient is not a finite number", [f"rows.json, row {n}" for n in range(1, 8)])
    what = "its gradient is not a finite number in 3 steps one after another: the training has diverged"
    fix = "mend or remove the rows named above, or lower train.learning_rate, and train again with --fresh"
    assert caught.value.problems == (Problem("step 6", what, fix),)
    assert [step for step, _, _ in told] == [1, 2, 4, 5, 6]
    assert capsys.readouterr().err.splitlines()[-1] == (
        "note: step 6: its gradient is not a finite number, so it is not applied. Rows: rows.json, row 1, rows.json, "
        "row 2, rows.json, row 3, rows.json, row 4, rows.json, row 5 and 2 more"
    )


def test_float16_overflows_are_normal_until_they_persist() -> None:
    guard = Guard()
    for step in range(1, MOST_OVERFLOWS):
        assert guard.passes(step, True, False, scaled=True)
    assert guard.passes(MOST_OVERFLOWS, True, True, scaled=True)  # the count begins anew
    for step in range(1, MOST_OVERFLOWS):
        assert guard.passes(step, True, False, scaled=True)
    with pytest.raises(CheckFailed) as caught:
        guard.passes(20, True, False, scaled=True)
    what = "float16 overflowed in 20 steps one after another, up to step 20"
    assert caught.value.problems == (Problem("model.dtype", what, "set model.dtype: bfloat16 or float32"),)


def test_a_loss_that_is_none_counts_in_float16_too() -> None:
    assert not Guard().passes(1, False, False, scaled=True)
