"""A benchmark as a command: its errors as Luthier's own commands show them."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from luthier import console
from luthier.errors import LuthierError


def run_command(command: Callable[..., None]) -> None:
    """Runs it on this process's arguments, and ends the process where it fails."""
    console.set_up_streams()
    try:
        typer.run(command)
    except LuthierError as error:
        console.fail(error)
        sys.exit(error.exit_status)
