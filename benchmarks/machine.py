"""What a benchmark ran on, for its table: figures without a machine, versions and a date mean nothing."""

from __future__ import annotations

import importlib.metadata
from datetime import datetime
from typing import Any

from luthier.choice import Choice
from luthier.hardware.compute import pick_threads
from luthier.hardware.probe import probe
from luthier.report import words

LIBRARIES = ("luthier", "torch", "transformers", "peft", "accelerate")


def describe(device: str, dtype: Choice[str]) -> dict[str, Any]:
    """Date, machine and versions as facts, and as one sentence under `summary`."""
    machine = probe()
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    gpus = ", ".join(gpu.name for gpu in machine.gpus)
    where = gpus if device != "cpu" else f"{machine.cpu}, {pick_threads().value} threads"
    summary = (
        f"{where}, {words.size(machine.memory_bytes)} of memory, {machine.os}, Python {machine.python}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f". {dtype.value}: {dtype.reason}."
    )
    date = datetime.now().strftime("%Y-%m-%d %H:%M")
    return {"date": date, "summary": summary, "machine": machine.to_json(), "versions": versions}
