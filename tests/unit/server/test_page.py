"""The chat page in a real browser, against a real server. Skipped where there is no browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import launched, needs_chromium, pages
from serving import Running, paused, serving, until

from luthier.inference.batcher import Token
from luthier.server.door import Rules

pytestmark = needs_chromium
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(shelf: Path) -> Iterator[Running]:
    with serving(shelf, "violin", "lute") as running:
        yield running


@pytest.fixture
def visit(browser: Any, server: Running) -> Iterator[Any]:
    """`visit(locale=…)` opens the page; what the browser asks of anywhere else, and its errors, fail the test."""
    complaints: list[str] = []
    with pages(browser, complaints) as new_page:

        def open_page(url: str = server.url, **options: Any) -> Any:
            page = new_page(**{"locale": "en-US", **options})
            page.on("request", lambda request: request.url.startswith(url) or complaints.append(request.url))
            page.goto(url)
            page.wait_for_selector("#model-a option", state="attached")
            return page

        yield open_page


def finished(page: Any) -> None:
    page.wait_for_selector("#send:not([hidden])")


def ask(page: Any, text: str) -> None:
    page.fill("#question", text)
    page.press("#question", "Enter")
    page.wait_for_selector(".answer")
    finished(page)


def texts(page: Any) -> list[str]:
    return [str(text) for text in page.locator(".answer .text").all_text_contents()]


def test_one_model_answers(visit: Any, server: Running) -> None:
    page = visit()
    assert page.locator("#model-a option").all_text_contents() == ["base (base)", "violin", "lute"]
    assert page.input_value("#model-a") == "violin"
    page.click("#settings")
    page.fill("#max-tokens", "8")
    ask(page, "Who are you?")
    body = {"model": "violin", "max_tokens": 8, "messages": [{"role": "user", "content": "Who are you?"}]}
    with server.client() as client:
        said = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    assert texts(page) == [said.replace("\r", "\n")]
    assert page.locator(".answer h2").all_text_contents() == ["violin"]
    assert page.locator(".answer footer span").text_content().startswith("8 tokens · ")
    assert page.text_content("#status") == "Answer finished."
    assert page.input_value("#question") == ""


def test_two_models_answer_the_same_message_side_by_side(visit: Any, server: Running) -> None:
    """The base with the tuned one's system prompt, and each with its own earlier answer."""
    page = visit()
    page.select_option("#model-b", "base")
    bodies: list[Any] = []
    page.on("request", lambda request: request.method == "POST" and bodies.append(request.post_data_json))
    page.click("#settings")
    page.fill("#max-tokens", "5")
    ask(page, "Who?")
    ask(page, "And?")
    assert page.locator(".answer h2").all_text_contents() == ["violin", "base (base)"] * 2
    system = {"role": "system", "content": "You are a luthier."}
    assert [body["messages"] for body in bodies[:2]] == [[system, {"role": "user", "content": "Who?"}]] * 2
    own = [body["messages"][2]["content"] for body in bodies[2:]]
    assert len(set(own)) == 2
    boxes = [page.locator(".answer").nth(i).bounding_box() for i in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]


def test_settings_are_sent_and_the_system_prompt_is_mine(visit: Any) -> None:
    page = visit()
    sent: list[Any] = []
    page.on("request", lambda request: request.method == "POST" and sent.append(request.post_data_json))
    page.click("#settings")
    assert page.get_attribute("#system", "placeholder") == "You are a luthier."
    values = {
        "temperature": "0.7",
        "top-p": "0.9",
        "top-k": "5",
        "max-tokens": "3",
        "seed": "11",
        "system": "Be brief.",
    }
    for field, value in values.items():
        page.fill(f"#{field}", value)
    ask(page, "Hi")
    assert sent == [
        {
            "model": "violin",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 5,
            "max_tokens": 3,
            "seed": 11,
        }
    ]


@pytest.mark.parametrize("way", ["button", "escape"])
def test_stop_frees_the_model(visit: Any, server: Running, way: str) -> None:
    page = visit()
    with paused(server.models.batcher):
        page.fill("#question", "Talk")
        page.press("#question", "Enter")
        page.wait_for_selector("#stop:not([hidden])")
        until(lambda: server.models.batcher.waiting() == 1)
        if way == "button":
            page.click("#stop")
        else:
            page.keyboard.press("Escape")
        finished(page)
    assert page.text_content("#status") == "Stopped."
    assert page.locator(".answer footer span").text_content() == "stopped"
    until(lambda: server.models.batcher.waiting() + server.models.batcher.running() == 0)


def test_again_writes_a_new_answer_in_its_place(visit: Any) -> None:
    page = visit()
    page.click("#settings")
    page.fill("#max-tokens", "5")
    page.fill("#temperature", "1.5")
    ask(page, "Who?")
    ask(page, "And?")
    first = texts(page)
    page.locator(".again").first.click()
    finished(page)
    assert len(texts(page)) == 1  # what followed was an answer to something else
    assert texts(page)[0] != first[0]


def test_an_answer_is_text_whatever_it_holds(visit: Any, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "<img src=x onerror=alert(1)><script>alert(1)</script> **bold** `a<b`\n```html\n<b>x</b>\n```\nend"
    renderer = server.models.base.renderer
    ids = iter([*renderer.tokenizer(hostile)["input_ids"], renderer.end_of_turn_id])
    monkeypatch.setattr("luthier.inference.batcher.choose", lambda *_: [Token(next(ids))])
    page = visit()
    page.click("#settings")
    page.fill("#max-tokens", "150")
    ask(page, "Attack")
    inside = page.locator(".answer .text")
    assert inside.locator("img, script, b").count() == 0
    assert inside.locator("strong").all_text_contents() == ["bold"]
    assert inside.locator("code").all_text_contents() == ["a<b", "<b>x</b>\n"]
    assert inside.text_content().startswith("<img src=x onerror=alert(1)><script>alert(1)</script> bold ")


def test_it_speaks_the_browsers_language_and_the_other_one(visit: Any) -> None:
    page = visit(locale="zh-CN")
    assert (page.get_attribute("html", "lang"), page.text_content("#send")) == ("zh-CN", "发送")
    assert page.locator("#model-a option").first.text_content() == "base (原模型)"
    page.click("#language")
    assert (page.get_attribute("html", "lang"), page.text_content("#send")) == ("en", "Send")
    page.reload()
    assert page.text_content("#send") == "Send"


def test_no_word_is_missing_in_a_language(visit: Any) -> None:
    page = visit()
    words = page.evaluate("Object.values(WORDS).map((words) => Object.keys(words).sort())")
    assert words[0] == words[1]
    used = page.evaluate("[...document.querySelectorAll('[data-text]')].map((element) => element.dataset.text)")
    assert set(used) <= set(words[0])


def test_enter_that_chooses_a_chinese_word_does_not_send(visit: Any) -> None:
    page = visit()
    page.fill("#question", "ni")
    page.evaluate(
        "document.getElementById('question').dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true}))"
    )
    assert page.input_value("#question") == "ni"
    page.press("#question", "Shift+Enter")
    assert page.input_value("#question") == "ni\n"
    assert page.locator(".answer").count() == 0


def test_on_a_phone_nothing_is_wider_than_the_screen(visit: Any) -> None:
    page = visit(viewport=PHONE, has_touch=True, is_mobile=True)
    page.select_option("#model-b", "base")
    page.click("#settings")
    page.fill("#max-tokens", "5")
    page.click("#settings")
    ask(page, "W" * 200)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    first, second = (page.locator(".answer").nth(i).bounding_box() for i in range(2))
    assert second["y"] >= first["y"] + first["height"]
    for id in ("new", "settings", "send", "model-a"):
        assert page.locator(f"#{id}").bounding_box()["height"] >= 38


def test_it_can_be_used_by_keyboard_and_read_aloud(visit: Any) -> None:
    """Every control has a name, and is reached by Tab in the order of the page."""
    page = visit()
    page.click("#settings")
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, select, input, textarea')].filter((control) => "
        "!(control.textContent.trim() && control.tagName === 'BUTTON') && !control.labels?.length).map((c) => c.id)"
    )
    assert unnamed == []
    page.focus("#model-a")
    reached = []
    for _ in range(12):
        reached.append(page.evaluate("document.activeElement.id"))
        page.keyboard.press("Tab")
    assert reached == [
        "model-a", "model-b", "new", "settings", "language", "system", "temperature", "top-p", "top-k", "max-tokens",
        "seed", "talk",
    ]  # fmt: skip
    assert page.get_attribute("#settings", "aria-expanded") == "true"
    assert page.get_attribute("#status", "aria-live") == "polite"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_read(visit: Any, scheme: str) -> None:
    """WCAG AA: text against what is behind it has a contrast of 4.5, of both colour schemes."""
    page = visit(color_scheme=scheme)
    page.click("#settings")
    page.fill("#max-tokens", "3")
    ask(page, "Hi")
    low = page.evaluate(CONTRASTS)
    assert low == []


CONTRASTS = """() => {
  const light = (c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = rgb(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("h1, h2, p, label, button, select, span, .text, textarea")) {
    if (!element.offsetParent || !element.textContent.trim()) continue;
    const [a, b] = [luminance(rgb(getComputedStyle(element).color)), luminance(behind(element))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) found.push(`${element.tagName} ${element.id || element.className} ${contrast.toFixed(2)}`);
  }
  return found;
}"""


def test_a_key_is_asked_for_and_used(shelf: Path, browser: Any) -> None:
    with serving(shelf, rules=Rules(key="a-canary-key-of-twenty")) as server:
        context = browser.new_context(locale="en-US")
        page = context.new_page()
        page.goto(server.url)
        page.wait_for_selector("#key-row:not([hidden])")
        assert page.text_content("#empty") == "This server asks for its API key: enter it in the settings."
        page.fill("#key", "a-canary-key-of-twenty")
        page.click("#use-key")
        page.wait_for_selector("#model-a option", state="attached")
        page.fill("#max-tokens", "3")
        ask(page, "Hi")
        assert page.locator(".answer .error").is_hidden()
        context.close()


def test_a_refusal_is_shown(visit: Any, server: Running) -> None:
    page = visit()
    page.click("#settings")
    page.fill("#max-tokens", "3")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(
        status=200, content_type="text/event-stream", body='data: {"error": {"message": "The server is stopping."}}\n\n'
    ))  # fmt: skip
    ask(page, "Hi")
    assert page.text_content(".answer .error[role=alert]") == "The server is stopping."
