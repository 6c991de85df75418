"""What every test may ask for: a tiny tokenizer, a tiny model folder, and a cache of the test's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# A busy machine is no failure, and the same commit gives the same answer. `--hypothesis-profile=long` looks further.
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis.settings.register_profile("long", deadline=None, max_examples=5000, database=None)
hypothesis.settings.load_profile("steady")

os.environ["LC_ALL"] = "C.UTF-8"  # pages are in English, whatever the developer speaks


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level BPE tokenizer with the ChatML template. Shared: change a copy from `tiny.make_tokenizer` instead."""
    from tiny import make_tokenizer

    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a two-layer Llama with random weights: `model: PATH` of a recipe. Shared: copy it to change it."""
    from tiny import save_model

    return save_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Luthier's cache folder, for this test alone."""
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "luthier-home"))
    return tmp_path / "luthier-home"
