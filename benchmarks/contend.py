"""One contender in this process: `python -m benchmarks.contend NAME TASK RESULT`. Also runs in a peer's environment."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from benchmarks.contenders import CONTENDERS
from benchmarks.task import Task


def main(name: str, task: str, result: str) -> None:
    contender = importlib.import_module(f"benchmarks.contenders.{CONTENDERS[name].module}")
    contender.run(Task.read(Path(task)), **CONTENDERS[name].options).write(Path(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
