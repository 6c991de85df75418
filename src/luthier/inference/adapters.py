"""Any number of adapters on one model, under names, put on and taken off while it runs."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luthier.errors import Problem, RunError
from luthier.model import adapters
from luthier.report.record import RunFolder

FIRST = "default"
"""What PEFT calls the adapter that a run was opened with."""


class Adapters:
    """The adapters of a model, by their key: what PEFT knows them as.

    Args:
        model: a PeftModel, or a plain one, which becomes one as soon as there is an adapter.
        base_folder: where the base lies, to tell whether an adapter belongs to it.
    """

    def __init__(self, model: Any, base_folder: Path | None = None) -> None:
        self.model = model
        self.loaded: set[str] = set(getattr(model, "peft_config", ()))
        self._base_folder = base_folder
        self._keys = (f"a{number}" for number in itertools.count(1))

    def add(self, folder: Path) -> str:
        """Puts an adapter on the model; returns its key. Raises ModelError."""
        assert self._base_folder is not None
        key = next(self._keys)
        self.model = adapters.load(self.model, folder, self._base_folder, name=key).eval()
        self.loaded.add(key)
        return key

    def remove(self, key: str) -> None:
        self.loaded.discard(key)
        if self.loaded:
            self.model.delete_adapter(key)
        else:
            self.model = self.model.unload()

    @property
    def causal(self) -> Any:
        """The causal model itself, below PEFT's wrapper."""
        return self.model.get_base_model() if self.loaded else self.model

    @contextlib.contextmanager
    def only(self, key: str | None) -> Iterator[None]:
        """The model with one adapter, or with none."""
        if key is None:
            if not self.loaded:
                yield
                return
            # PEFT's own context describes every layer of the model first, which takes longer than a token.
            self.model.base_model.disable_adapter_layers()
            try:
                yield
            finally:
                self.model.base_model.enable_adapter_layers()
        else:
            if self.model.active_adapter != key:
                self.model.set_adapter(key)
            yield


def adapter_folder(folder: Path) -> Path:
    """Where the adapter lies, of a run's folder or an adapter's own. Raises RunError for a run without a result."""
    if not (folder / "recipe.yaml").is_file():
        return folder
    run = RunFolder.open(folder)
    if not run.is_trained():
        again = "finish it first: the same luthier train command goes on from its last checkpoint"
        raise RunError(Problem(str(folder), f"has no result yet ({run.state()})", again))
    return run.adapter_dir
