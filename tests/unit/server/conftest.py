"""Servers to ask, and the adapters that they serve."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import SYSTEM, Running, make_renderer, serving
from tiny import add_adapter, make_model, save_model

from luthier.model import adapters


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, and the adapters `violin`, `lute` and `spare` of it."""
    root = tmp_path_factory.mktemp("shelf")
    save_model(root / "base")
    renderer = make_renderer(root / "base")
    for seed, name in enumerate(("violin", "lute", "spare")):
        tuned = add_adapter(make_model("llama"), seed=seed)
        system = SYSTEM.get(name)
        adapters.save(
            tuned, root / name, renderer, base_ref=str(root / "base"), base_folder=root / "base", system=system
        )
    return root


@pytest.fixture(scope="session")
def server(shelf: Path) -> Iterator[Running]:
    """Shared by the tests that change nothing."""
    with serving(shelf, "violin", "lute") as running:
        yield running


@pytest.fixture
def folder_of_adapters(shelf: Path, tmp_path: Path) -> Path:
    """What `--adapters` names: `spare`, and things that are none."""
    folder = tmp_path / "adapters"
    folder.mkdir()
    shutil.copytree(shelf / "spare", folder / "spare")
    (folder / "empty").mkdir()
    (folder / "note.txt").write_text("no adapter", encoding="utf-8")
    return folder
