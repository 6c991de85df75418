"""Which signals stop a run, and when: in the middle, behind the last step, and at once."""

from __future__ import annotations

import os
import signal
from typing import Any
from unittest import mock

import pytest
from driver import Workplace, events, luthier, signals_in_step

from luthier.model import adapters


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_signals_stop_it_in_the_same_way(shop: Workplace, name: str) -> None:
    recipe = shop.recipe(name, data={"holdout": 0}, train={"steps": 3})
    with signals_in_step(2, signal.Signals[name]):
        done = luthier("train", recipe)
    run = shop.run(name)
    assert (done.status, done.err) == (
        3,
        f"✗ {run.path}: stopped by {name} at step 1 of 3, and saved\n  → the same command goes on from there\n",
    )
    assert [(event["step"], event["reason"]) for event in events(run, "stop")] == [(1, name)]
    before = signal.getsignal(signal.Signals[name])
    assert before == signal.SIG_DFL  # the process is itself again


def test_a_signal_after_the_last_step_is_obeyed_too(shop: Workplace) -> None:
    settings: dict[str, Any] = {"data": {"holdout": 0}, "train": {"steps": 2}}
    save = adapters.save

    def signalled(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(*args, **kwargs)

    run = shop.run("last")
    with mock.patch.object(adapters, "save", signalled):
        done = luthier("train", shop.recipe("last", **settings))
    assert (done.status, done.err) == (
        3,
        f"✗ {run.path}: stopped at once by SIGTERM\n"
        "  → the same command goes on from the last checkpoint, if there is one\n",
    )
    assert shop.train("last", **settings).state() == "finished"


def test_a_second_ctrl_c_stops_at_once(shop: Workplace) -> None:
    """Nothing is saved then, so the run begins anew, even with another recipe."""
    with signals_in_step(2, signal.SIGINT, signal.SIGINT):
        done = luthier("train", shop.recipe("twice", data={"holdout": 0}, train={"steps": 3}), "--json")
    run = shop.run("twice")
    assert done.status == 3
    assert done.json == {
        "ok": False,
        "error": "Stopped",
        "problems": [
            {
                "where": str(run.path),
                "what": "stopped at once by Ctrl-C",
                "fix": "the same command goes on from the last checkpoint, if there is one",
            }
        ],
    }
    assert run.state() == "interrupted at step 1"
    shop.train("twice", data={"holdout": 0}, train={"steps": 1})
    assert [(event["event"], event["step"]) for event in run.events()] == [
        ("start", 0),
        ("plan", 0),
        ("step", 1),
        ("save", 1),
        ("finish", 1),
    ]
