"""One small workshop for all tests of the commands."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from driver import Workplace, write_rows
from schema import differences

from luthier.report.record import RunFolder


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import luthier.training.fit  # noqa: F401

    gc.freeze()  # the Trainer collects garbage before it begins, and need not look through all of torch each time
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module", autouse=True)
def _surroundings(home: Path) -> Iterator[None]:
    """One thread, so that a run repeats to the last bit; a wide terminal; a cache of its own; short answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("COLUMNS", "240")
        patch.setenv("LUTHIER_HOME", str(home))
        patch.setattr("luthier.evaluation.answers.MAX_NEW_TOKENS", 8)
        patch.setattr("luthier.training.sample.MAX_NEW_TOKENS", 8)
        yield


@pytest.fixture(autouse=True)
def _events_are_as_documented(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test makes a run write."""
    log, found = RunFolder.log, []

    def checked(run: RunFolder, event: Mapping[str, Any]) -> None:
        log(run, event)
        found.extend(differences(json.loads(run.events_file.read_bytes().splitlines()[-1])))

    monkeypatch.setattr(RunFolder, "log", checked)
    yield
    assert found == []


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workplace:
    """Shared: each test trains under a name of its own."""
    folder = tmp_path_factory.mktemp("shop")
    return Workplace(folder, tiny_model, write_rows(folder / "rows.jsonl"))
