"""transformers' Trainer, whose checkpoints are whole: written beside, sealed, and only then are old ones deleted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.trainer import TRAINER_STATE_NAME

from luthier.report import disk
from luthier.training import checkpoint, room
from luthier.training.loop import Loop

MPS_RNG = "rng_mps.pth"


class Saving(Loop):
    """Of a model with an adapter, which alone is saved.

    checkpoints_kept: how many stay, all of them if None; set by who knows.
    """

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self.checkpoints_kept: int | None = None
        self._saves_beside: Path | None = None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The adapter alone. The Trainer would add its arguments as a pickle, which nothing here reads."""
        self.model.save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step, folder = self.state.global_step, Path(self.args.output_dir)
        if not self.args.should_save:  # this process adds its random state to what the first one writes
            self._write_checkpoint(model, trial, folder / checkpoint.SAVING)
            return
        try:
            with checkpoint.saving(folder, step) as beside:
                self._write_checkpoint(model, trial, beside)
                self._note_best(folder)
                self.state.save_to_json(str(checkpoint.folder_of(beside, step) / TRAINER_STATE_NAME))
        except Exception as error:
            if not disk.is_full(error):
                raise
            needed = room.checkpoint_bytes(self.model, len(self.state.log_history))
            raise disk.DiskFull(f"checkpoint-{step}", needed) from error
        checkpoint.rotate(folder, self.checkpoints_kept, self.state.best_model_checkpoint)

    def _note_best(self, folder: Path) -> None:
        """Where the best checkpoint is or will be; the Trainer looks for it beside the one that is being written."""
        best = checkpoint.folder_of(folder, self.state.best_global_step or 0)
        if self.state.best_global_step == self.state.global_step or best.exists():
            self.state.best_model_checkpoint = str(best)

    def _write_checkpoint(self, model: Any, trial: Any, beside: Path) -> None:
        self.accelerator.wait_for_everyone()  # until the first process has cleared the place
        self._saves_beside = beside
        try:
            super()._save_checkpoint(model, trial)  # which deletes none, as its own `save_total_limit` is not set
            self.accelerator.wait_for_everyone()
        finally:
            self._saves_beside = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saves_beside or super()._get_output_dir(trial))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if torch.backends.mps.is_available():  # which the Trainer leaves out
            torch.save(torch.mps.get_rng_state(), Path(output_dir) / MPS_RNG)

    def _load_rng_state(self, folder: str | None) -> None:
        super()._load_rng_state(folder)
        file = Path(folder or "") / MPS_RNG
        if torch.backends.mps.is_available() and file.is_file():
            torch.mps.set_rng_state(torch.load(file, weights_only=True))
