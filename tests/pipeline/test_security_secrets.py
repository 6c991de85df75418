"""Promises of docs/security.md: tokens and keys leave by no way out; pages and terminal show text, and only text."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import shutil
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import quote

import pytest
from driver import PAIRS, Workplace, finished, luthier, luthier_process, write_rows

from luthier import console
from luthier.choice import Choice
from luthier.data.conversation import Source
from luthier.data.ledger import Conflict, Entry, Ledger
from luthier.errors import InputError, Problem
from luthier.report.record import RunFolder
from luthier.secrets import VARIABLES, masked

AUDITED = Path(__file__).with_name("audited.py")
SECRETS = {
    "HF_TOKEN": "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1",
    "HUGGING_FACE_HUB_TOKEN": "an-older-canary-of-hugging-face",
    "MODELSCOPE_API_TOKEN": "ms-0ca9a12e-0ca9-4a12-8ca9-0ca9a12e0ca9",
    "SWANLAB_API_KEY": "CanaryOfSwanLab12345",
    "WANDB_API_KEY": "0ca9a12e0ca9a12e0ca9a12e0ca9a12e0ca9a12e",
    "LUTHIER_API_KEY": "a-canary-of-the-servers-key",
}
HOSTILE = "</script><img src=x onerror='a()'>{{ 7*7 }}"
MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)


def leaked(text: str) -> list[str]:
    return [name for name, secret in SECRETS.items() if secret in text or quote(secret, safe="") in text]


def test_every_token_is_known_by_its_variable_or_its_form() -> None:
    assert set(SECRETS) == set(VARIABLES)
    assert masked("; ".join(SECRETS.values())) == "; ".join("…" * len(SECRETS))
    with mock.patch.dict("os.environ", clear=True):
        for text, shown in {
            "Bearer abcdefgh12345": "Bearer …",
            f"error for {SECRETS['HF_TOKEN']}: none": "error for …: none",
            SECRETS["MODELSCOPE_API_TOKEN"]: "…",
            "wandb_v1_abcdefghijklmnop_qrst": "…",
            "http://me:pass@proxy:8080/x": "http://…@proxy:8080/x",
            "https://h/x?page=2&X-Amz-Signature=ab&token=cd": "https://h/x?page=2&X-Amz-Signature=…&token=…",
            "ms-marco-MiniLM-L6, hf_home, me@example.org, https://h/@me?page=2": None,
        }.items():
            assert masked(text) == (shown or text)
    with mock.patch.dict("os.environ", {"HF_TOKEN": 'a "quoted" & <odd> one'}):
        text = 'a "quoted" & <odd> one'
        assert masked(json.dumps([text, quote(text, safe="")])) == '["…", "…"]'
        assert masked("a &quot;quoted&quot; &amp; &lt;odd&gt; one") == "…"
    with mock.patch.dict("os.environ", {"HF_TOKEN": "short"}):
        assert masked("short") == "short"


def test_no_token_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """By each function of the one module that prints."""
    for secret in SECRETS.values():
        console.say(f"a {secret} b")
        console.warn(secret)
        console.write(f"{secret}\n")
        console.table(["x"], [[secret]])
        console.fail(InputError(Problem(secret, secret, secret)))
        with console.progress(secret, 1):
            pass
        with mock.patch.object(console, "_json", True):
            console.result({"x": secret})
            console.fail(InputError(Problem(secret, secret, secret)))
    shown = capsys.readouterr()
    assert leaked(shown.out + shown.err) == []
    assert shown.out.count("…") == len(SECRETS) * (1 + 1 + 1 + 2 + 1 + 3)
    assert shown.err.count("…") == len(SECRETS) * (1 + 3)


def test_no_token_is_in_what_libraries_log_or_in_a_traceback() -> None:
    code = """if True:
        import logging, os, warnings
        from luthier.cli import main
        def broken():
            for name in %r:
                logging.error(os.environ[name])
                warnings.warn(os.environ[name])
            raise RuntimeError(" ".join(os.environ[name] for name in %r))
        main.app = broken
        main.main()
    """ % (list(SECRETS), list(SECRETS))  # noqa: UP031 (the code has braces of its own)
    done = finished(luthier_process(start=("-c", code)))
    assert (done.status, done.out, leaked(done.err)) == (1, "", [])
    assert done.err.splitlines()[-1] == "RuntimeError: " + " ".join("…" * len(SECRETS))
    assert done.err.count("ERROR:root:…\n") == done.err.count("UserWarning: …\n") == len(SECRETS)


def test_no_token_is_in_the_run_folder_the_report_or_the_process_list(shop: Workplace, tmp_path: Path) -> None:
    """A whole training in a process of its own, with every tracker; what each process was started with is noted."""
    recipe = shop.recipe("canaries", train={"steps": 2}, track={"to": ["swanlab", "tensorboard", "wandb"]})
    notes = tmp_path / "command-lines"
    done = finished(luthier_process("train", recipe, start=(str(AUDITED), str(notes))))
    assert done.status == 0, done.err
    run = shop.run("canaries")
    kept = {path: path.read_text(encoding="utf-8", errors="replace") for path in run.path.rglob("*") if path.is_file()}
    assert {path.name for path in run.track_dir.iterdir()} == {"swanlab", "tensorboard", "wandb"}
    assert {run.report_file, run.record_file, run.events_file, run.recipe_file} <= kept.keys()
    assert {str(path): leaked(text) for path, text in kept.items() if leaked(text)} == {}
    assert leaked(done.out + done.err) == []
    command_lines = notes.read_text(encoding="utf-8")
    assert "wandb-core" in command_lines
    assert leaked(command_lines) == []


def test_no_token_is_kept_by_any_file_of_a_run(tmp_path: Path) -> None:
    """Whatever brought it there: an error's text, an answer, a row."""
    run = RunFolder(tmp_path / "run").create()
    for secret in SECRETS.values():
        run.log({"event": "fail", "step": 1, "reason": secret})
        run.write_record({"answers": [secret]})
        run.write_evaluation({"answers": [secret]})
        run.write_resolved({"model.dtype": Choice("bfloat16", secret)})
        ledger = Ledger([Conflict(secret, 2, (Source(secret, 1),))])
        ledger.open([Source(secret, 1)])
        ledger.add(Entry(Source(secret, 1), "dropped", secret, secret))
        ledger.write(run.ledger_file)
        texts = [path.read_text(encoding="utf-8") for path in run.path.iterdir()]
        assert len(texts) == 5
        assert [leaked(text) for text in texts] == [[]] * 5
        assert all("…" in text for text in texts)


def test_a_recipe_that_holds_a_token_is_refused(shop: Workplace) -> None:
    """A masked recipe would be another one, and this one would be kept in the run folder."""
    secret = SECRETS["SWANLAB_API_KEY"]
    done = luthier("train", shop.recipe("token", data={"system": f"My key is {secret}."}))
    assert (done.status, done.err) == (
        2,
        "✗ recipe, data.system: holds an access token or key, and the run folder keeps the recipe\n"
        f"  → take it out; tokens are read from {', '.join(VARIABLES)}\n",
    )
    done = luthier("train", shop.recipe("token", data={"train": f"https://me:{secret}@example.org/rows.json"}))
    assert (done.status, done.err) == (
        2,
        "✗ recipe: example.org holds a password or key in its address, and the run folder keeps the recipe\n"
        "  → download the file first and give its path\n",
    )
    assert not shop.run("token").path.exists() or not shop.run("token").recipe_file.exists()


# Pages and the terminal.


CURVES = (resources.files("luthier.report") / "templates" / "curve.js").read_text(encoding="utf-8")


class Page(HTMLParser):
    """The page as a browser takes it apart."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.attributes: set[str] = set()
        self.policies: list[str | None] = []
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.attributes |= found.keys()
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policies.append(found["content"])

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts.append(data)
        else:
            self.text += data


@pytest.fixture(scope="module")
def hostile_run(shop: Workplace) -> RunFolder:
    """Markup as the name of rows, model and run, in the rows, the system prompt and the questions."""
    rows = write_rows(shop.folder / f"{MARKUP}.jsonl", [(f"{HOSTILE}{q}", f"{a}{HOSTILE}") for q, a in PAIRS[:8]])
    model = shutil.copytree(shop.model, shop.folder / f"model {MARKUP}")
    return shop.train(
        f"run {MARKUP}",
        model={"ref": str(model)},
        data={"train": str(rows), "system": HOSTILE, "holdout": 2},
        prompts=[HOSTILE],
        train={"steps": 1},
    )


@pytest.fixture(params=["report", "comparison", "data"])
def page(request: pytest.FixtureRequest, hostile_run: RunFolder, shop: Workplace, tmp_path: Path) -> Page:
    if request.param != "data":
        record: Any = hostile_run.record()
        record["answers"][0].update(base=HOSTILE, tuned=HOSTILE)  # which a tiny random model does not say by itself
        hostile_run.write_record(record)
        again = shutil.copytree(hostile_run.path, tmp_path / "again", dirs_exist_ok=True)
        others = [again] if request.param == "comparison" else []
        assert luthier("report", hostile_run.path, *others, "-o", tmp_path / "page.html").status == 0
        return Page(tmp_path / "page.html")
    file = tmp_path / "page.html"
    rows, model = hostile_run.read_recipe().data.train, hostile_run.read_recipe().model.ref
    assert luthier("data", rows, "-m", model, "--html", file, "--set", "data.holdout=0").status == 0
    return Page(file)


def test_pages_show_markup_as_text(page: Page) -> None:
    assert MARKUP in page.text
    assert HOSTILE in page.text.replace("·", " ")  # the page of the data shows spaces as dots
    assert {"img", "iframe", "object"} & set(page.tags) == set()
    assert page.tags.count("script") == (CURVES in page.scripts)
    assert {"src", "href", "onerror", "onload"} & page.attributes == set()


def test_pages_load_nothing_and_run_the_script_of_the_curves_alone(page: Page) -> None:
    """The browser is told so: should a page ever fail to escape a text, it would still do nothing."""
    digest = base64.b64encode(hashlib.sha256(CURVES.encode()).digest()).decode()
    script = f"; script-src 'sha256-{digest}'" if page.scripts else ""
    assert page.policies == [f"default-src 'none'; style-src 'unsafe-inline'{script}"]


def test_text_cannot_steer_the_terminal(shop: Workplace, tmp_path: Path) -> None:
    """A column's name with the escape sequences that retitle a window and clear the screen."""
    steering = "\x1b]0;owned\x07\x1b[2J\x9b2J\r"
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({f"{steering}question": "a", "reply": "b"}), encoding="utf-8")
    done = luthier("data", file, "-m", shop.model)
    assert done.status == 2
    assert done.err.startswith(f"✗ {file}: its columns (]0;owned[2J2Jquestion, reply) fit no format")
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        console.say(steering)
        console.warn(steering)
        console.write(steering)
        console.table(["x"], [[steering]])
        console.fail(InputError(Problem(steering, steering, steering)))
    assert [each for each in "\x1b\x07\x9b\r" if each in out.getvalue()] == []
