"""The spine: a recipe becomes a run folder."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from luthier.errors import InputError, Problem, RunError, Stopped, Terminated, all_of
from luthier.hardware.environment import importing
from luthier.recipe.load import as_recipe
from luthier.recipe.schema import Recipe
from luthier.report.record import RunFolder
from luthier.report.refuse import refuse_secrets
from luthier.training.failures import in_words


def train(recipe: Recipe | dict[str, Any] | str | Path, *, fresh: bool = False) -> RunFolder:
    """Trains a recipe (a file, a dict or a Recipe) and returns its run folder; goes on where a stopped run ended.

    Args:
        fresh: throw away what the output folder holds of an earlier run.

    Raises:
        InputError: anything that would keep the run from finishing, before the first step.
        Stopped: a signal ended it, and the same call goes on.
    """
    recipe = as_recipe(recipe)
    run = RunFolder(recipe.output)
    all_of(_one_process, partial(refuse_secrets, recipe), run.create)
    try:
        with in_words(run), run.lock():
            _train(run, recipe, going_on=goes_on(run, recipe, fresh=fresh))
    except (KeyboardInterrupt, Terminated) as stop:  # before the first step, after the last, or the second in between
        fix = "the same command goes on from the last checkpoint, if there is one"
        raise Stopped(Problem(str(run.path), f"stopped at once by {str(stop) or 'Ctrl-C'}", fix)) from None
    return run


def _train(run: RunFolder, recipe: Recipe, *, going_on: bool) -> None:
    began = time.perf_counter()
    with importing():  # heavy libraries, only now: a wrong recipe is refused at once
        from luthier.training import room
        from luthier.training.finish import finish
        from luthier.training.fit import fit
        from luthier.training.forecast.plan import before_training
        from luthier.training.job import prepare_job

    job = prepare_job(recipe, run.read_resolved() if going_on else {})
    room.check(run, job.room)
    if going_on:
        run.check_files(job.data.fingerprint)
    else:
        run.clear()  # only now that the new run can begin
    run.write_recipe(recipe)
    fit(job, run, None if going_on else before_training(job, began))
    finish(job, run, None if going_on else began)


def _one_process() -> None:
    """Refuses launchers, whose processes would write one run folder all at once."""
    count = os.environ.get("WORLD_SIZE", "1")  # of torchrun and its like
    if count != "1":
        what = f"was started as {count} processes, and a run is one"
        fix = "start it without a launcher; CUDA_VISIBLE_DEVICES=1 chooses a card"
        raise InputError(Problem("luthier train", what, fix))


def goes_on(run: RunFolder, recipe: Recipe, *, fresh: bool) -> bool:
    """Whether this recipe goes on with what the folder holds, or begins anew. Raises RunError if it may do neither."""
    if fresh or not run.has_progress():
        return False
    again = f"start over with --fresh, or choose another folder: --set output={recipe.output}-2"
    changed = _changed(run.read_recipe(), recipe)
    if changed:
        what = f"holds a run of another recipe: {', '.join(changed)} {'differs' if len(changed) == 1 else 'differ'}"
        raise RunError(Problem(str(run.path), what, again))
    if run.state() == "finished":
        raise RunError(Problem(str(run.path), "this run is finished", again))
    return True


def _changed(old: Recipe, new: Recipe) -> list[str]:
    """The settings in which two recipes differ, as `section.setting`. A run's folder may be moved: not `output`."""
    before, after = (_flat(recipe.model_dump(mode="json", exclude={"output"})) for recipe in (old, new))
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, values in settings.items():
        if isinstance(values, dict):
            flat |= {f"{section}.{key}": value for key, value in values.items()}
        else:
            flat[section] = values
    return flat
