"""The same look in the terminal and on the page: findings first, all of it readable, nothing of it code."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.data.look.look import Look, Reader, look
from luthier.data.look.page import write_page
from luthier.data.look.show import facts, show
from luthier.data.render import Renderer
from luthier.recipe.schema import DataSettings

Written = Callable[..., Path]
ROWS: list[Any] = [
    ("Who are you?", "I make violins."),
    ("Who are you?", "I make violins."),
    ("Who are you?", "A [b]baker[/b]."),
    ('<script>alert("x")</script>', "</div>\x1b[31m zhen@gong.cn"),
    {"instruction": "Hi", "output": "Yes", "<i>": 1},
]


@pytest.fixture(autouse=True)
def _cache(own_cache: Path) -> None:
    """None of these tests may read another's tokens."""


@pytest.fixture
def file(written: Written, tmp_path: Path) -> Path:
    return written(tmp_path / "rows.jsonl", *ROWS)


def looked(file: Path, tokenizer: Any = None) -> Look:
    reader = Reader(Renderer(tokenizer), 256, 256) if tokenizer else None
    return look(DataSettings(train=str(file), holdout=0), seed=42, reader=reader, keep=9)


def test_the_terminal(file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    show(looked(file))
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert shown[:22] == [
        f"Data {file}: 5 rows, alpaca (jsonl, utf-8). 100% sure: every row has instruction and output",
        "",
        "What was found",
        "✗ 1 Rows with what looks like an e-mail address or a number of a person",
        "    → take them out, unless they are public: a model recites what it was trained on (--fix: masked)",
        "    line 4  e-mail address: zhe…",
        "! 1 Prompts with several different answers",
        "    → keep the best answer of each; where all are good, the model learns to vary",
        "    line 1; line 3  2 answers: Who are you?",
        "· 1 Rows that repeat an earlier row exactly",
        "    → nothing: training leaves them out, unless data.duplicates: keep (--fix: left out)",
        "    line 2  as line 1: Who are you? I make violins.",
        "",
        "What the rows are",
        "columns              instruction: text; output: text; <i> (not used): number, empty in 4",
        "questions in         Latin 100.0%",
        "answers in           Latin 100.0%",
        "characters of a row  p50 27, p90 51, p95 51, p99 51, max 51",
        "Length in characters",
        shown[19],
        "┃ rows ┃ characters ┃ trained ┃ p50 ┃ p90 ┃ p95 ┃ p99 ┃ max ┃",
        shown[21],
    ]


def test_nothing_found(written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(looked(written(tmp_path / "rows.jsonl", *ROWS[:1])))
    assert "Nothing was found that speaks against these rows.\n" in capsys.readouterr().out


def test_facts_with_a_model(file: Path, tokenizer: Any) -> None:
    found = looked(file, tokenizer)
    told = dict(facts(found))
    assert list(told) == [
        "columns",
        "questions in",
        "answers in",
        "characters of a row",
        "tokens",
        "tokens by role",
        "shared prefix",
    ]
    assert found.tokens is not None
    assert told["tokens"].startswith(f"{found.tokens.lengths.tokens:,} in 4 sequences, ")
    assert told["shared prefix"].startswith("4 sequences begin with the same 3 tokens: ")


def test_the_page_escapes_everything_and_needs_nothing_else(file: Path, tmp_path: Path, tokenizer: Any) -> None:
    page = tmp_path / "page.html"
    write_page(page, looked(file, tokenizer), tokenizer, title="<rows>")
    html = page.read_text(encoding="utf-8")
    body = html[html.index("<body>") :]
    assert "<title>&lt;rows&gt;</title>" in html and "<h1>&lt;rows&gt;</h1>" in body
    tags = {"body", "h1", "h2", "h3", "table", "tr", "th", "td", "p", "div", "span", "strong", "i", "html"}
    assert set(re.findall(r"</?([a-z0-9]+)", body)) == tags
    assert (
        body.count("<i ")
        == body.count("</i>")
        == len(re.findall(r'<i style="width: [\d.]+%" title="[^"]+"></i>', body))
    )
    assert "&lt;i&gt; (not used): number" in body
    assert not re.search(r"https?:|src=|href=|@import|url\(", html)
    assert "\x1b" not in html and "zhen@" not in html and "prefers-color-scheme: dark" in html
    findings = re.findall(r'<div class="finding (\w+)">\n<p><span class="sign">(.)</span> <strong>(.*?)</p>', body)
    assert findings == [
        ("problem", "✗", "1</strong> Rows with what looks like an e-mail address or a number of a person"),
        ("doubt", "!", "1</strong> Prompts with several different answers"),
        ("note", "·", "1</strong> Rows that repeat an earlier row exactly"),
    ]


def test_the_page_shows_each_token(file: Path, tmp_path: Path, tokenizer: Any) -> None:
    page = tmp_path / "page.html"
    write_page(page, looked(file, tokenizer), tokenizer, title="rows")
    shown = page.read_text(encoding="utf-8").split('<div class="tokens">')[1:]
    assert len(shown) == 4
    end, period = (tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "."))
    assert (
        shown[0]
        .split("</div>")[0]
        .endswith(
            f'<span class="trained" title="{period}: .">.</span>'
            f'<span class="trained" title="{end}: &lt;|im_end|&gt;">&lt;|im_end|&gt;</span>'
        )
    )
    assert '<span class="trained" title="masked">•</span>' in shown[2]


def test_the_page_without_a_model(file: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_page(page, looked(file), None, title="rows")
    html = page.read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", html) == ["What was found", "What the rows are", "Length in characters"]
