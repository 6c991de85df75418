"""`luthier train`: a recipe becomes a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier import console


def train(
    recipe: Annotated[Path | None, typer.Argument(help="The recipe, a YAML file.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="train.epochs=1; may be repeated.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin again, whatever the output folder holds.")] = False,
    help_recipe: Annotated[bool, typer.Option("--help-recipe", help="Every setting of a recipe, and stop.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines on a terminal too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Train a recipe. The same command goes on with a run that was stopped."""
    if json:
        console.use_json()
    if plain:
        console.use_plain()
    if help_recipe:
        from luthier.recipe.document import document

        console.say(document())
        return
    if recipe is None:
        raise typer.BadParameter("name a recipe: luthier train recipes/minimal.yaml", param_hint="RECIPE")
    from luthier.cli.summary import show_run
    from luthier.recipe.load import load_recipe
    from luthier.training.run import train as train_recipe

    run = train_recipe(load_recipe(recipe, overrides or []), fresh=fresh)
    show_run(run)
