"""Both kinds of loops, of which the number of threads of a machine picks one."""

from __future__ import annotations

import pytest

from luthier.engine import compiled


@pytest.fixture(params=[0, 10**6], ids=["torch", "compiled"])
def either_loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "MOST_THREADS", request.param)
