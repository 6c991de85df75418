"""`luthier push`: what is sent is what is shown, and never an export that was not found good."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from standin import Standin

from luthier.errors import HubError, InputError, LuthierError
from luthier.export import push, record
from luthier.export.record import Exported, Figures

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"
FILES = {
    "README.md": b"---\nlicense: mit\n---\n# mine\n",
    "adapter [1].safetensors": bytes(range(256)) * 20,
    "luthier.json": b'{"system": null}',
    "sub/notes.txt": b"\xe4\xbd\xa0",
}
GOOD = Figures(
    runtime="transformers 5",
    chat=True,
    prompts=4,
    source="held-out prompts",
    same_prompts=4,
    positions=40,
    kl=0.0,
    top1=1.0,
    end_trained=0.9,
    end_exported=0.9,
    answers=4,
    ended_trained=4,
    ended_exported=4,
    same_answers=4,
)


@pytest.fixture(autouse=True)
def signed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-12345678-1234-1234-1234-123456789abc")
    # Xet, which Hugging Face's client takes where it can, sends to a service of its own.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    for name in ("API_MAX_RETRIES", "UPLOAD_BLOB_MAX_ATTEMPTS", "UPLOAD_COMMIT_MAX_ATTEMPTS"):
        monkeypatch.setattr(f"modelscope_hub.constants.{name}", 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return export(tmp_path / "export", GOOD)


def export(folder: Path, figures: Figures | None) -> Path:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    made = Exported(
        luthier="0.1.0",
        to="adapter",
        weights="adapter",
        run="/home/somebody/run",
        adapter_sha256="0" * 64,
        base="owner/base",
        revision=None,
        made="2026-11-26",
        seconds=1.0,
        figures=figures,
        files=record.hashes(folder),
    )
    record.write(folder, made)
    return folder


@pytest.mark.parametrize(("to", "page"), [("hf:me/mine", "/me/mine"), ("ms:me/mine", "/models/me/mine")])
def test_what_is_sent(standin: Standin, folder: Path, to: str, page: str) -> None:
    upload = push.plan(folder, to)
    assert standin.writes == []
    assert upload.files == {name: len(content) for name, content in FILES.items()}
    assert push.push(folder, upload, public=False) == standin.url + page
    assert standin.pushed == {(to[:2], "me/mine"): FILES}
    assert standin.created["me/mine"]["private"] is True
    assert record.read(folder).state == "verified"  # nothing was left in the folder
    push.push(folder, push.plan(folder, to), public=True)  # into what is there by now
    assert standin.created["me/mine"]["private"] is True


def test_a_public_repository_with_the_cards_licence(standin: Standin, folder: Path) -> None:
    push.push(folder, push.plan(folder, "ms:me/open"), public=True)
    assert standin.created["me/open"] == {"private": False, "licence": "mit"}


def command(*arguments: object) -> Any:
    """The command line in this process."""
    import contextlib
    import io
    import sys
    from unittest import mock

    from luthier.cli.main import main

    out, err, status = io.StringIO(), io.StringIO(), 0
    argv = mock.patch.object(sys, "argv", ["luthier", "push", *map(str, arguments)])
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), argv:
        try:
            main()
        except SystemExit as exit:
            status = int(exit.code or 0)
    return status, out.getvalue(), err.getvalue()


def test_a_dry_run_shows_every_file_and_sends_none(
    standin: Standin, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    status, out, err = command(folder, "--to", "hf:me/mine")
    assert (status, err, standin.writes, standin.requests) == (0, "", [], [])
    assert f"Hugging Face ({standin.url}), me/mine: 4 files, 0 MB" in out
    for name, content in FILES.items():
        assert any(name in line and f"{len(content):,}" in line for line in out.splitlines())
    assert "verified; if the repository is new, it becomes private\n" in out
    assert out.endswith("The card, README.md, quotes rows of the training. Read it, then upload with --yes.\n")
    status, out, err = command(folder, "--to", "hf:me/mine", "--yes")
    assert (status, standin.pushed) == (0, {("hf", "me/mine"): FILES})
    assert out.endswith(f"uploaded  {standin.url}/me/mine\n")
    assert TOKEN not in out + err
    assert {authorization for *_, authorization in standin.writes if authorization} == {f"Bearer {TOKEN}"}


def problem(kind: type[LuthierError], folder: Path, to: str, **options: Any) -> tuple[str, str, str]:
    with pytest.raises(kind) as error:
        push.push(folder, push.plan(folder, to, **options), public=False)
    (found,) = error.value.problems
    return found.where, found.what, found.fix


@pytest.mark.parametrize("to", ["mine", "hf:mine", "gh:me/mine", "hf:me/mine/x", "hf:me/../x", ""])
def test_a_target_that_is_none(folder: Path, to: str) -> None:
    assert problem(InputError, folder, to) == (
        f"--to {to}",
        "names no repository of a hub",
        "name hub, owner and repository: --to ms:owner/name or --to hf:owner/name",
    )


def test_an_unverified_export(standin: Standin, tmp_path: Path) -> None:
    for figures in (None, GOOD.model_copy(update={"chat": False})):
        folder = export(tmp_path / f"unverified-{figures is None}", figures)
        assert problem(InputError, folder, "hf:me/mine") == (
            str(folder),
            "was never run by the program that it is for",
            f"luthier export --verify {folder}; or push it as it is with --unverified",
        )
        push.push(folder, push.plan(folder, "hf:me/mine", unverified=True), public=False)
    assert standin.pushed == {("hf", "me/mine"): FILES}


def test_a_failed_export_is_never_pushed(tmp_path: Path) -> None:
    folder = export(tmp_path / "failed", GOOD.model_copy(update={"kl": 0.5, "same_prompts": 3}))
    where, what, _ = problem(LuthierError, folder, "hf:me/mine", unverified=True)
    assert (where, what) == (
        str(folder),
        "does not answer as the trained model does (prompts with identical tokens, KL divergence, nats (mean))",
    )


def test_without_a_token(standin: Standin, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("MODELSCOPE_API_TOKEN")
    for to, title, variable in (("hf", "Hugging Face", "HF_TOKEN"), ("ms", "ModelScope", "MODELSCOPE_API_TOKEN")):
        assert problem(HubError, folder, f"{to}:me/mine") == (
            f"{to}:me/mine",
            f"{title} takes no files from anonymous users",
            f"set {variable} to an access token that may write, or log in with the hub's own command",
        )
    assert standin.writes == []


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(
    ("to", "title", "variable", "ending"),
    [
        ("hf", "Hugging Face", "HF_TOKEN", "/api/repos/create"),
        ("hf", "Hugging Face", "HF_TOKEN", "/commit/main"),
        ("ms", "ModelScope", "MODELSCOPE_API_TOKEN", "/api/v1/models"),
        ("ms", "ModelScope", "MODELSCOPE_API_TOKEN", "/commit/master"),
    ],
)
def test_a_hub_that_refuses(
    standin: Standin, folder: Path, to: str, title: str, variable: str, ending: str, status: int
) -> None:
    standin.write_faults[ending] = status
    assert problem(HubError, folder, f"{to}:me/mine") == (
        f"{to}:me/mine",
        f"{title} does not let your account write there (HTTP {status})",
        f"use a name of your own, and an access token that may write ({variable})",
    )
    assert standin.pushed == {}


@pytest.mark.parametrize(
    ("to", "ending"),
    [
        ("hf", "/api/repos/create"),
        ("hf", "/commit/main"),
        ("ms", "/api/v1/models"),
        ("ms", "/commit/master"),
        ("blob", ""),
    ],
)
def test_a_hub_that_breaks(standin: Standin, folder: Path, to: str, ending: str) -> None:
    if to == "blob":
        to, ending = "hf", hashlib.sha256(FILES["adapter [1].safetensors"]).hexdigest()
    standin.write_faults[ending] = 500
    where, what, fix = problem(HubError, folder, f"{to}:me/mine")
    title = {"hf": "Hugging Face", "ms": "ModelScope"}[to]
    assert where == f"{to}:me/mine"
    assert what.startswith(f"{title} did not take it: ")
    assert fix == "check the network, and run the command again: what is there already is not sent twice"
    assert standin.pushed == {}


@pytest.mark.parametrize("to", ["hf", "ms"])
def test_no_network(no_network: str, folder: Path, to: str) -> None:
    _, what, _ = problem(HubError, folder, f"{to}:me/mine")
    assert what.startswith(f"{ {'hf': 'Hugging Face', 'ms': 'ModelScope'}[to] } did not take it: ")
