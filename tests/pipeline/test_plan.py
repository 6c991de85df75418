"""`luthier plan`: what a recipe takes, whether it fits, and how right that was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from driver import Workplace, events, luthier

import luthier as api
from luthier.training.forecast import plan as planning
from luthier.training.forecast.plan import Room
from luthier.training.trainer import LuthierTrainer

PARTS = ["weights", "adapter", "gradients", "optimizer", "activations", "logits", "holes", "kernels", "runtime"]
WEIGHTS = 4 * (2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64 + 2 * 64) + 2 * 400 * 64 + 64)
ADAPTER = 4 * 2 * 4 * (2 * 128 + 2 * 96 + 3 * 160)


def planned(shop: Workplace, name: str, *more: object, **settings: Any) -> dict[str, Any]:
    found: dict[str, Any] = luthier("plan", shop.recipe(name, **settings), "--json", *more).json
    return found


def test_the_parts_of_a_recipe(shop: Workplace) -> None:
    found = planned(shop, "parts")
    device = found["memory"]["device"]
    assert list(device) == PARTS
    assert [device[part] for part in PARTS[:4]] == [WEIGHTS, ADAPTER, ADAPTER, 2 * ADAPTER]
    assert found["memory"]["peak_bytes"] == sum(device.values())
    assert found["memory"]["host"] == {}
    assert (found["ok"], found["fits"], found["changes"], found["written"]) == (True, True, [], None)
    assert (found["layers"], found["recomputed_layers"], found["weights"]) == (2, 0, (WEIGHTS + ADAPTER) // 4)
    assert list(found["seconds"]) == ["before", "steps", "evaluation", "saves", "answers", "unplanned", "total"]


def test_tokens_are_those_that_the_run_computes(shop: Workplace) -> None:
    """Planned from the real rows and the real cut: to the token."""
    recipe = {"train": {"epochs": 2, "batch_size": 8, "micro_batch_tokens": 100}}
    found = planned(shop, "tokens-planned", **recipe)
    run = shop.train("tokens-planned", **recipe)
    result = (run.record() or {})["result"]
    first = [event for event in events(run, "step") if event["epoch"] <= 1]
    assert found["tokens"]["real"] == sum(event["tokens"] for event in first)
    assert found["tokens"]["computed"] == sum(event["computed_tokens"] for event in first)
    assert found["tokens"]["steps"] == result["steps"]
    assert found["tokens"]["run_real"] == result["real_tokens"]


@pytest.mark.parametrize("needed", [True, False])
def test_the_largest_micro_batch_is_tried_where_the_plan_says_so(shop: Workplace, *, needed: bool) -> None:
    with (
        mock.patch.object(planning.Plan, "rehearses", needed),
        mock.patch.object(LuthierTrainer, "rehearse") as rehearse,
    ):
        run = shop.train(f"tried-{needed}")
    assert rehearse.call_count == needed
    assert [event["rehearses"] for event in events(run, "plan")] == [needed]


def test_a_run_keeps_what_was_planned(shop: Workplace) -> None:
    run = shop.train("kept")
    (event,) = events(run, "plan")
    assert [each["event"] for each in run.events()][:2] == ["start", "plan"]
    assert event["memory"]["device"]["weights"] == WEIGHTS
    record = run.record() or {}
    assert list(record["plan"]) == [
        "peak_memory_bytes",
        "seconds",
        "total_seconds",
        "computed_tokens",
        "real_tokens",
        "steps",
    ]
    assert record["plan"]["peak_memory_bytes"] == event["memory"]["measurable_bytes"]
    assert record["plan"]["real_tokens"] == record["result"]["real_tokens"]
    assert record["result"]["total_seconds"] > record["result"]["seconds"]
    last = luthier("plan", "--calibration", "--json").json["runs"][-1]
    assert last["run"] == str(run.path)
    assert last["planned"] == {name: record["plan"][name] for name in last["planned"]}


def test_a_config_is_enough_for_the_memory(shop: Workplace, tmp_path: Path) -> None:
    shutil.copy(shop.model / "config.json", tmp_path)
    whole = planned(shop, "whole")
    for ref in (tmp_path, tmp_path / "config.json"):
        found = planned(shop, "config", model={"ref": str(ref)})
        assert found["memory"]["device"]["weights"] == whole["memory"]["device"]["weights"]
        assert (found["seconds"], found["tokens"], found["lengths"]) == (None, None, None)
        assert found["micro_batch_tokens"] == 1024  # four rows as long as the model takes them


def test_weights_are_not_needed_for_the_rows(shop: Workplace, tmp_path: Path) -> None:
    for file in shop.model.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    found, whole = planned(shop, "rows", model={"ref": str(tmp_path)}), planned(shop, "rows-whole")
    assert found["tokens"] == whole["tokens"]
    assert found["memory"]["device"]["activations"] == whole["memory"]["device"]["activations"]


def test_in_python(shop: Workplace) -> None:
    plan = api.plan(shop.settings("python"))
    assert plan.memory.device["weights"] == WEIGHTS
    assert plan.fits


# What does not fit.


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes that there are; the libraries are taken to need none."""
    there = {"bytes": 10**12}
    monkeypatch.setattr(planning, "room_now", lambda device: Room(there["bytes"], there["bytes"]))
    monkeypatch.setattr(planning, "resident_bytes", lambda: 0)
    monkeypatch.setattr(planning.memory, "LATER", 0)
    monkeypatch.setattr(planning.memory, "leaves_holes", lambda: False)
    return there


LARGE = {"train": {"batch_size": 20, "micro_batch_tokens": 10_000}}


def test_changes_that_would_fit(shop: Workplace, room: dict[str, int]) -> None:
    needs = planned(shop, "large", **LARGE)["memory"]["peak_bytes"]
    room["bytes"] = needs - 1
    found = luthier("plan", shop.recipe("large", **LARGE), "--json")
    assert (found.status, found.json["ok"]) == (1, False)
    settings = [list(each["settings"]) for each in found.json["changes"]]
    assert ["train.gradient_checkpointing"] in settings
    assert ["train.micro_batch_tokens", "train.gradient_accumulation_steps"] in settings
    assert all(each["peak_bytes"] < needs for each in found.json["changes"])
    layers = [each["settings"].get("train.gradient_checkpointing") for each in found.json["changes"]]
    assert 1 in layers  # one layer of two is enough


def test_a_recipe_that_fits_is_written(shop: Workplace, room: dict[str, int], tmp_path: Path) -> None:
    room["bytes"] = planned(shop, "fit", **LARGE)["memory"]["peak_bytes"] - 1
    out = tmp_path / "fits.yaml"
    done = luthier("plan", shop.recipe("fit", **LARGE), "--fit", out)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[-1] == f"Written  {out}"
    written = yaml.safe_load(out.read_text(encoding="utf-8"))
    assert written["train"]["batch_size"] == 20
    assert luthier("plan", out, "--json").json["fits"]
    again = luthier("plan", shop.recipe("fit", **LARGE), "--fit", out)
    assert (again.status, again.out) == (2, "")
    assert again.err == f"✗ {out}: is there already\n  → name another file, or delete it first\n"


def test_nothing_is_written_where_it_fits_or_nothing_would(
    shop: Workplace, room: dict[str, int], tmp_path: Path
) -> None:
    out = tmp_path / "fits.yaml"
    done = luthier("plan", shop.recipe("fits", **LARGE), "--fit", out)
    assert done.status == 0
    assert done.out.splitlines()[-1] == "It fits as it is, so no recipe is written."
    room["bytes"] = WEIGHTS
    done = luthier("plan", shop.recipe("never", **LARGE), "--fit", out)
    assert done.status == 1
    assert "No setting makes it fit: take a smaller model, or a machine with more memory." in done.out
    assert "no setting makes it fit into" in done.err
    assert not out.exists()


def test_what_is_shown(shop: Workplace, room: dict[str, int]) -> None:
    done = luthier("plan", shop.recipe("shown"))
    assert (done.status, done.err) == (0, "")
    assert "0 million weights, float32 on cpu" in done.out
    assert "9 steps of 3 an epoch" in done.out
    assert done.out.splitlines()[-1].startswith("It fits: ")
    room["bytes"] = 10**6
    done = luthier("plan", shop.recipe("shown"))
    assert done.status == 1
    assert "It does not fit: it needs " in done.out


def test_a_config_that_is_none(shop: Workplace, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "no such thing"}), encoding="utf-8")
    done = luthier("plan", shop.recipe("none", model={"ref": str(tmp_path)}))
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"✗ {file}: cannot be read as a model's config: ")
