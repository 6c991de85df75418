"""`luthier.plan`: a recipe's memory and time, before anything starts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from luthier import console
from luthier.hardware.environment import importing, prepare_torch
from luthier.recipe.schema import Recipe

if TYPE_CHECKING:
    from luthier.training.forecast.plan import Plan


def look_ahead(recipe: Recipe) -> Plan:
    began = time.perf_counter()
    prepare_torch(deterministic=recipe.train.deterministic)
    with importing():
        from luthier.training.forecast.plan import of_recipe
        from luthier.training.forecast.show import show
    planned, _, lengths = of_recipe(recipe, began)
    show(planned, lengths)
    console.result({"ok": planned.fits, **planned.to_json(), "lengths": lengths})
    return planned
