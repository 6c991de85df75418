"""Kills a training with SIGKILL at random moments until it ends, and compares it with one that was never killed.

    python tests/kill.py --kills 30 --runs 6 --seed 1
    python tests/kill.py --kills 5 --runs 1 --model bundled:smollm2-135m-instruct --data src/luthier/demo/luthier.jsonl

Each run is `luthier train RECIPE` in a process of its own, started again by the same command after each kill. The
moments are drawn from the seed: while it starts, in a step, in the middle of a save, after the training. Not a mock:
what the harness knows of a run it reads from the run's folder. Exit status 0 only if all runs end with the same bytes
in their adapter, and the same loss in every logged step and evaluation.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

ROOT = Path(__file__).parents[1]
MOMENTS = {"start": 1, "step": 4, "save": 4, "finish": 1}
"""Kinds of moments and how often each is drawn."""
PATIENCE = 900  # seconds that a moment may be waited for


class Process(Protocol):
    def poll(self) -> int | None: ...

    def kill(self) -> None: ...


@dataclass
class Outcome:
    """`moments`: what each kill met, as it was found in the folder afterwards."""

    name: str
    moments: list[str] = field(default_factory=list)
    same_adapter: bool = False
    same_losses: bool = False


def start(recipe: Path) -> Process:
    """`luthier train RECIPE`, its output in a file beside the recipe."""
    log = recipe.with_suffix(".log").open("ab")
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "luthier", "train", str(recipe)]
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


class Forked:
    """The same in a fork of this process, which has imported all that takes long. Not where torch uses a GPU."""

    def __init__(self, recipe: Path) -> None:
        self._status: int | None = None
        self._pid = os.fork()
        if self._pid == 0:
            self._train(recipe)

    def poll(self) -> int | None:
        if self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)

    @staticmethod
    def _train(recipe: Path) -> None:
        from luthier.cli.main import main as luthier

        log = os.open(recipe.with_suffix(".log"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        sys.argv = ["luthier", "train", str(recipe)]
        status = 1
        try:
            luthier()
            status = 0
        except SystemExit as exit:
            status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
        finally:
            sys.stdout.flush()
            os._exit(status)


def write_recipe(folder: Path, name: str, settings: dict[str, Any]) -> Path:
    recipe = folder / f"{name}.yaml"
    text = yaml.safe_dump({**settings, "output": str(folder / "runs" / name)}, allow_unicode=True)
    recipe.write_text(text, encoding="utf-8")
    return recipe


def run_to_the_end(recipe: Path, begin: Callable[[Path], Process] = start) -> None:
    process = begin(recipe)
    while process.poll() is None:
        time.sleep(0.02)
    if process.poll() != 0:
        raise SystemExit(f"{recipe}: exit status {process.poll()}; see {recipe.with_suffix('.log')}")


def kill_until_it_ends(
    recipe: Path, kills: int, draw: random.Random, step_seconds: float, begin: Callable[[Path], Process] = start
) -> list[str]:
    """Kills a run so many times, then lets it end. `step_seconds`: how long a step takes."""
    run, moments = Path(yaml.safe_load(recipe.read_text(encoding="utf-8"))["output"]), []
    while len(moments) < kills and not (run / "run.json").exists():
        # After the training there is nothing left to kill but its end: that comes last.
        last = len(moments) == kills - 1
        kinds = [kind for kind in MOMENTS if last or kind != "finish"]
        kind = draw.choices(kinds, [MOMENTS[kind] for kind in kinds])[0]
        process = begin(recipe)
        if _wait_for(kind, run, draw, step_seconds, process):
            process.kill()
            _wait_for_end(process)
            moments.append(f"{kind}: {_state(run)}")
        elif process.poll() != 0:
            raise SystemExit(f"{recipe}: exit status {process.poll()}; see {recipe.with_suffix('.log')}")
    if not (run / "run.json").exists():
        run_to_the_end(recipe, begin)
    return moments


def _wait_for(kind: str, run: Path, draw: random.Random, step_seconds: float, process: Process) -> bool:
    """Until the moment has come; False where the process ended before it. A busy machine only makes it later."""
    steps, saves = _count(run, "step") + draw.randrange(1, 6), _count(run, "save") + draw.randrange(3)
    reached: dict[str, Callable[[], bool]] = {
        "start": lambda: True,
        "step": lambda: _count(run, "step") >= steps,
        "save": lambda: _count(run, "save") >= saves and any((run / "checkpoints" / ".saving").glob("*")),
        "finish": lambda: _count(run, "finish") > 0,
    }
    longest = {"start": 8.0, "step": 1.5 * step_seconds, "save": 0.1, "finish": 0.3}
    deadline = time.monotonic() + PATIENCE
    while not reached[kind]():
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.0005)
    time.sleep(draw.uniform(0, longest[kind]))
    return process.poll() is None


def _wait_for_end(process: Process) -> None:
    while process.poll() is None:
        time.sleep(0.001)


def _events(run: Path) -> list[dict[str, Any]]:
    """The whole lines; the last may be half written."""
    try:
        lines = (run / "events.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def _count(run: Path, kind: str) -> int:
    try:
        return (run / "events.jsonl").read_bytes().count(f'"event": "{kind}"'.encode())
    except FileNotFoundError:
        return 0


def _state(run: Path) -> str:
    """What a kill left: the last event, and what was being written."""
    events = _events(run)
    last = f"after {events[-1]['event']} {events[-1]['step']}" if events else "before the first event"
    writing = sorted((run / "checkpoints" / ".saving").glob("*/*"))
    if (run / "checkpoints" / ".saving").exists():
        return f"{last}, {len(writing)} files of a checkpoint written"
    return f"{last}, adapter half written" if (run / ".adapter.partial").exists() else last


def results(run: Path) -> tuple[bytes, list[tuple[Any, ...]]]:
    """The adapter's bytes, and each step's and evaluation's loss: the last time each was done."""
    found = {
        (e["event"], e["step"]): e.get("loss", e.get("heldout_loss"))
        for e in _events(run)
        if e["event"] in ("step", "evaluation")
    }
    adapter = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    return adapter, sorted((*key, loss) for key, loss in found.items())


def harness(
    folder: Path,
    settings: dict[str, Any],
    *,
    runs: int,
    kills: int,
    seed: int,
    begin: Callable[[Path], Process] = start,
    say: Callable[[str], None] = lambda text: None,
) -> list[Outcome]:
    """`kills` spread over `runs` runs of one recipe, each compared with one that nobody touched."""
    run_to_the_end(write_recipe(folder, "whole", settings), begin)
    adapter, losses = results(folder / "runs" / "whole")
    seconds = statistics.median(e["seconds"] for e in _events(folder / "runs" / "whole") if e["event"] == "step")
    say(f"never killed: {len(losses)} losses, {len(adapter):,} bytes of adapter, {seconds:.3f} s a step")
    outcomes = []
    for number in range(runs):
        name, draw = f"killed-{number + 1}", random.Random(f"{seed}/{number}")
        share = kills // runs + (number < kills % runs)
        moments = kill_until_it_ends(write_recipe(folder, name, settings), share, draw, seconds, begin)
        found = results(folder / "runs" / name)
        outcomes.append(Outcome(name, moments, found[0] == adapter, found[1] == losses))
        say(f"{name}: {len(moments)} kills, same adapter {found[0] == adapter}, same losses {found[1] == losses}")
        for moment in moments:
            say(f"    {moment}")
    return outcomes


def tiny_settings(folder: Path) -> dict[str, Any]:
    """A two-layer model made here; dropout, so that the random state matters; a checkpoint every second step."""
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests"), str(ROOT / "tests" / "pipeline")]
    from driver import PAIRS, write_rows
    from tiny import save_model

    pairs = [(f"{question} {n}", answer) for n in range(4) for question, answer in PAIRS]
    return {
        "model": {"ref": str(save_model(folder / "model")), "dtype": "float32", "device": "cpu"},
        "data": {"train": str(write_rows(folder / "rows.jsonl", pairs)), "holdout": 8},
        "adapter": {"rank": 4, "alpha": 8, "dropout": 0.1},
        "train": {"epochs": 4, "batch_size": 8, "learning_rate": 0.01, "save_steps": 2, "eval_steps": 5},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", help="a model reference; without it a tiny one is made")
    parser.add_argument("--data", help="rows for --model")
    parser.add_argument("--steps", type=int, default=12, help="steps with --model")
    parser.add_argument("--fork", action="store_true", help="fork each process from this one: starts faster")
    parser.add_argument("--folder", type=Path, help="where to work; without it a temporary folder")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="luthier-kill-"))
    folder.mkdir(parents=True, exist_ok=True)
    if asked.model:
        settings: dict[str, Any] = {
            "model": {"ref": asked.model, "device": "cpu"},
            "data": {"train": asked.data, "holdout": 4},
            "adapter": {"rank": 8, "dropout": 0.05},
            "train": {"steps": asked.steps, "batch_size": 4, "save_steps": 2, "eval_steps": 5},
        }
    else:
        settings = tiny_settings(folder)
    if asked.fork:
        sys.path[:0] = [str(ROOT / "src")]
        import luthier.training.fit  # noqa: F401
    begin: Callable[[Path], Process] = Forked if asked.fork else start
    say = lambda text: sys.stdout.write(text + "\n") and sys.stdout.flush()  # noqa: E731
    outcomes = harness(folder, settings, runs=asked.runs, kills=asked.kills, seed=asked.seed, begin=begin, say=say)
    met = Counter(moment.partition(":")[0] for outcome in outcomes for moment in outcome.moments)
    same = sum(outcome.same_adapter and outcome.same_losses for outcome in outcomes)
    kinds = ", ".join(f"{n} at {kind}" for kind, n in met.items())
    say(f"{met.total()} kills ({kinds}); {same} of {len(outcomes)} the same")
    sys.exit(0 if same == len(outcomes) else 1)


if __name__ == "__main__":
    main()
