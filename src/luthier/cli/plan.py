"""`luthier plan`: memory and time of a recipe, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier import console


def plan(
    recipe: Annotated[Path | None, typer.Argument(help="The recipe, a YAML file.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="train.epochs=1; may be repeated.")] = None,
    fit: Annotated[Path | None, typer.Option(help="Write a recipe that fits to this file.")] = None,
    calibration: Annotated[bool, typer.Option("--calibration", help="How right earlier plans were.")] = False,
    common: Annotated[bool, typer.Option("--common", help="Common models on common machines, as a table.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Say what a recipe takes, in memory and time, and whether it fits; no weights are needed."""
    if json:
        console.use_json()
    if calibration:
        from luthier.training.forecast import calibration as history

        history.show()
        return
    if common:
        from luthier.training.forecast import common as machines

        machines.show()
        return
    if recipe is None:
        raise typer.BadParameter("name a recipe: luthier plan recipes/minimal.yaml", param_hint="RECIPE")
    from luthier.recipe.load import load_recipe
    from luthier.training.planning import look_ahead

    if not look_ahead(load_recipe(recipe, overrides or []), fit):
        raise typer.Exit(1)
