"""Luthier fine-tunes a language model on the machine you have, and shows that it worked.

import luthier

run = luthier.train("recipe.yaml")      # or a dict of settings
run.record()["result"]                  # losses, rows a second, memory
luthier.plan("recipe.yaml").memory.peak # bytes, before anything starts
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["plan", "train"]

if TYPE_CHECKING:
    from luthier.training.planning import plan
    from luthier.training.run import train


def __getattr__(name: str) -> Any:
    """`luthier.train` and `luthier.plan`, loaded when first used: `import luthier` stays instant."""
    if name == "plan":
        from luthier.training.planning import plan

        return plan
    if name == "train":
        from luthier.training.run import train

        return train
    raise AttributeError(f"module 'luthier' has no attribute {name!r}")
