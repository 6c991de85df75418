"""What `start.py` shows while it installs. Standard library only, as nothing is installed yet."""

from __future__ import annotations

import re
import shutil
import sys
import threading
import time
from pathlib import Path


class Step:
    """One numbered line. On a terminal it lives: what goes on, and the seconds; in a log it is printed when done."""

    def __init__(self, title: str) -> None:
        self.title, self.result, self.activity = title, "done", ""
        self.notes: list[str] = []
        self.began = self.last_sign = time.monotonic()

    def live(self, done: threading.Event) -> None:
        """Keep the line alive until `done`."""
        while not done.wait(0.5):
            self.show()

    def show(self) -> None:
        line = f"{self.title} … {time.monotonic() - self.began:.0f} s  {self.activity}"
        if sys.stderr.isatty():
            width = shutil.get_terminal_size().columns - 1
            print("\r" + line[:width].ljust(width), end="\r", file=sys.stderr, flush=True)
        elif time.monotonic() - self.last_sign > 15:
            self.last_sign = time.monotonic()
            say(line)

    def end(self, result: str) -> None:
        self.show()
        say("\n      note: ".join([f"{self.title}: {result} ({time.monotonic() - self.began:.1f} s)", *self.notes]))


def say(text: str) -> None:
    """To standard error: standard output belongs to the command that is started."""
    print(text, file=sys.stderr, flush=True)


def activity(line: str) -> str:
    """What a line of pip's output says is going on, short; "" for lines that say nothing new."""
    done = re.match(r"Progress (\d+) of ([1-9]\d*)", line)
    if done:
        return f"{int(done[1]) / 1e6:.0f} of {int(done[2]) / 1e6:.0f} MB"
    if line.startswith("Installing collected packages"):
        return f"unpacking {line.count(',') + 1} packages"
    words = re.match(r"\s*(Collecting|Downloading|Processing|Building) (\S+)", line)
    return f"{words[1].lower()} {Path(words[2]).name}" if words else ""
