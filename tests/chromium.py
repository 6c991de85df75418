"""A real browser for tests of pages. Without one, or without playwright, they are skipped."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")

needs_chromium = [
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="pip install -e .[browser]"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (or in the variable CHROMIUM)"),
]
"""The `pytestmark` of such a file."""

NewPage = Callable[..., Any]


@contextlib.contextmanager
def launched() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextlib.contextmanager
def pages(browser: Any, complaints: list[str]) -> Iterator[NewPage]:
    """`new_page(**options)` opens an empty page in a context of its own; a page's errors become complaints.

    AssertionError at the end where there is any complaint.
    """
    contexts = []

    def new_page(**options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        return page

    yield new_page
    for context in contexts:
        context.close()
    assert complaints == []
