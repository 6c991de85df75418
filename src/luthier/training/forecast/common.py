"""Common models on common machines: the table of docs/plan.md, from configs written down in common_models.json."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from luthier import console
from luthier.model import load
from luthier.recipe.schema import AdapterSettings
from luthier.training.forecast.memory import KERNELS, memory
from luthier.training.forecast.sketch import Sketch
from luthier.training.forecast.workload import imagined

ROW = 2048  # tokens: one such row at a time
GIB = 1 << 30
RUNTIME = 500_000_000  # of Python with torch and transformers
HOLES = 1_450_000_000 - KERNELS  # of a CPU's allocator: a round figure, as none was measured for models of this size
SYSTEM = 3 * GIB  # of a computer without a card, for all that is not Luthier


@dataclass(frozen=True)
class Machine:
    """`room`: bytes that a run may take there."""

    name: str
    device: str
    room: int


MACHINES = (
    *(Machine(f"{size} GB card", "cuda", size * GIB) for size in (8, 12, 16, 24, 48, 80)),
    Machine("Strix Halo 128 GB", "cuda", 96 * GIB),  # what its GPU may take as it is usually set up
    *(Machine(f"{size} GB, no card", "cpu", size * GIB - SYSTEM) for size in (16, 32)),
)
SIGNS = ("yes", "recomputed", "–")


@dataclass(frozen=True)
class Needs:
    """Bytes at the peak, with no layer and with all layers recomputed, on a GPU and on a CPU."""

    name: str
    weights: int
    peaks: dict[tuple[str, bool], int]

    def on(self, machine: Machine) -> str:
        fits = [self.peaks[machine.device, again] <= machine.room for again in (False, True)]
        return SIGNS[fits.index(True) if True in fits else 2]


def models() -> list[dict[str, Any]]:
    """Each with name, source, a note on what is not sure, and its config."""
    text = (resources.files("luthier.training.forecast") / "common_models.json").read_text(encoding="utf-8")
    found: list[dict[str, Any]] = json.loads(text)
    return found


def needs(model: dict[str, Any]) -> Needs:
    """LoRA of rank 16 on all linear layers in bfloat16, one row of 2,048 tokens at a time."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(**model["config"])
    batch = imagined(ROW, ROW, config.get_text_config().vocab_size)
    peaks, weights = {}, 0
    for device in ("cuda", "cpu"):
        sketch = Sketch(config, AdapterSettings(), dtype="bfloat16", device=device)
        *_, weights = sketch.sizes
        for again in (False, True):
            taken = replace(sketch.take(batch, sketch.layers if again else 0), kept=0)
            found = memory(device, sketch.sizes, taken, stored=0, runtime=RUNTIME, half=True)
            peaks[device, again] = found.peak + (HOLES if device == "cpu" else 0)
    return Needs(model["name"], weights, peaks)


def columns() -> list[str]:
    return ["model", "weights", "on a GPU", "recomputed", *(machine.name for machine in MACHINES)]


def row(found: Needs) -> list[str]:
    sizes = [f"{found.peaks['cuda', again] / 1e9:.1f} GB" for again in (False, True)]
    return [found.name, _billions(found.weights), *sizes, *(found.on(machine) for machine in MACHINES)]


def show() -> None:
    """The table as Markdown, and as the JSON object."""
    load.quiet()
    rows = [row(needs(model)) for model in models()]
    console.result({"ok": True, "models": [dict(zip(columns(), each, strict=True)) for each in rows]})
    for line in (columns(), ["---"] * len(columns()), *rows):
        console.say(f"| {' | '.join(line)} |")


def _billions(weights: int) -> str:
    return f"{weights / 1e9:.1f} billion" if weights >= 1e9 else f"{weights / 1e6:.0f} million"
