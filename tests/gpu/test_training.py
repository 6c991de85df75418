"""`luthier train` on a GPU, against the same run on the CPU and against itself: `pytest tests/gpu`."""

from __future__ import annotations

from typing import Any

import pytest
from driver import Workplace, adapter_bytes, events, finished, losses, luthier, luthier_process

from luthier.report.record import RunFolder

SETTINGS: dict[str, Any] = {"data": {"holdout": 4}, "train": {"steps": 4, "batch_size": 8}}


def trained(shop: Workplace, name: str, device: str, dtype: str = "float32", **train: Any) -> RunFolder:
    """In a process of its own on a GPU: some of its settings must be there before torch is imported."""
    recipe = shop.recipe(
        name, **{**SETTINGS, "model": {"device": device, "dtype": dtype}, "train": {**SETTINGS["train"], **train}}
    )
    done = luthier("train", recipe) if device == "cpu" else finished(luthier_process("train", recipe))
    assert done.status == 0, done.err
    return shop.run(name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_bytes_where_they_are_asked_for(shop: Workplace, dtype: str, device: str) -> None:
    names = [f"{device}-{dtype}-{name}" for name in ("one", "other")]
    one, other = (trained(shop, name, device, dtype, deterministic=True) for name in names)
    assert one.read_resolved()["train.deterministic"].value is True
    assert adapter_bytes(one) == adapter_bytes(other)
    assert losses(one) == losses(other)


def test_a_short_training(shop: Workplace, device: str) -> None:
    """In float32 it learns what it learns on a CPU."""
    reference, run = (trained(shop, f"{name}-{device}", on) for name, on in (("reference", "cpu"), ("short", device)))
    assert run.read_resolved()["model.device"].value == device
    assert losses(run) == pytest.approx(losses(reference), rel=1e-3)
    heldout, expected = ([event["heldout_loss"] for event in events(each, "evaluation")] for each in (run, reference))
    assert heldout == pytest.approx(expected, rel=1e-3)
    assert heldout[-1] < heldout[0]
    record, whole = ((each.record() or {})["result"] for each in (run, reference))
    same = ("steps", "rows", "real_tokens")
    assert [record[figure] for figure in same] == [whole[figure] for figure in same]
    filled = record["computed_tokens"] - whole["computed_tokens"]
    assert filled > 0 if run.read_resolved()["train.cuda_graphs"].value else filled == 0
