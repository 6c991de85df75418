"""A plan for people: the memory part by part, the time part by part, and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier import console
from luthier.report import words
from luthier.training.forecast.changes import Change
from luthier.training.forecast.plan import Plan

WHERE = {"cpu": "memory", "cuda": "GPU memory", "mps": "memory"}
WHEN = {
    "steps": "at {:,} tokens at once",
    "reading": "while the weights are read",
    "answers": "while answers are written",
}


def show(plan: Plan, lengths: dict[str, Any] | None) -> None:
    console.say(f"{plan.model}: {plan.weights / 1e6:,.0f} million weights, {plan.dtype} on {plan.device}")
    if plan.work and lengths:
        _say_tokens(plan, lengths)
    rows = [(part, words.size(count)) for part, count in plan.memory.device.items() if count]
    rows.append(("at most", f"{words.size(plan.memory.peak)} of {words.size(plan.room.device)}"))
    console.table((WHERE[plan.device], WHEN[plan.memory.phase].format(plan.tokens)), rows)
    if plan.memory.host:
        host = [(part, words.size(count)) for part, count in plan.memory.host.items()]
        host.append(("at most", f"{words.size(sum(plan.memory.host.values()))} of {words.size(plan.room.host)}"))
        console.table(("host's memory", ""), host)
    if plan.seconds is not None:
        parts = [(part, words.duration(spent)) for part, spent in vars(plan.seconds).items()]
        console.table(("time", ""), [*parts, ("in all", words.duration(plan.seconds.total))])
        if plan.learned_from:
            runs = "run" if plan.learned_from == 1 else f"{plan.learned_from} runs"
            console.say(f"unplanned: what the last {runs} here took beyond such a plan, besides the steps")
    console.say(verdict(plan))


def show_changes(found: Sequence[Change]) -> None:
    """What would fit, each as it is typed, with what it costs."""
    if not found:
        console.say("No setting makes it fit: take a smaller model, or a machine with more memory.")
        return
    rows = [(_typed(each), words.size(each.plan.memory.peak), _cost(each)) for each in found]
    console.table(("with this it fits", "memory", "cost"), rows)


def _typed(change: Change) -> str:
    own = {name: value for name, value in change.settings.items() if value != "auto"}
    return " ".join(f"--set {name}={str(value).lower()}" for name, value in own.items())


def _cost(change: Change) -> str:
    if change.slower is None:
        return change.loses or "not known"
    slower = change.slower - 1
    time = "no time" if abs(slower) < 0.005 else f"{abs(slower):.0%} {'more' if slower > 0 else 'less'} time"
    return "; ".join(filter(None, (time, change.loses)))


def _say_tokens(plan: Plan, lengths: dict[str, Any]) -> None:
    work = plan.work
    assert work is not None
    some = lengths["tokens"]
    console.say(
        f"{work.steps:,} steps of {len(work.epoch):,} an epoch; a row has {some['p50']:,} tokens in the middle, "
        f"{some['max']:,} at most"
    )
    console.say(
        f"An epoch has {sum(work.real):,} tokens, of which {work.computed:,} are computed "
        f"({1 - work.computed / work.padded:.0%} fewer than padded batches)"
    )


def verdict(plan: Plan) -> str:
    if plan.fits:
        return f"It fits: {words.size(plan.memory.peak)} of {words.size(plan.room.device)}."
    needs, there = plan.memory.peak, plan.room.device
    where = ""
    if needs <= there:
        where, needs, there = "the host's memory: ", sum(plan.memory.host.values()), plan.room.host
    return f"It does not fit: {where}it needs {words.size(needs)}, and {words.size(there)} are there."
