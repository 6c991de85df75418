"""transformers' Trainer, with one change: an item of its data loader is a whole optimizer step.

The rows of a step are cut into micro-batches here, so a step holds exactly the rows that were asked for, and its loss
is normalised by all its labelled tokens, whatever the cut. Optimizer, schedule, clipping, callbacks, checkpoints and
distribution stay the Trainer's.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch.amp import GradScaler
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from luthier.data.batches import micro_batches
from luthier.data.render import Example
from luthier.data.steps import Steps
from luthier.engine.engines import Engine
from luthier.evaluation.heldout import mean_loss
from luthier.training import checkpoint
from luthier.training.activations import offloaded


class StepDataset(Dataset[list[Example]]):
    """The optimizer steps of one epoch: item i is the list of rows of step i."""

    def __init__(self, examples: Sequence[Example], steps: Steps) -> None:
        self.examples, self.steps = examples, steps
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.rows = self.steps.epoch(epoch)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> list[Example]:
        return [self.examples[i] for i in self.rows[index]]


class _Epochs(TrainerCallback):  # type: ignore[misc]
    """Draws each epoch's steps anew. The epoch follows from the step, so a resumed run draws the same."""

    def __init__(self, dataset: StepDataset) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.dataset.set_epoch(state.global_step // len(self.dataset))


class LuthierTrainer(Trainer):  # type: ignore[misc]
    """Trains on examples with an engine.

    Args:
        budget: tokens of a micro-batch.
        parts: micro-batches of a step instead of a budget (`gradient_accumulation_steps`).
        heldout: rows whose loss `evaluate()` gives.
        offload: whether activations wait in the host's memory between forward and backward.
        checkpoints_kept: how many stay; an old one is deleted only when the newest is sealed.
    """

    control: Any

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        engine: Engine,
        steps: StepDataset,
        heldout: Sequence[Example],
        *,
        budget: int,
        parts: int | None = None,
        checkpoints_kept: int | None = None,
        offload: bool = False,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        # The Trainer refuses to evaluate without a data set; `evaluate` below reads the rows themselves.
        super().__init__(
            model, args, train_dataset=steps, eval_dataset=heldout or None, callbacks=[_Epochs(steps), *callbacks]
        )
        self.remove_callback(PrinterCallback)  # Luthier's own display shows the same figures
        if args.fp16 and self.accelerator.scaler is None:  # accelerate scales the loss on GPUs alone
            self.accelerator.scaler, self.accelerator.native_amp = GradScaler(args.device.type), True
        self.engine, self.heldout, self.budget, self.parts = engine, heldout, budget, parts
        self.checkpoints_kept = checkpoints_kept
        self.keeping = functools.partial(offloaded, model) if offload else contextlib.nullcontext
        self.trained_tokens = self.computed_tokens = 0

    def get_train_dataloader(self) -> DataLoader[list[Example]]:
        # batch_size=1 and not None: accelerate's skip_first_batches, by which a run resumes, needs a batch sampler.
        return DataLoader(self.train_dataset, batch_size=1, collate_fn=_only)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """One epoch; none of it after the last step, where the Trainer of 5.23 would do one more on going on."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def training_step(self, model: Any, inputs: list[Example], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one optimizer step; returns its mean loss a labelled token."""
        model.train()
        labels = sum(example.num_labels for example in inputs)
        world, rank = self.args.world_size, self.args.process_index
        mine = inputs[rank::world] or inputs[:1]  # every process must take part in the gradients' exchange
        weight = world / labels if len(inputs) > rank else 0.0
        batches = micro_batches(mine, self.engine, budget=self.budget, parts=self.parts)
        total = torch.zeros((), device=self.args.device)
        for batch in batches:
            exchange = contextlib.nullcontext() if batch is batches[-1] else self.accelerator.no_sync(model)
            with exchange:
                with self.compute_loss_context_manager(), self.keeping():
                    loss = self.engine.loss_sum(model, batch) * weight
                self.accelerator.backward(loss)
            total += loss.detach()
        self.trained_tokens += sum(len(example.input_ids) for example in mine)
        self.computed_tokens += sum(map(self.engine.cost, batches))
        return total

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The held-out loss as `eval_loss`."""
        with self.compute_loss_context_manager():
            loss = mean_loss(self.model, self.engine, self.heldout, budget=self.budget)
        metrics = {f"{metric_key_prefix}_loss": loss}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the Trainer's estimate counts padded tokens of a tensor, which there are none of

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The adapter alone. The Trainer would add its arguments as a pickle, which nothing here reads."""
        self.model.save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # which deletes none, as its own `save_total_limit` is not set
        if self.args.should_save:
            checkpoint.seal(checkpoint.folder_of(self.args.output_dir, self.state.global_step))
            rotate_checkpoints(self.args.output_dir, self.checkpoints_kept, self.state.best_model_checkpoint)


def _only(items: list[list[Example]]) -> list[Example]:
    return items[0]
