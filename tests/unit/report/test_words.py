from __future__ import annotations

from pathlib import Path

import pytest

from luthier.report import words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (44.6, "45s"), (59.6, "1m00s"), (130, "2m10s"), (3599.7, "1h00m"), (3900, "1h05m"), (90_000, "25h00m")],
)
def test_duration(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(1_930_000_000, "1.9 GB"), (350e6, "350 MB"), (999.4e6, "999 MB"), (999.6e6, "1.0 GB")]
)
def test_size(count: float, text: str) -> None:
    assert words.size(count) == text


@pytest.mark.parametrize(
    ("value", "text"), [(2.8731, "2.87"), (12.0, "12.00"), (0.0123, "0.012"), (0.0, "0.00"), (None, "–")]
)
def test_loss(value: float | None, text: str) -> None:
    assert words.loss(value) == text


@pytest.mark.parametrize(
    ("before", "after", "text"), [(3.91, 2.87, "−27 %"), (2.05, 2.41, "+18 %"), (1.0, 3.5, "+250 %")]
)
def test_change(before: float, after: float, text: str) -> None:
    assert words.change(before, after) == text


@pytest.mark.parametrize(
    ("loss", "text"),
    [(0.0, "1.0"), (2.87, "17.6"), (4.7, "110"), (7.0, "1,097"), (20.0, "4.9e+08"), (1e4, "1.0e+304"), (None, "–")],
)
def test_perplexity(loss: float | None, text: str) -> None:
    assert words.perplexity(loss) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0.314, "31 %"), (1.0, "100 %"), (0.0042, "0.42 %"), (0.0, "0 %"), (None, "–")]
)
def test_percent(share: float | None, text: str) -> None:
    assert words.percent(share) == text


def test_typed() -> None:
    assert words.typed(Path("runs/one")) == str(Path("runs/one"))
    assert words.typed(Path("my runs/one")) == f'"{Path("my runs/one")}"'
