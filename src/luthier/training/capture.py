"""Whether a run's micro-batches are CUDA graphs: where nothing speaks against it, and they proved to be faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from luthier.choice import Choice
from luthier.data.render import Example
from luthier.engine import recurrent
from luthier.engine.choose import has_dropout
from luthier.engine.engines import Engine, FlatEngine
from luthier.engine.graph_trial import try_out
from luthier.engine.graphs import CannotCapture
from luthier.errors import Problem, RecipeError
from luthier.recipe.schema import TrainSettings
from luthier.training.plan import ASKED

WORTH_IT = 0.9  # of the time without


def pick_cuda_graphs(
    model: Any, engine: Engine, settings: TrainSettings, recomputed: int, dearest: Callable[[], Sequence[Example]]
) -> Choice[bool]:
    """Whether each micro-batch is one graph.

    Args:
        recomputed: layers that are run again in the backward pass.
        dearest: gives the micro-batch that is tried.

    Raises RecipeError where graphs are asked for and cannot be had.
    """
    if settings.cuda_graphs is False:
        return Choice(False, ASKED)
    asked = settings.cuda_graphs is True
    try:
        _check(model, engine, settings, recomputed, asked=asked)
        with torch.random.fork_rng():
            without, with_graph = try_out(model, engine, dearest(), drops=has_dropout(model))
    except CannotCapture as why:
        if asked:
            raise RecipeError(Problem("train.cuda_graphs", str(why), "leave it at auto")) from why
        return Choice(False, str(why))
    times = f"{1e3 * with_graph:.0f} ms a micro-batch, {1e3 * without:.0f} without"
    return Choice(asked or with_graph < WORTH_IT * without, f"{ASKED}; {times}" if asked else times)


def may_capture(model: Any, engine: Engine, settings: TrainSettings, recomputed: int) -> bool:
    """Whether graphs may be tried."""
    asked = settings.cuda_graphs is True
    speaks = against(model, engine, settings, recomputed, asked=asked).values()
    return settings.cuda_graphs is not False and not any(speaks)


def _check(model: Any, engine: Engine, settings: TrainSettings, recomputed: int, *, asked: bool) -> None:
    """Raises CannotCapture with the first that speaks against graphs."""
    for why, speaks in against(model, engine, settings, recomputed, asked=asked).items():
        if speaks:
            raise CannotCapture(why)


def against(model: Any, engine: Engine, settings: TrainSettings, recomputed: int, *, asked: bool) -> dict[str, bool]:
    """All that may speak against graphs, and whether it does."""
    return {
        f"{model.device.type} has no CUDA graphs": model.device.type != "cuda",
        "stock transformers waits for the device": not isinstance(engine, FlatEngine),
        "linear attention finds its rows on the host": bool(recurrent.layers_of(model)),
        "layers that are recomputed keep random numbers on the host": recomputed > 0,
        "activations wait in the host's memory": settings.offload_activations,
        "float16 scales its loss anew at each step": model.dtype == torch.float16,
        "the same bits are asked for, and what is faster differs": settings.deterministic and not asked,
    }
