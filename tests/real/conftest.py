from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.models import qwen3_tokenizer


@pytest.fixture(scope="session")
def qwen3_folder() -> Path:
    """Qwen3's own tokenizer and chat template, from the package that carries them; kept in Luthier's cache."""
    return qwen3_tokenizer()
