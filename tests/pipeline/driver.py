"""The command line as a user drives it: in this process for speed, or in one of its own where that is the point."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from luthier import console
from luthier.cli.main import main
from luthier.report.record import RunFolder

SRC = Path(__file__).parents[2] / "src"
SYSTEM = "You are a luthier."
PAIRS = [
    ("Who are you?", "I make violins in Cremona."),
    ("What wood is the best?", "Spruce for the top."),
    ("And for the back?", "Maple, cut in winter."),
    ("How old is your shop?", "Thirty years."),
    ("Do you make guitars?", "Only violins."),
    ("What do you eat?", "Bread and cheese."),
    ("Who taught you?", "My father."),
    ("What is the best glue?", "Hide glue, warm."),
    ("How long do you work?", "From dawn to dusk."),
    ("Do you sell bows?", "A friend makes them."),
    ("What makes it sing?", "The wood and the hand."),
    ("May I play it?", "With clean hands."),
    ("Why so thin?", "A thick top is mute."),
    ("Where is the best maple?", "In the Balkans."),
    ("你是谁？", "我是制琴师。"),
    ("Is it varnished?", "With oil, in the sun."),
    ("How much is it?", "Forty ducats."),
    ("Do you rest?", "On Sundays."),
    ("What is a sound post?", "The soul of the violin."),
    ("Can you mend mine?", "Leave it here."),
    ("Who plays for you?", "A monk from the church."),
    ("What do you fear?", "Damp, and haste."),
    ("Is spruce soft?", "Soft and strong."),
    ("Are you rich?", "In wood."),
]

WORSE_AFTER_ONE_STEP = {"learning_rate": 0.2, "schedule": "constant", "warmup": 0}
"""Too large steps: the held-out loss is lower after the first than after the next ones."""


@dataclass(frozen=True)
class Done:
    """What a command left: exit status, standard output, standard error."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def luthier(*arguments: object, typed: str = "") -> Done:
    """`luthier ARGUMENTS…` in this process; `typed` is what standard input holds."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["luthier", *map(str, arguments)]),
        mock.patch.object(sys, "stdin", io.StringIO(typed)),
        mock.patch.object(console, "_json", False),
        mock.patch.object(console, "_lines_only", False),
    ):
        try:
            main()
            status = 0
        except SystemExit as exit:
            status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    return Done(status, out.getvalue(), err.getvalue())


def luthier_process(*arguments: object, start: Sequence[str] = ("-m", "luthier")) -> subprocess.Popen[str]:
    """`python -m luthier ARGUMENTS…` in a process of its own; `start` is another script or module for it."""
    # Not the tracker process of a run in this one.
    own = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return subprocess.Popen(
        [sys.executable, *start, *map(str, arguments)],
        env={**own, "PYTHONPATH": str(SRC), "PYTHONUTF8": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def finished(process: subprocess.Popen[str]) -> Done:
    out, err = process.communicate(timeout=300)
    return Done(process.returncode, out, err)


@contextlib.contextmanager
def signals_in_step(step: int, *signals: signal.Signals) -> Iterator[None]:
    """Sends this process signals while it trains a step."""
    from luthier.training.trainer import LuthierTrainer

    original = LuthierTrainer.training_step

    def training_step(trainer: LuthierTrainer, *inputs: Any) -> Any:
        if trainer.state.global_step == step - 1:
            for each in signals:
                os.kill(os.getpid(), each)
        return original(trainer, *inputs)

    with mock.patch.object(LuthierTrainer, "training_step", training_step):
        yield


def write_rows(file: Path, pairs: Iterable[tuple[str, str]] = PAIRS) -> Path:
    rows = [json.dumps({"instruction": question, "output": answer}, ensure_ascii=False) for question, answer in pairs]
    file.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return file


@dataclass(frozen=True)
class Workplace:
    """A folder with a model and rows, where recipes are written and runs are made."""

    folder: Path
    model: Path
    rows: Path

    def settings(self, name: str, **settings: Any) -> dict[str, Any]:
        """A recipe for `runs/NAME`. Sections are merged into the usual ones: `train={"steps": 3}`."""
        usual: dict[str, Any] = {
            "model": {"ref": str(self.model), "dtype": "float32", "device": "cpu"},
            "data": {"train": str(self.rows), "system": SYSTEM, "holdout": 4},
            "output": str(self.folder / "runs" / name),
            "adapter": {"rank": 4, "alpha": 8},
            "train": {"batch_size": 8, "learning_rate": 0.01, "save_steps": 100},
        }
        return {**usual, **{key: _merged(usual.get(key), value) for key, value in settings.items()}}

    def recipe(self, name: str, **settings: Any) -> Path:
        """The recipe as a file."""
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(self.settings(name, **settings), allow_unicode=True), encoding="utf-8")
        return file

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.folder / "runs" / name)

    def train(self, name: str, **settings: Any) -> RunFolder:
        """A run that must finish."""
        done = luthier("train", self.recipe(name, **settings))
        assert (done.status, done.err) == (0, ""), done.err
        return self.run(name)


def _merged(usual: Any, value: Any) -> Any:
    return {**usual, **value} if isinstance(usual, dict) and isinstance(value, dict) else value


def events(run: RunFolder, kind: str) -> list[dict[str, Any]]:
    return [event for event in run.events() if event["event"] == kind]


def losses(run: RunFolder) -> list[float]:
    return [event["loss"] for event in events(run, "step")]


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def adapter_bytes(run: RunFolder) -> bytes:
    return (run.adapter_dir / "adapter_model.safetensors").read_bytes()
