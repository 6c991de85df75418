"""`luthier` whose training waits, after a step, for a file to be there: `gated.py 4 FILE train recipe.yaml`.

So a test can send a signal at a known step, however fast or slow the machine.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from luthier.cli.main import main
from luthier.training.trainer import LuthierTrainer

_, step, gate, *arguments = sys.argv
training_step = LuthierTrainer.training_step


def waiting(self: LuthierTrainer, *inputs: Any) -> Any:
    while self.state.global_step == int(step) and not Path(gate).exists():
        time.sleep(0.01)
    return training_step(self, *inputs)


LuthierTrainer.training_step = waiting  # type: ignore[method-assign]
sys.argv = ["luthier", *arguments]
main()
