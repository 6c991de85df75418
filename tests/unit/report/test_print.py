"""The page as it is printed from a dark screen. Skipped where there is no browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import launched, needs_chromium, pages

from luthier.report.languages import LANGUAGES
from luthier.report.page import write_report
from luthier.report.record import RunFolder

pytestmark = needs_chromium
PAPER = {"A4": 794 - 2 * 57, "Letter": 816 - 2 * 57}  # pixels between margins of 15 mm


@pytest.mark.parametrize("paper", PAPER)
@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_is_cut_hidden_or_dark_on_paper(finished: RunFolder, tmp_path: Path, language: str, paper: str) -> None:
    file = write_report(finished, tmp_path / "report.html", LANGUAGES[language])
    with launched() as browser, pages(browser, []) as new_page:
        page = new_page(color_scheme="dark", viewport={"width": PAPER[paper], "height": 900})
        page.goto(file.as_uri())
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("document.documentElement.scrollWidth") == PAPER[paper]
        assert page.locator(".hint, [type=radio] + label, .cursor, .tip").locator("visible=true").count() == 0
        assert (
            page.locator("details").count()
            == page.locator("details > :nth-child(2)").locator("visible=true").count()
            > 0
        )
        paint = "(name) => getComputedStyle(document.documentElement).getPropertyValue(name)"
        colors = [page.evaluate(paint, f"--{name}") for name in ("paper", "ink", "read-a", "trained-a")]
        assert colors == ["#fff", "#000", "#f1ece3", "#f7dfc9"]
