"""The `luthier` command: one small file a command, and one place that turns errors into exit statuses.

Exit statuses: 0 done, 1 a check failed, 2 bad input or setting, 3 stopped and resumable.
Nothing here, nor at the top of a command's file, imports torch: `luthier --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from luthier import console
from luthier.cli.chat import chat
from luthier.cli.data import data
from luthier.cli.demo import demo
from luthier.cli.doctor import doctor
from luthier.cli.evaluate import evaluate
from luthier.cli.export import export
from luthier.cli.fetch import fetch
from luthier.cli.interrupt import interruptible
from luthier.cli.merge import merge
from luthier.cli.plan import plan
from luthier.cli.push import push
from luthier.cli.report import report
from luthier.cli.runs import runs
from luthier.cli.serve import serve
from luthier.cli.train import train
from luthier.cli.watch import watch
from luthier.errors import LuthierError

app = typer.Typer(
    name="luthier",
    help="Fine-tune a language model on the machine you have, and see that it worked.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would draw boxes around the same words, and take as long to load as all the rest
    add_completion=False,
)
COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "doctor": doctor,
    "fetch": fetch,
    "data": data,
    "plan": plan,
    "train": train,
    "watch": watch,
    "eval": evaluate,
    "chat": chat,
    "merge": merge,
    "export": export,
    "push": push,
    "serve": serve,
    "runs": runs,
    "report": report,
}
for name, command in COMMANDS.items():
    app.command(name)(interruptible(name, command))


def main() -> None:
    """Run the command line; a LuthierError becomes its problems on standard error and its exit status."""
    console.set_up_streams()
    try:
        app()
    except LuthierError as error:
        console.fail(error)
        sys.exit(error.exit_status)
