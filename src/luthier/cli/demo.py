"""`luthier demo`: a small model becomes a violin maker of Cremona, in a few minutes on any machine."""

from __future__ import annotations

from importlib import resources
from typing import Annotated

import typer

from luthier import console


def demo(
    overrides: Annotated[list[str] | None, typer.Option("--set", help="train.epochs=1; may be repeated.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin again with a finished demo.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines on a terminal too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Train the bundled model on the bundled rows. Its answers before and after show what changed."""
    if json:
        console.use_json()
    if plain:
        console.use_plain()
    from luthier.cli.summary import show_run
    from luthier.recipe.load import load_recipe
    from luthier.report.record import RunFolder
    from luthier.training.run import train

    folder = resources.files("luthier.demo")
    with resources.as_file(folder / "luthier.jsonl") as rows, resources.as_file(folder / "recipe.yaml") as file:
        recipe = load_recipe(file, [f'data.train="{rows.as_posix()}"', *(overrides or [])])
        run = RunFolder(recipe.output)
        if fresh or run.state() != "finished":
            run = train(recipe, fresh=fresh)
        else:
            console.say(f"The demo in {run.path} is finished; luthier demo --fresh trains it again.")
        show_run(run)
