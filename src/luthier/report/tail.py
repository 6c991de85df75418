"""events.jsonl read while another process writes it."""

from __future__ import annotations

from luthier.report.record import Event, RunFolder, parse_event


class Tail:
    """What is new in a run's events at each `read()`. `damaged` counts whole lines that could not be read."""

    def __init__(self, run: RunFolder) -> None:
        self._file = run.events_file
        self._read, self._begins_with = 0, b""
        self.damaged = 0

    def read(self, *, to_the_end: bool = False) -> list[Event] | None:
        """The events since the last call; None where the file was begun anew, so that all of it is yet to be read.

        Args:
            to_the_end: take a last line that has no end too, if it can be read: nobody is writing it any more.
        """
        try:
            with self._file.open("rb") as file:
                anew = file.read(len(self._begins_with)) != self._begins_with
                file.seek(0 if anew else self._read)
                new = file.read()
        except FileNotFoundError:
            anew, new = bool(self._begins_with), b""
        if anew:
            self._read, self._begins_with = 0, b""
            return None
        *lines, last = new.split(b"\n")
        if to_the_end and parse_event(last) is not None:
            lines.append(last)
        if not self._begins_with and lines:
            self._begins_with = lines[0] + b"\n"
        self._read += len(new) - len(last)
        found = [parse_event(line) for line in lines]
        self.damaged += found.count(None)
        return [event for event in found if event is not None]
