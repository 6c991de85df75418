"""Killed at random moments, again and again, a run ends with the same bytes. The long form: `python tests/kill.py`."""

from __future__ import annotations

import os
from pathlib import Path

import kill
import torch
from driver import Workplace


def test_three_kills_leave_no_trace(shop: Workplace, tmp_path: Path) -> None:
    settings = shop.settings("", adapter={"dropout": 0.1}, train={"epochs": 3, "save_steps": 2, "eval_steps": 4})
    said: list[str] = []
    begin = kill.start if torch.accelerator.is_available() or not hasattr(os, "fork") else kill.Forked
    [outcome] = kill.harness(tmp_path, settings, runs=1, kills=3, seed=3, begin=begin, say=said.append)
    assert (outcome.same_adapter, outcome.same_losses) == (True, True), said
    assert outcome.moments  # up to three: a fast machine is done before the last
