"""What a rehearsal on this machine measured, and where it is kept for the next command."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from luthier import console
from luthier.data.render import Example
from luthier.engine import compiled
from luthier.engine.engines import Engine
from luthier.hardware import compute
from luthier.hardware.probe import cpu_name
from luthier.hub.cache import cache_dir
from luthier.report import disk
from luthier.training.forecast.workload import Piece

SAME_SPEED = 0.5  # a machine that was busy with something else then, or is now, is measured again
LIBRARIES = ("torch", "transformers", "peft")


@dataclass(frozen=True)
class Timed:
    """Seconds of one micro-batch: of one layer forward and backward, and of all else."""

    tokens: int
    labels: int
    forward: float
    backward: float
    outside: float

    def scaled(self, share: float) -> Timed:
        forward, backward, outside = (share * each for each in (self.forward, self.backward, self.outside))
        return Timed(self.tokens, self.labels, forward, backward, outside)


@dataclass(frozen=True)
class Rates:
    """What was measured. `steps`: training; `evaluation`: without gradients, both as each process computes them.

    heldout: the same as `evaluation`, in one process alone.
    new_token, outside_token: seconds of a layer, and of all else, for one more token of every answer.
    update: seconds of clipping and optimizer for the adapter of one layer.
    new_shape: seconds more of a micro-batch of a size that was not computed before: kernels are written for it.
    capture: seconds to capture a CUDA graph of the whole model, where micro-batches are such graphs; else 0.
    products: FLOP/s of plain matrix products in this dtype.
    """

    steps: list[Timed]
    evaluation: Timed
    heldout: Timed
    new_token: float
    outside_token: float
    update: float
    new_shape: float
    products: float
    capture: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def scaled(self, share: float) -> Rates:
        """Where plain products take this share of the time: in another dtype, or on the machine as it is now.

        Micro-batches are taken to follow them.
        """
        steps, evaluation = [each.scaled(share) for each in self.steps], self.evaluation.scaled(share)
        heldout, products = self.heldout.scaled(share), self.products / share
        return dataclasses.replace(self, steps=steps, evaluation=evaluation, heldout=heldout, products=products)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Rates:
        steps = [Timed(**each) for each in raw["steps"]]
        evaluation, heldout = (Timed(**raw[name]) for name in ("evaluation", "heldout"))
        return cls(**{**raw, "steps": steps, "evaluation": evaluation, "heldout": heldout})


def key(config: Any, batches: Sequence[Sequence[Example]], engine: Engine, **facts: Any) -> str:
    """What a measurement depends on: machine, versions, threads, dtype, the model's shape, and the micro-batches."""
    shape = {name: value for name, value in config.to_dict().items() if not name.startswith("_")}
    facts |= {
        "cpu": cpu_name(),
        "versions": [importlib.metadata.version(name) for name in LIBRARIES],
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if facts["device"] == "cuda" else None,
        "shape": shape,
        "way": engine.name,
        "loops": compiled.find().reason if facts["device"] == "cpu" else None,
        "samples": [dataclasses.astuple(Piece.of(batch, engine)) for batch in batches],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def of(name: str, device: str, dtype: str, rehearse: Callable[[], Rates]) -> Rates:
    """What was kept under this name, else what `rehearse` measures now, which is kept."""
    found = kept(name, device, dtype)
    if found is None:
        console.say("Rehearsing a few layers …")
        found = rehearse()
        keep(name, found)
    return found


def kept(name: str, device: str, dtype: str) -> Rates | None:
    """What an earlier command measured, at the speed that plain products have now; None where that is far from then."""
    try:
        found = Rates.from_json(json.loads(file_of(name).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    then, now = max(found.products, 1.0), products_rate(device, dtype)
    return found.scaled(then / now) if now and abs(now / then - 1) <= SAME_SPEED else None


def keep(name: str, rates: Rates) -> None:
    write(file_of(name), rates.to_json())


def write(file: Path, found: Any) -> None:
    """Keeps it as JSON."""
    with contextlib.suppress(OSError):  # a cache that cannot be written costs some seconds the next time
        file.parent.mkdir(parents=True, exist_ok=True)
        disk.replace(file, json.dumps(found).encode())


def file_of(name: str) -> Path:
    """Where what was measured under this name is kept."""
    return cache_dir() / "rates" / f"{name}.json"


def products_rate(device: str, dtype: str) -> float:
    """FLOP/s of plain products; 0 where they fail."""
    rate = compute.measure_rate(device, dtype)
    return 0.0 if isinstance(rate, str) else rate
