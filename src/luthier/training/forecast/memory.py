"""The most memory a run takes, part by part."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from typing import Any

import torch

from luthier.engine import attention
from luthier.evaluation.answers import MAX_NEW_TOKENS
from luthier.hardware.environment import KERNELS_KEPT
from luthier.inference.generate import AT_ONCE
from luthier.training.forecast.sketch import Taken
from luthier.training.forecast.workload import Workload
from luthier.training.processes import BESIDE

MOMENTS = 2  # of AdamW, beside each weight of the adapter and its gradient
LATER = 70_000_000
"""What the libraries load once they compute: measured between the first weight and the first step."""
CONTEXT = 600_000_000
"""Of a GPU's memory, for its driver's context and kernels, which torch does not count."""

HOLES_OF_COMPUTED, HOLES_OF_KEPT = 0.28, 0.42
"""glibc keeps freed blocks below 32 MB, and asks for aligned ones that do not fit into them again: what a layer frees
leaves holes, the more the more is kept between. Shares of what all layers would keep, and of what they do. Seen of both
together, SmolLM2 in bfloat16: 0.77 (rows of some 40 tokens, 512 at once), 0.94 (1,024), 0.8 (2,048), in float32 0.8; a
row alone 0.66 (2,000 tokens), 0.62 (4,000), 0.44 to 0.56 (7,000); all layers recomputed 0.45 (1,024), 0.26 (4,000)."""

KERNELS = KERNELS_KEPT * 1_416_000
"""oneDNN's for bfloat16: SmolLM2's memory grew by so much for each shape until 1,024 were kept."""


@dataclass(frozen=True)
class Memory:
    """Bytes by part. `device`: where it computes; on a CPU that is all there is, and `host` is empty.

    phase: of the run, in which it takes most: `steps`, `reading` the weights, or `answers`.
    """

    device: dict[str, int]
    host: dict[str, int]
    phase: str = "steps"

    @property
    def peak(self) -> int:
        return sum(self.device.values())

    @property
    def measurable(self) -> int:
        """The same as `hardware.memory.peak_bytes` will find it: torch does not count a GPU's context."""
        return self.peak - (self.device["runtime"] if self.host else 0)

    def to_json(self) -> dict[str, Any]:
        parts = {"device": self.device, "host": self.host}
        return {"peak_bytes": self.peak, "measurable_bytes": self.measurable, "phase": self.phase, **parts}


def memory(
    device: str,
    sizes: tuple[int, int, int],
    taken: Taken,
    *,
    stored: int,
    runtime: int,
    half: bool,
    answers: int = 0,
    offloaded: bool = False,
    processes: int = 1,
) -> Memory:
    """What a run takes on `device`.

    Args:
        sizes: of a Sketch.
        taken: by the dearest micro-batch.
        stored: bytes of the weight files, where they are read into another dtype.
        runtime: resident bytes of this process, without any weights.
        half: whether it is computed in bfloat16.
        answers: keys and values of those that are written together.
        offloaded: whether what layers keep waits in the host's memory.
        processes: that compute such a micro-batch each, and add up gradients of their own.
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
    beside = {"kernels": KERNELS if half else 0, "runtime": runtime + LATER}
    holes = round(HOLES_OF_COMPUTED * taken.kept + HOLES_OF_KEPT * taken.activations) if leaves_holes() else 0
    # Its gradient, and a place for it. It computes steps alone, so fewer sizes leave holes: half of them, by sight.
    each = BESIDE + (KERNELS if half else 0) + 2 * adapter + taken.total + holes // 2
    others = {"other processes": (processes - 1) * each} if processes > 1 else {}
    phases = {
        "steps": {**computing, "holes": holes, **others, **beside},
        "reading": {"weights": weights, "weight files": stored, "runtime": runtime},
        "answers": {**steady, "keys and values": answers, **beside},
    }
    phase = max(phases, key=lambda name: sum(phases[name].values()))
    return Memory(phases[phase], {}, phase)


def answers_bytes(config: Any, dtype: torch.dtype, work: Workload) -> int:
    """Keys and values while base and tuned model answer, in pools that double: the old one beside the new."""
    if not work.questions:
        return 0
    heads, width = attention.key_heads(config)
    token: int = 2 * config.get_text_config().num_hidden_layers * heads * width * dtype.itemsize
    length = _doubled(work.prompt_tokens // work.questions + MAX_NEW_TOKENS)
    return 2 * _doubled(min(work.questions, AT_ONCE // 2)) * (length + length // 2) * token


def _doubled(count: int) -> int:
    """The power of two that holds so many."""
    return 1 << (count - 1).bit_length()


def leaves_holes() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
