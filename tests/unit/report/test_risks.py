from __future__ import annotations

from typing import Any

import pytest

from luthier.report import risks


def found(record: dict[str, Any], events: list[dict[str, Any]] | None = None) -> dict[str, dict[str, str]]:
    return dict(risks.find(record, events or []))


@pytest.fixture
def calm(record: dict[str, Any]) -> dict[str, Any]:
    """A run that nothing speaks against."""
    record["data"]["ledger"]["conflicts"] = 0
    record["heldout"]["measured"] = []
    return record


def test_a_calm_run_has_none(calm: dict[str, Any]) -> None:
    assert found(calm) == {}


def evaluations(*losses: float | None) -> list[dict[str, Any]]:
    return [{"event": "evaluation", "step": 1000 * index, "heldout_loss": loss} for index, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "values"),
    [
        ((3.0, 2.0, 2.5), {"step": "1,000", "loss": "2.00", "last": "2.50"}),
        ((3.0, 2.0, None, 2.03), {"step": "1,000", "loss": "2.00", "last": "2.03"}),
        ((3.0, 2.0, 2.02), None),
        ((2.0, 2.5), None),
        ((None,), None),
    ],
)
def test_held_out_loss_that_fell_and_rose(losses: tuple[float | None, ...], values: dict[str, str] | None) -> None:
    assert dict(risks.find(None, evaluations(*losses))) == ({"risk_turned": values} if values else {})


@pytest.mark.parametrize(
    ("section", "changes", "risk"),
    [
        (("result",), {"train_loss": 1.43}, {"risk_gap": {"train": "1.43", "heldout": "2.87"}}),
        (("result",), {"train_loss": 1.44}, {}),
        (("result",), {"train_loss": None}, {}),
        (("data",), {"repeated": 1200}, {"risk_repeated": {"count": "1,200"}}),
        (("data", "ledger"), {"conflicts": 50}, {"risk_conflicts": {"count": "50"}}),
        (("data", "ledger"), {"heldout": 0}, {"risk_no_heldout": {}}),
        (("data", "ledger"), {"heldout": 19}, {"risk_few_heldout": {"rows": "19"}}),
        (("data", "ledger"), {"dropped": 36}, {"risk_dropped": {"count": "36", "read": "708"}}),
        (("data", "ledger"), {"dropped": 35}, {}),
        (("result",), {"end_probability_after": 0.49}, {"risk_endless": {"probability": "49%"}}),
    ],
)
def test_what_the_record_shows(
    calm: dict[str, Any], section: tuple[str, ...], changes: dict[str, Any], risk: dict[str, dict[str, str]]
) -> None:
    place = calm
    for name in section:
        place = place[name]
    place.update(changes)
    assert found(calm) == risk


def test_rows_that_got_worse_though_the_mean_got_better(record: dict[str, Any]) -> None:
    """One of three; a row without figures does not count."""
    record["data"]["ledger"]["conflicts"] = 0
    assert found(record) == {"risk_hurt": {"count": "1", "rows": "3"}}
    record["result"]["heldout_loss_after"] = 4.0  # then the verdict says it
    assert found(record) == {}


def test_skipped_steps(calm: dict[str, Any]) -> None:
    skip = {"event": "skip", "step": 3, "reason": "its loss is not a finite number", "rows": []}
    assert found(calm, [skip, skip]) == {"risk_skipped": {"count": "2"}}


def test_the_gravest_comes_first(record: dict[str, Any]) -> None:
    record["result"]["end_probability_after"] = 0.1
    assert [key for key, _ in risks.find(record, evaluations(3.0, 2.0, 2.5))] == [
        "risk_turned",
        "risk_conflicts",
        "risk_endless",
        "risk_hurt",
    ]
