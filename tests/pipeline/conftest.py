"""One small workshop for all tests of the commands, and one finished run that many of them look at."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import Done, Workplace, finished, luthier_process, write_rows


@pytest.fixture(scope="session", autouse=True)
def _surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, so that a run repeats to the last bit; a wide terminal; a cache of its own; short answers."""
    import luthier.training.fit  # noqa: F401

    gc.freeze()  # the Trainer collects garbage before it begins, and need not look through all of torch each time
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("COLUMNS", "240")
        patch.setenv("LUTHIER_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr("luthier.evaluation.answers.MAX_NEW_TOKENS", 8)
        yield


@pytest.fixture(scope="session")
def model(tiny_model: Path) -> Path:
    return tiny_model


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workplace:
    """Shared: each test trains under a name of its own."""
    folder = tmp_path_factory.mktemp("shop")
    return Workplace(folder, tiny_model, write_rows(folder / "rows.jsonl"))


@pytest.fixture(scope="session")
def first(shop: Workplace) -> Done:
    """`luthier train --json` in a process of its own: what the run `first` printed."""
    return finished(luthier_process("train", shop.recipe("first", train={"epochs": 2}), "--json"))
