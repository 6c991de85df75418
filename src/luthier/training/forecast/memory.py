"""The most memory a run takes, part by part."""

from __future__ import annotations

import math
import platform
import sys
from dataclasses import dataclass
from typing import Any

from luthier.training.forecast.sketch import Taken

MOMENTS = 2  # of AdamW, beside each weight of the adapter and its gradient
LATER = 70_000_000
"""What the libraries load once they compute: measured between the first weight and the first step."""
CONTEXT = 600_000_000
"""Of a GPU's memory, for its driver's context and kernels, which torch does not count."""

HOLES = 0.28
"""glibc keeps freed blocks below 32 MB, and asks for aligned ones that do not fit into them again. Holes came to this
share of what all layers keep, recomputed or not: SmolLM2 in float32, 512 and 1024 tokens at once."""

KERNELS, SHAPES = 1_450_000_000, 45
"""In bfloat16, oneDNN writes a program for each shape that it multiplies and keeps the last 1,024: with them and the
holes between, this many bytes more, two thirds of them after SHAPES micro-batches. Fitted to ten runs of SmolLM2 with 6
and 48 steps: after 15, 22 and 55 micro-batches 0.3, 0.5 to 0.8 and 0.8 GB, where this says 0.4, 0.6 and 1.0. Wider
models take more: 0.8 and 1.0 GB after 15 and 10 micro-batches of Qwen3 0.6B."""
OF_ANSWERS = 2  # micro-batches that writing answers is like
MANY = 10**6  # micro-batches of a run that nothing is known of


@dataclass(frozen=True)
class Memory:
    """Bytes by part. `device`: where it computes; on a CPU that is all there is, and `host` is empty."""

    device: dict[str, int]
    host: dict[str, int]

    @property
    def peak(self) -> int:
        return sum(self.device.values())

    @property
    def measurable(self) -> int:
        """The same as `hardware.memory.peak_bytes` will find it: torch does not count a GPU's context."""
        return self.peak - (self.device["runtime"] if self.host else 0)

    def to_json(self) -> dict[str, Any]:
        parts = {"device": self.device, "host": self.host}
        return {"peak_bytes": self.peak, "measurable_bytes": self.measurable, **parts}


def memory(
    device: str,
    sizes: tuple[int, int, int],
    taken: Taken,
    *,
    stored: int,
    runtime: int,
    shapes: int,
    half: bool,
    offloaded: bool = False,
) -> Memory:
    """What a run takes on `device`.

    Args:
        sizes: of a Sketch.
        taken: by the dearest micro-batch.
        stored: bytes of the weight files, where they are read into another dtype.
        runtime: resident bytes of this process, without any weights.
        shapes: micro-batches of the run; half: whether they are computed in bfloat16.
        offloaded: whether what layers keep waits in the host's memory.
    """
    weights, adapter, _ = sizes
    steady = {"weights": weights, "adapter": adapter, "gradients": adapter, "optimizer": MOMENTS * adapter}
    computing = {**steady, "activations": taken.activations, "logits": taken.logits}
    if device != "cpu":
        host = {"weights while read": weights, "runtime": runtime + LATER}
        if offloaded:
            waiting = min(taken.kept, taken.activations)
            computing["activations"] -= waiting
            host["activations"] = waiting
        return Memory({**computing, "runtime": CONTEXT}, host)
    computing |= allocator(taken.kept, shapes, half=half) | {"runtime": runtime + LATER}
    reading = {"weights": weights, "weight files": stored, "runtime": runtime}
    return Memory(max(computing, reading, key=lambda parts: sum(parts.values())), {})


def allocator(kept: int, shapes: int, *, half: bool) -> dict[str, int]:
    """What a CPU's libraries hold beside the tensors that live."""
    if half:
        return {"kernels": round(KERNELS * (1 - math.exp(-shapes / SHAPES)))}
    return {"holes": round(HOLES * kept) if leaves_holes() else 0}


def leaves_holes() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
