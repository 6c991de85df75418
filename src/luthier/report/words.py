"""Numbers and paths as people read and type them, the same on the page, in the live view and in tables."""

from __future__ import annotations

import math
from pathlib import Path


def duration(seconds: float) -> str:
    """45s, 2m10s, 1h05m"""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def size(count: float) -> str:
    """Bytes in decimal units: 1.9 GB, 350 MB"""
    return f"{count / 1e9:.1f} GB" if count >= 999.5e6 else f"{count / 1e6:.0f} MB"


def loss(value: float | None) -> str:
    """2.87, with a dash for a loss that was not measured or is not finite. Small losses keep two digits that matter."""
    if value is None:
        return "–"
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"


def perplexity(loss: float | None) -> str:
    """Of a loss in nats: 17.6, 1,097, a dash where there is none"""
    if loss is None:
        return "–"
    value = math.exp(min(loss, 700))
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"


def percent(share: float | None) -> str:
    """31 %, 0.42 %, a dash where there is none"""
    if share is None:
        return "–"
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.2g} %"


def change(before: float, after: float) -> str:
    """−27 %"""
    return f"{(after - before) / before * 100:+.0f} %".replace("-", "−")


def typed(path: Path) -> str:
    """A path as one word of a command line, in every shell."""
    return f'"{path}"' if " " in str(path) else str(path)
