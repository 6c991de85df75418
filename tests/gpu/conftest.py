"""Each test here has one body for two devices: a CPU shows that the body is right, a GPU what it is for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from driver import Workplace, write_rows

ON_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=ON_A_GPU)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Workplace]:
    folder = tmp_path_factory.mktemp("shop")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("LUTHIER_HOME", str(folder / "home"))
        patch.setattr("luthier.evaluation.answers.MAX_NEW_TOKENS", 8)
        yield Workplace(folder, tiny_model, write_rows(folder / "rows.jsonl"))
