"""The curves in a real browser: a part enlarged, points read. Skipped where there is no browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import launched, needs_chromium, pages

from luthier.recipe.schema import Recipe
from luthier.report.compare import write_comparison
from luthier.report.page import write_report
from luthier.report.record import RunFolder

pytestmark = needs_chromium
Visit = Callable[..., Any]
STEPS = 1000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as browser:
        yield browser


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """`visit(file)` opens a page; errors, also what its policy forbids, fail the test."""
    with pages(browser, []) as new_page:

        def open_page(file: Path, **options: Any) -> Any:
            page = new_page(**{"viewport": {"width": 1100, "height": 900}, **options})
            page.goto(file.as_uri())
            page.locator(".plot").scroll_into_view_if_needed()
            return page

        yield open_page


def loss_of(step: int) -> float:
    """Falls in a straight line, every other step a little lower: no two are alike."""
    return 4 - 3 * step / STEPS - 0.01234567 * (step % 2)


@pytest.fixture
def long_run(tmp_path: Path, recipe: dict[str, Any]) -> RunFolder:
    """1,000 steps, so that the page without script draws means of four."""
    run = RunFolder(tmp_path / "long").create()
    run.write_recipe(Recipe.model_validate(recipe))
    run.log({"event": "start", "step": 0, "total_steps": STEPS, "resumed": False})
    for step in range(1, STEPS + 1):
        run.log({"event": "step", "step": step, "loss": loss_of(step), "tokens": 100, "seconds": 0.5})
        if step % 250 == 0:
            run.log({"event": "evaluation", "step": step, "heldout_loss": 2.5 + step / 10_000})
    return run


def drag(page: Any, start: float, end: float) -> None:
    """Over a part of the plot's width."""
    box = page.locator(".plot").bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + start * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + end * box["width"], y, steps=4)
    page.mouse.up()


def point_at(page: Any, share: float) -> list[str]:
    """What is told there."""
    box = page.locator(".plot").bounding_box()
    page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 3)
    return texts(page, ".tip:not([hidden]) div")


def texts(page: Any, selector: str) -> list[str]:
    return [str(text) for text in page.locator(selector).all_text_contents()]


def test_a_part_is_enlarged_and_the_whole_shown_again(visit: Visit, long_run: RunFolder) -> None:
    page = visit(write_report(long_run))
    whole = texts(page, ".plot > .x.on-step")
    assert whole == ["0", "200", "400", "600", "800", "1,000"]
    assert page.locator(".whole").is_hidden()
    drag(page, 0.2, 0.3)
    assert texts(page, ".zoom .x") == ["200", "220", "240", "260", "280", "300"]
    assert texts(page, ".zoom .y") == ["2.4", "2.6", "2.8", "3.0", "3.2", "3.4"]  # held-out 2.525 to loss 3.4
    assert texts(page, ".zoom .unit") == ["step"]
    assert page.locator(".plot > .x.on-step >> visible=true").count() == 0
    drawn = page.locator(".zoom polyline.raw").get_attribute("points").split()
    assert len(drawn) == 103  # every step of 200 to 300, and one more on either side
    page.locator(".plot").dblclick()
    assert page.locator(".zoom > *").count() == 0
    assert page.locator(".plot > .x.on-step >> visible=true").count() == len(whole)
    drag(page, 0.5, 0.52)
    assert texts(page, ".zoom .x") == ["500", "505", "510", "515", "520"]
    drag(page, 0.25, 0.75)
    assert texts(page, ".zoom .x") == ["506", "508", "510", "512", "514"]
    page.click(".whole")
    assert page.locator(".zoom > *").count() == 0
    drag(page, 0.5, 0.501)  # as good as a click
    assert page.locator(".zoom > *").count() == 0


def test_a_point_tells_what_the_events_have(visit: Visit, long_run: RunFolder) -> None:
    page = visit(write_report(long_run))
    assert point_at(page, 0.333) == [f"step 333 · 33,300 tokens · 2m46s · loss {loss_of(333):.6g}"]
    assert point_at(page, 0.75) == [
        f"step 750 · 75,000 tokens · 6m15s · loss {loss_of(750):.6g}",
        "step 750 · 75,000 tokens · 6m15s · held-out 2.575",
    ]
    drag(page, 0.2, 0.3)
    assert point_at(page, 0.77) == [f"step 277 · 27,700 tokens · 2m18s · loss {loss_of(277):.6g}"]
    page.locator(".plot").focus()
    page.keyboard.press("ArrowRight")
    assert texts(page, ".tip div") == [f"step 278 · 27,800 tokens · 2m19s · loss {loss_of(278):.6g}"]
    page.keyboard.press("Escape")
    assert page.locator(".zoom > *").count() == 0
    page.mouse.move(0, 0)
    assert texts(page, ".tip:not([hidden]) div") == []


def test_the_part_stays_when_the_axis_is_changed(visit: Visit, long_run: RunFolder) -> None:
    page = visit(write_report(long_run))
    drag(page, 0.2, 0.3)
    page.click("label[for=by-tokens]")
    assert texts(page, ".zoom .x") == ["20k", "22k", "24k", "26k", "28k", "30k"]
    page.click("label[for=by-seconds]")
    assert texts(page, ".zoom .x") == ["1.8", "2", "2.2", "2.4"]
    assert texts(page, ".zoom .unit") == ["minutes of training"]
    page.click("label[for=show-heldout]")  # what is hidden takes no room
    assert texts(page, ".zoom .y") == ["3.0", "3.1", "3.2", "3.3", "3.4"]


def test_several_runs_are_read_side_by_side(visit: Visit, long_run: RunFolder, finished: RunFolder) -> None:
    page = visit(write_comparison([long_run, finished]))
    assert point_at(page, 0.0602) == [
        f"long · step 60 · 6,000 tokens · 30s · loss {loss_of(60):.6g}",
        "workshop · step 60 · loss 2.31055",
    ]
    page.click("label[for=run-0]")
    assert [text.split(" · ")[0] for text in point_at(page, 0.085)] == ["workshop"]


def test_on_a_phone_nothing_is_wider_than_the_screen(visit: Visit, long_run: RunFolder) -> None:
    page = visit(write_report(long_run), viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    box = page.locator(".plot").bounding_box()
    page.touchscreen.tap(box["x"] + 0.5 * box["width"], box["y"] + 50)
    assert texts(page, ".tip:not([hidden]) div")[0].startswith("step 500 · ")
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_without_script_the_curves_are_whole(visit: Visit, long_run: RunFolder) -> None:
    page = visit(write_report(long_run), java_script_enabled=False)
    assert page.locator(".hint").is_hidden()
    assert len(page.locator(".on-step polyline.raw").get_attribute("points").split()) == 250
    box = page.locator(".plot").bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 20)
    assert page.locator("b.raw:hover").get_attribute("data-tip") == "step 500 · 50,000 tokens · 4m10s · loss 2.50"
