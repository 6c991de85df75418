"""How many processes compute a step: what speaks against several, what fits, and what measuring a layer says."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.choice import Choice
from luthier.data.conversation import Source
from luthier.data.render import IGNORE, Example
from luthier.engine.engines import Engine, FlatEngine, PlainEngine
from luthier.errors import RecipeError
from luthier.recipe.schema import TrainSettings
from luthier.training import processes
from luthier.training.plan import ASKED, steps_of
from luthier.training.processes import BESIDE, Machine, pick_cpu_processes


@pytest.fixture(autouse=True)
def linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.sys, "platform", "linux")


def rows(prefix: int) -> list[Example]:
    """32 rows of 100 tokens, of which so many are the same at the beginning of each."""
    shared = list(range(3, 3 + prefix))
    return [
        Example([*shared, *[1000 + n] * (100 - prefix)], [IGNORE] * prefix + [7] * (100 - prefix), Source("rows", n))
        for n in range(32)
    ]


# Seconds of a layer for each number of threads, as SmolLM2's in bfloat16 on two cores, and as Amdahl goes on.
TIMES = {1: 0.067, 2: 0.041, 4: 0.028, 8: 0.021}


def pick(
    *,
    threads: int = 2,
    prefix: int = 20,
    free: float = 16e9,
    each: float = 4e8,
    device: str = "cpu",
    layers: int = 30,
    engine: Engine | None = None,
    **settings: Any,
) -> Choice[int]:
    asked, made = TrainSettings(**{"batch_size": 32, **settings}), rows(prefix)
    machine = Machine(device, threads, free, each, layers, lambda batch, counts: {n: TIMES[n] for n in counts})
    steps = steps_of(asked, made)
    return pick_cpu_processes(asked, engine or FlatEngine(), made, steps, 1024, machine)


def test_several_where_measuring_says_that_they_are_faster() -> None:
    """A row needs 99 tokens, 79 of them its own; 12 rows, 968 tokens, fill a micro-batch, for which layers are timed.

    One process computes 32 of them in three, 3 * 20 + 32 * 79 tokens, and each of two 16 in two.
    """
    alone, together = (30 * tokens / 968 * TIMES[threads] for tokens, threads in ((2588, 2), (1304, 1)))
    assert pick() == Choice(
        2, f"a step's layers take {together:.2f} s with 2, {alone:.2f} with one; each with 1 of 2 threads and 0.4 GB"
    )


def test_one_where_rows_would_compute_their_long_prefix_twice() -> None:
    found = pick(prefix=90)
    assert (found.value, found.reason.startswith("a step's layers take ")) == (1, True)


def test_one_where_a_step_is_over_before_the_rows_are_sent() -> None:
    assert pick(layers=1).value == 1


def test_the_more_threads_the_more_processes() -> None:
    assert [pick(threads=threads).value for threads in (2, 4, 8)] == [2, 4, 8]


def test_as_many_as_memory_holds() -> None:
    """Half of what is free may be taken."""
    of_two = 2 * 2 * (4e8 + BESIDE)
    assert pick(threads=8, free=of_two).value == 2
    assert pick(threads=8, free=2 * of_two).value == 4
    assert pick(free=of_two - 1) == Choice(1, "two would take 1.0 GB, and half of what is free is 1.0 GB")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"device": "cuda"}, "cuda computes for one process"),
        ({"threads": 1}, "there is one thread"),
        ({"layers": 0}, "the model's layers cannot be timed"),
        ({"engine": PlainEngine()}, "stock transformers is the reference"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps says how a step is cut"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_what_speaks_against_them(settings: dict[str, Any], why: str) -> None:
    """One then by `auto`, and a refusal of what is asked for."""
    assert pick(**settings) == Choice(1, why)
    assert pick(**settings, cpu_processes=1) == Choice(1, ASKED)
    with pytest.raises(RecipeError) as refused:
        pick(**settings, cpu_processes=2)
    assert (f"train.cpu_processes: {why}", "leave it at auto") in [
        (f"{problem.where}: {problem.what}", problem.fix) for problem in refused.value.problems
    ]


def test_where_no_process_can_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.sys, "platform", "win32")
    assert pick() == Choice(1, "the system cannot copy a running process")


def test_the_same_bits_are_not_left_to_a_measurement() -> None:
    assert pick(deterministic=True) == Choice(1, "the same bits are asked for, and what is faster differs")
    assert pick(deterministic=True, cpu_processes=2).value == 2


def test_what_is_asked_for_is_obeyed_or_refused() -> None:
    slower = {"prefix": 90, "threads": 4}
    assert pick(**slower, cpu_processes=2) == Choice(2, f"{ASKED}; each with 2 of 4 threads and 0.4 GB")
    with pytest.raises(RecipeError) as refused:
        pick(threads=2, cpu_processes=3)
    assert [problem.what for problem in refused.value.problems] == ["there are 2 threads"]
