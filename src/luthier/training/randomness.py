"""The state of every random number generator that a training step may draw from."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch


def snapshot() -> Callable[[], None]:
    """Takes the states of Python, NumPy, torch and its devices; the function given back puts them there again."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.random.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)

    return restore
