"""The live view in terminals that change their width while it is drawn."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from luthier.report.record import RunFolder
from luthier.training.redraw import Redrawn

RECORDED = Path(__file__).with_name("recorded.jsonl")
SRC = Path(__file__).parents[3] / "src"


@pytest.mark.parametrize(("width", "more"), [(90, 0), (60, 0), (50, 0), (49, 1), (24, 3), (17, 4)])
def test_the_rows_that_a_narrower_terminal_makes_of_the_lines_are_erased(width: int, more: int) -> None:
    console = Console(width=60, height=3, force_terminal=True, legacy_windows=False, _environ={})
    view = Redrawn(lambda: Text(f"{'x' * 50}\n{'木' * 20}\n\n{'below the last row' * 9}"), console)
    with console.capture():
        console.print(view)
    console.width = width
    erased, after = view.process_renderables([Text("after")])
    assert (str(erased), str(after)) == ("\x1b[1A\x1b[2K" * more, "after")


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """A real terminal, which breaks lines anew."""
    if shutil.which("tmux") is None:
        pytest.skip("no tmux on this machine")

    def tmux(*arguments: object) -> str:
        command = ["tmux", "-S", str(tmp_path / "socket"), *map(str, arguments)]
        return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout

    yield tmux
    tmux("kill-server")


def test_nothing_is_left_behind_when_the_window_changes(tmux: Callable[..., str], tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "huanhuan").create()
    now = time.time()
    events = [{**event, "time": now} for event in map(json.loads, RECORDED.read_text("utf-8").splitlines())]
    run.events_file.write_text("".join(json.dumps(event) + "\n" for event in events), "utf-8")

    def screen() -> list[str]:
        """The view's lines, or their labels. The line above it may have been moved into what is scrolled back to."""
        lines = tmux("capture-pane", "-p").rstrip("\n").splitlines()
        return [re.split("  +|[╸╺]", line)[0] for line in lines if not line.startswith((" ", "going on "))]

    command = f"env -u COLUMNS -u LINES PYTHONPATH={SRC} {sys.executable} -m luthier watch {run.path}"
    with run.lock():
        tmux("new-session", "-d", "-x", 100, "-y", 30, command)
        for width in (100, 60, 40, 90, 50):
            tmux("resize-window", "-x", width, "-y", 30)
            whole = [
                "huanhuan", "━" * ((width - 22) // 2), "loss", "held-out loss", "speed", "memory", "checkpoint",
                "question", "at step 0", "at step 60",
            ]  # fmt: skip
            for _ in range(600):
                if screen() == whole:
                    break
                time.sleep(0.1)
            assert screen() == whole
