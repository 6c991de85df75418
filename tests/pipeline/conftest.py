"""One small workshop for all tests of the commands."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import Workplace, write_rows


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
        yield


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workplace:
    """Shared: each test trains under a name of its own."""
    folder = tmp_path_factory.mktemp("shop")
    return Workplace(folder, tiny_model, write_rows(folder / "rows.jsonl"))
