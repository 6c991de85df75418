"""How many processes compute a step together on a CPU: several, where they are faster by measuring and nothing speaks
against them.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from luthier.choice import Choice
from luthier.data.render import Example
from luthier.data.steps import Steps
from luthier.engine.engines import Engine
from luthier.errors import Problem, RecipeError
from luthier.recipe.schema import TrainSettings
from luthier.training.cut import Cut
from luthier.training.plan import ASKED, MEMORY_SHARE

WORTH_IT = 0.95  # of the time of one. In five jobs two took less than this says, as more is done beside layers
EXCHANGE = 0.02  # seconds a step: rows there, gradients back
STEPS_LOOKED_AT = 20
BESIDE = 100_000_000
"""Bytes of a process besides activations and kernels: what Python writes to of that which is shared. With so much,
plans for two processes come near what they took: 2.4 to 2.9 GB with SmolLM2, 5.8 in the shape of Qwen3-0.6B."""


@dataclass(frozen=True)
class Machine:
    """What a run may take, and takes. threads: one a core. free: bytes. each: bytes of the largest micro-batch.

    layers: of the model. layer_seconds: of one of them for a micro-batch, forward and backward, with each of these
    numbers of threads.
    """

    device: str
    threads: int
    free: float
    each: float
    layers: int
    layer_seconds: Callable[[Sequence[Example], Sequence[int]], Mapping[int, float]]


def pick_cpu_processes(
    settings: TrainSettings,
    engine: Engine,
    examples: Sequence[Example],
    steps: Steps,
    budget: int,
    machine: Machine,
) -> Choice[int]:
    """How many processes share the threads and the rows of a step.

    Args:
        budget: tokens of a micro-batch.

    Raises RecipeError where several are asked for and cannot be had.
    """
    asked = settings.cpu_processes
    if asked == 1:
        return Choice(1, ASKED)
    found = reasons(settings, engine, machine, asked=asked != "auto")
    against = [why for why, speaks in found.items() if speaks]
    if asked != "auto":
        if asked > machine.threads > 1:
            against.append(f"there are {machine.threads} threads")
        if against:
            raise RecipeError(*(Problem("train.cpu_processes", why, "leave it at auto") for why in against))
        return Choice(asked, f"{ASKED}; {_each(asked, machine)}")
    if against:
        return Choice(1, against[0])
    return _fastest(settings, engine, examples, steps, budget, machine)


def reasons(settings: TrainSettings, engine: Engine, machine: Machine, *, asked: bool) -> dict[str, bool]:
    """All that may speak against several processes, and whether it does."""
    return {
        f"{machine.device} computes for one process": machine.device != "cpu",
        "the system cannot copy a running process": sys.platform != "linux",
        "this process may not have others of its own": multiprocessing.current_process().daemon,
        "there is one thread": machine.threads == 1,
        "the model's layers cannot be timed": machine.layers == 0,
        "stock transformers is the reference": engine.name != "flat",
        "gradient_accumulation_steps says how a step is cut": settings.gradient_accumulation_steps != "auto",
        "the same bits are asked for, and what is faster differs": settings.deterministic and not asked,
    }


def _fastest(
    settings: TrainSettings,
    engine: Engine,
    examples: Sequence[Example],
    steps: Steps,
    budget: int,
    machine: Machine,
) -> Choice[int]:
    """Of the numbers that memory allows, the one with which a step takes least, if that is worth it."""
    counts = [n for n in range(2, machine.threads + 1) if machine.threads % n == 0 and _fits(n, machine)]
    if not counts:
        needed, free = (f"{size / 1e9:.1f}" for size in (2 * (machine.each + BESIDE), MEMORY_SHARE * machine.free))
        return Choice(1, f"two would take {needed} GB, and half of what is free is {free} GB")
    rows = [[examples[i] for i in step] for step in steps.epoch(0)[:STEPS_LOOKED_AT]]
    tokens = {n: _longest_shares(rows, engine, Cut.of(settings, budget, n)) for n in (1, *counts)}
    batch = Cut.of(settings, budget, counts[0]).dearest(examples, steps.epoch(0), engine)[0]
    measured = machine.layer_seconds(batch, [machine.threads // n for n in tokens])
    per_token = machine.layers / engine.cost(batch) / len(rows)
    spent = {n: per_token * tokens[n] * measured[machine.threads // n] for n in tokens}
    best = min(counts, key=spent.__getitem__)
    takes = f"a step's layers take {spent[best]:.2f} s with {best}, {spent[1]:.2f} with one"
    worth_it = spent[best] + EXCHANGE < WORTH_IT * spent[1]
    return Choice(best, f"{takes}; {_each(best, machine)}") if worth_it else Choice(1, takes)


def _fits(count: int, machine: Machine) -> bool:
    return count * (machine.each + BESIDE) <= MEMORY_SHARE * machine.free


def _longest_shares(steps: Sequence[Sequence[Example]], engine: Engine, cut: Cut) -> int:
    """Tokens of the process that has most of them in a step, summed over the steps."""
    return sum(max(sum(map(engine.cost, share)) for share in cut.shares(rows, engine)) for rows in steps)


def _each(count: int, machine: Machine) -> str:
    return f"each with {machine.threads // count} of {machine.threads} threads and {machine.each / 1e9:.1f} GB"
