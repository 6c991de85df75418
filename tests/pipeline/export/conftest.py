"""A run exported to each target, once for each file of tests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from driver import Workplace, luthier, write_rows

from luthier.report.record import RunFolder


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workplace:
    """Not the shared one: each file trains and exports under the same names."""
    folder = tmp_path_factory.mktemp("exporting")
    return Workplace(folder, tiny_model, write_rows(folder / "rows.jsonl"))


@pytest.fixture(scope="module")
def base(shop: Workplace) -> Path:
    """The usual model, with a licence."""
    folder = shop.folder / "export" / "licensed"
    shutil.copytree(shop.model, folder)
    (folder / "LICENSE").write_text("Do as you like.\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(shop: Workplace, base: Path) -> RunFolder:
    """Trained until it knows its rows by heart."""
    train = {"steps": 60, "batch_size": 20, "learning_rate": 0.02, "eval_steps": 60}
    return shop.train("export", model={"ref": str(base)}, adapter={"rank": 16, "alpha": 32}, train=train)


@pytest.fixture(scope="module")
def exports(shop: Workplace, run: RunFolder) -> dict[str, Any]:
    """Each target that needs no converter, with what the command said."""
    said = {}
    for to in ("merged", "adapter"):
        done = luthier("export", run.path, "--to", to, "-o", shop.folder / "exports" / to, "--json")
        assert done.status == 0, done.err
        said[to] = done.json
    return said
