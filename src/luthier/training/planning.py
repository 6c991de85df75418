"""`luthier.plan`: a recipe's memory and time, before anything starts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import console
from luthier.errors import CheckFailed, Problem, RecipeError
from luthier.hardware.environment import importing, prepare_torch
from luthier.recipe.load import as_recipe
from luthier.recipe.schema import Recipe
from luthier.report import disk, words
from luthier.report.refuse import refuse_secrets

if TYPE_CHECKING:
    from luthier.training.forecast.changes import Change
    from luthier.training.forecast.plan import Plan


def plan(recipe: Recipe | dict[str, Any] | str | Path) -> Plan:
    """What a recipe (a file, a dict or a Recipe) takes: bytes by part, seconds by part, and whether it fits.

    No weights are needed: a folder with a config.json will do. Raises InputError for what cannot be planned.
    """
    return _ahead(as_recipe(recipe))[0]


def look_ahead(recipe: Recipe, fit: Path | None = None) -> bool:
    """Shows the plan of a recipe; whether it fits. `fit`: where to write one that does, if this one does not.

    Raises RecipeError where that file is there already, CheckFailed where no setting makes it fit.
    """
    if fit is not None:
        _check_target(fit)
        refuse_secrets(recipe)
    planned, lengths, found = _ahead(recipe)
    from luthier.training.forecast.show import show, show_changes

    show(planned, lengths)
    if not planned.fits:
        show_changes(found)
    written = _write(fit, found, planned) if fit is not None else None
    console.result(
        {
            "ok": planned.fits,
            **planned.to_json(),
            "lengths": lengths,
            "choices": {name: vars(choice) for name, choice in planned.choices.items()},
            "changes": [each.to_json() for each in found],
            "written": written,
        }
    )
    return planned.fits or written is not None


def _ahead(recipe: Recipe) -> tuple[Plan, dict[str, Any] | None, list[Change]]:
    began = time.perf_counter()
    prepare_torch(deterministic=recipe.train.deterministic)
    with importing():
        from luthier.training.forecast.changes import changes
        from luthier.training.forecast.plan import of_recipe

    planned, forecast, lengths = of_recipe(recipe, began)
    return planned, lengths, changes(recipe, planned, forecast)


def _check_target(file: Path) -> None:
    if file.exists():
        raise RecipeError(Problem(str(file), "is there already", "name another file, or delete it first"))
    if not file.parent.is_dir():
        raise RecipeError(Problem(str(file), "its folder is not there", f"make it first: {file.parent}"))


def _write(file: Path, found: list[Change], planned: Plan) -> str | None:
    """The file's name, or None where the recipe fits as it is."""
    import yaml

    if planned.fits:
        console.say("It fits as it is, so no recipe is written.")
        return None
    if not found:
        what = f"no setting makes it fit into {words.size(planned.room.device)}"
        raise CheckFailed(Problem(planned.model, what, "take a smaller model, or a machine with more memory"))
    best = found[0]
    settings = best.recipe.model_dump(mode="json", exclude_unset=True)
    for name in best.settings:  # model_copy does not say that they were set
        section, _, setting = name.partition(".")
        settings.setdefault(section, {})[setting] = best.settings[name]
    head = "# Written by luthier plan --fit. Changed so that it fits:\n"
    head += "".join(f"#   {name}: {str(value).lower()}\n" for name, value in best.settings.items())
    disk.replace(file, (head + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)).encode())
    console.say(f"Written  {file}")
    return str(file)
