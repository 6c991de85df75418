"""What a live view needs so that it leaves nothing behind in a terminal that becomes narrower."""

from __future__ import annotations

from collections.abc import Callable

from rich.cells import chop_cells
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook, RenderResult
from rich.control import Control
from rich.segment import ControlType, SegmentLines


class Redrawn(RenderHook):
    """`view()` as a renderable for a `rich.live.Live`, before which it is made a hook of that one's console.

    A narrower terminal breaks the lines it holds anew, into more rows than Live wrote and erases. (The few that break
    no lines, such as xterm, lose so many rows above the view.)
    """

    def __init__(self, view: Callable[[], RenderableType], console: Console) -> None:
        self.view, self.console = view, console
        self._drawn: list[str] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self.view(), options, pad=False)
        self._drawn = ["".join(part.text for part in line) for line in lines[: options.size.height]]
        yield SegmentLines(lines, new_lines=True)

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        width = self.console.width
        more = sum(max(len(chop_cells(line, width)) - 1, 0) for line in self._drawn)
        erase = (ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)
        return [Control(*erase * more), *renderables]
