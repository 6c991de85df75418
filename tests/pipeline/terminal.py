"""A command in a terminal of its own: what it draws, and keys pressed there. POSIX alone has such terminals."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from driver import SRC

CTRL_C = b"\x03"
PATIENCE = 120  # seconds without a sign


class Terminal:
    """`output` is all that was written so far, with what steers a terminal."""

    def __init__(self, process: subprocess.Popen[bytes], keyboard: int) -> None:
        self.process, self._keyboard = process, keyboard
        self._written = b""

    @property
    def output(self) -> str:
        return self._written.decode(errors="replace")

    def press(self, keys: bytes) -> None:
        os.write(self._keyboard, keys)

    def until(self, pattern: str) -> str:
        """Reads until a pattern was written; what it matched. Fails where the command ends without it."""
        while (found := re.search(pattern, self.text())) is None:
            assert self._read(), f"ended without {pattern}:\n{self.text()}"
        return found[0]

    def end(self) -> int:
        """Reads to the end; the exit status."""
        while self._read():
            pass
        return self.process.wait(timeout=300)

    def text(self) -> str:
        """What was written, without colors and moves of the cursor."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.output).replace("\r", "")

    def last_drawn(self) -> list[str]:
        """The last view and what came after it: lines behind the last move of the cursor upwards."""
        last = re.split(r"(?:\r?\x1b\[2K(?:\x1b\[1A)?)+", self.output)[-1]
        return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", last).replace("\r", "").splitlines()]

    def _read(self) -> bool:
        assert select.select([self._keyboard], [], [], PATIENCE)[0], f"nothing more after {self.text()[-500:]}"
        try:
            new = os.read(self._keyboard, 1 << 16)
        except OSError:  # Linux's way to say that the other end was closed
            new = b""
        self._written += new
        return bool(new)


@contextmanager
def in_terminal(*arguments: object, columns: int = 240, **environment: str) -> Iterator[Terminal]:
    """`luthier ARGUMENTS…` in a terminal of so many columns."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    known = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "luthier", *map(str, arguments)],
        env={**known, "PYTHONPATH": str(SRC), "TERM": "xterm-256color", **environment},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: (os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),  # its own: Ctrl-C goes to it alone
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(ours)
