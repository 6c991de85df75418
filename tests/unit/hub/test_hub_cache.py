from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from luthier.hub.cache import cache_dir, ensure
from luthier.hub.manifest import FileEntry, Manifest
from luthier.secrets import bare_address, without_secrets

HELLO = FileEntry("a.txt", 5, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")


def fill(folder: Path) -> Manifest:
    (folder / "a.txt").write_text("hello")
    return Manifest.of(folder, ["a.txt"], ref="r", hub="hf", revision="v")


@pytest.mark.parametrize(
    ("platform", "environment", "folder"),
    [
        ("linux", {"LUTHIER_HOME": "/l"}, "/l"),
        ("linux", {}, "/home/u/.cache/luthier"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/luthier"),
        ("darwin", {}, "/home/u/Library/Caches/luthier"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/luthier"),
        ("win32", {}, "/home/u/AppData/Local/luthier"),
    ],
)
def test_the_cache_folder(
    platform: str, environment: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("LUTHIER_HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, str(Path(value).absolute()))
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/u").absolute())
    assert cache_dir() == Path(folder).absolute()


def test_a_folder_is_complete_only_under_its_own_name(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "m"
    with pytest.raises(KeyboardInterrupt):
        ensure(folder, _interrupted)
    assert not folder.exists()
    assert ensure(folder, fill) == Manifest("r", "hf", "v", (HELLO,))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["m", "m.lock"]
    assert ensure(folder, _interrupted) == Manifest("r", "hf", "v", (HELLO,))


def _interrupted(folder: Path) -> Manifest:
    (folder / "a.txt").write_text("hel")
    raise KeyboardInterrupt


@pytest.mark.parametrize("damage", ["missing file", "other size", "no manifest", "garbage", "other json"])
def test_what_is_no_longer_whole_is_filled_again(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "m"
    ensure(folder, fill)
    manifest = folder / "luthier-manifest.json"
    if damage == "missing file":
        (folder / "a.txt").unlink()
    elif damage == "other size":
        (folder / "a.txt").write_text("hello!")
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text({"garbage": "{", "other json": "[]"}[damage])
    assert Manifest.read(folder) is None
    ensure(folder, fill)
    assert (folder / "a.txt").read_text() == "hello"
    assert json.loads(manifest.read_text())["files"] == [vars(HELLO)]


def test_messages_hold_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "plainsecret")
    error = OSError("GET https://me:pw@h/x?Signature=abc&b=1 hf_abcdefghijklmnop plainsecret\nmore")
    assert without_secrets(error) == "OSError: GET https://…@h/x?Signature=…&b=1 … …"
    assert bare_address("https://me:pw@h:8080/x.json?token=1#L2") == "https://h:8080/x.json"
