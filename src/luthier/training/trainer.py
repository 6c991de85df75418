"""transformers' Trainer, with one change: an item of its data loader is a whole optimizer step.

The rows of a step are cut into micro-batches here, so a step holds exactly the rows that were asked for, and its loss
is normalised by all its labelled tokens, whatever the cut. Optimizer, schedule, clipping, callbacks, checkpoints and
distribution stay the Trainer's.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch.amp import GradScaler
from torch.utils.data import DataLoader, Dataset
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainingArguments

from luthier import console
from luthier.data.render import Example
from luthier.data.steps import Steps
from luthier.engine.engines import Engine
from luthier.engine.graphs import Graphs
from luthier.evaluation.heldout import sum_of_losses
from luthier.hardware.memory import release
from luthier.training import checkpoint, randomness
from luthier.training.activations import offloaded
from luthier.training.cut import Cut, is_out_of_memory
from luthier.training.guard import Guard, finite, read_later, rows_without_loss
from luthier.training.saving import Saving
from luthier.training.workers import Batches, WorkerDied, Workers

READ_LATE = ("cuda",)  # devices on which a step is looked at while the next one is computed
T = TypeVar("T")


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


class StepGivenUp(Exception):
    """A stop was asked for in the middle of a step or an evaluation: what was computed of it is thrown away."""


class LuthierTrainer(Saving):
    """Trains on examples with an engine.

    Args:
        cut: how a step is cut into micro-batches.
        heldout: rows whose loss `evaluate()` gives.
        offload: whether activations wait in the host's memory between forward and backward.
        graphs: micro-batches as CUDA graphs; given up where memory runs out.
        processes: that compute a step together; one where memory runs out. More than one is ended by `close`.
        rehearses: whether the dearest micro-batches are computed before the first step.
        checkpoints_kept: how many stay; an old one is deleted only when the newest is sealed.
        guard: looks at each step before it is applied.
        stop_asked: asked before each micro-batch; True raises StepGivenUp.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        engine: Engine,
        steps: StepDataset,
        heldout: Sequence[Example],
        *,
        cut: Cut,
        checkpoints_kept: int | None = None,
        offload: bool = False,
        graphs: Graphs | None = None,
        processes: int = 1,
        rehearses: bool = True,
        guard: Guard | None = None,
        stop_asked: Callable[[], bool] = lambda: False,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        # The Trainer refuses to evaluate without a data set; `evaluate` below reads the rows themselves.
        super().__init__(
            model, args, train_dataset=steps, eval_dataset=heldout or None, callbacks=[_Epochs(steps), *callbacks]
        )
        self.remove_callback(PrinterCallback)  # Luthier's own display shows the same figures
        self.add_callback(_Beside(self))
        if args.fp16 and self.accelerator.scaler is None:  # accelerate scales the loss on GPUs alone
            self.accelerator.scaler, self.accelerator.native_amp = GradScaler(args.device.type), True
        self.engine, self.heldout, self.cut, self.graphs = engine, heldout, cut, graphs
        self.checkpoints_kept, self.guard, self.stop_asked = checkpoints_kept, guard or Guard(), stop_asked
        self.keeping = functools.partial(offloaded, model) if offload else contextlib.nullcontext
        self.rehearses = rehearses
        self.evaluation_seconds = 0.0  # of the last one
        self._batch: Sequence[Example] = ()  # the micro-batch in progress
        self._after_step = randomness.snapshot()
        self.workers: Workers | None = None
        if processes > 1:
            threads = max(1, torch.get_num_threads() // processes)
            self.workers = Workers(self.learned, processes - 1, threads, self._work)
        self.has_begun = False  # whether all of a checkpoint that is gone on from was taken up
        self.reads_late = args.device.type in READ_LATE
        self._unread: tuple[int, Sequence[Example], Callable[[], list[float]]] | None = None

    def get_train_dataloader(self) -> DataLoader[list[Example]]:
        # batch_size=1 and not None: accelerate's skip_first_batches, by which a run resumes, needs a batch sampler.
        return DataLoader(self.train_dataset, batch_size=1, collate_fn=_only)

    # --- a step ---------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: list[Example], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one optimizer step; returns its mean loss a labelled token."""
        labels = sum(example.num_labels for example in inputs)
        world, rank = self.args.world_size, self.args.process_index
        mine = inputs[rank::world] or inputs[:1]  # every process must take part in the gradients' exchange
        weight = world / labels if len(inputs) > rank else 0.0
        total, batches = self._within_memory(lambda: self._accumulate(model, mine, weight))
        self._look_at(total, mine)
        self.trained_tokens += sum(len(example.input_ids) for example in mine)
        self.trained_labels += sum(example.num_labels for example in mine)
        self.computed_tokens += sum(map(self.engine.cost, batches))
        self.computed_tokens += self._filled()
        return total

    def _accumulate(
        self, model: Any, examples: Sequence[Example], weight: float
    ) -> tuple[torch.Tensor, list[list[Example]]]:
        shares = self.cut.shares(examples, self.engine)
        with self._beside(shares[1:], weight) as of_others:
            total = self._add_gradients(model, shares[0], weight)
        return total + sum(of_others), [batch for share in shares for batch in share]

    def _beside(self, shares: Sequence[Batches], weight: float | None) -> AbstractContextManager[list[float]]:
        """What the other processes compute meanwhile; their losses are there at the end."""
        if self.workers is None:
            return contextlib.nullcontext([])
        return self.workers.beside(shares, weight, self._stop_if_asked)

    def _work(self, share: Batches, weight: float | None) -> float:
        """A share of a step, or without a weight of an evaluation, in another process."""
        if weight is None:
            return sum_of_losses(self.model, self.engine, share)
        return float(self._add_gradients(self.model_wrapped, share, weight))

    def _add_gradients(self, model: Any, batches: Batches, weight: float) -> torch.Tensor:
        total = torch.zeros((), device=self.args.device)
        for batch in batches:
            self._begin(batch)
            total += self._add_gradient(model, batch, weight, last=batch is batches[-1])
        return total

    def _add_gradient(self, model: Any, batch: Sequence[Example], weight: float, *, last: bool) -> torch.Tensor:
        """Forward and backward of a micro-batch; returns its loss."""
        if self.graphs is not None and (captured := self.graphs.backward(batch, weight)) is not None:
            return captured
        exchange = contextlib.nullcontext() if last else self.accelerator.no_sync(model)
        with exchange:
            with self.compute_loss_context_manager(), self.keeping():
                loss = self.engine.loss_sum(model, batch) * weight
            self.accelerator.backward(loss)
        return loss.detach()

    def _filled(self) -> int:
        """Tokens that graphs were filled up with since this was asked last."""
        return 0 if self.graphs is None else self.graphs.take_filled()

    def _begin(self, batch: Sequence[Example]) -> None:
        """Before each micro-batch, so that neither a long step nor a long evaluation delays a stop."""
        self._batch = batch
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self.stop_asked():
            raise StepGivenUp

    def _within_memory(self, work: Callable[[], T]) -> T:
        """Does `work`, again with smaller micro-batches where memory runs out: from the same state, to the same end."""
        restore = randomness.snapshot()
        while True:
            try:
                return work()
            except Exception as error:
                # Processes that exchange gradients would wait for each other for ever.
                if not is_out_of_memory(error) or self.args.world_size > 1:
                    raise
                why = str(error) if isinstance(error, WorkerDied) else "out of memory"
            # Here and not above: the exception holds on to the tensors that filled the memory.
            self.model.zero_grad()
            given_up = self._give_up()
            _free_memory()
            restore()
            if given_up:
                console.warn(f"{why}: {given_up} from here on. The steps stay the same")
            else:
                self.cut.halve(self._batch, self.engine)

    def _give_up(self) -> str | None:
        """Does without what takes memory and gives speed: what that means, or None where nothing is left of it."""
        if self.graphs is not None:
            self.graphs = None
            return "no CUDA graphs"
        if self.workers is not None:
            self.close()
            self.workers, self.cut.processes = None, 1
            return "one process"
        return None

    def close(self) -> None:
        """Ends the other processes of this run."""
        if self.workers is not None:
            self.workers.close()

    def _look_at(self, total: torch.Tensor, examples: Sequence[Example]) -> None:
        """Keeps a step that must not be applied from the weights.

        On a GPU the optimizer's own kernel passes over it, and which it was is read one step later: the processor does
        not wait for the device. float16's scaler passes over it by itself.
        """
        found = self.accelerator.gather(finite(total, self.learned)[None]).amin(0)
        if self.reads_late and self.accelerator.scaler is None:
            self.optimizer.optimizer.found_inf = 1 - found.amin()
            self._judge()
            self._unread = self.state.global_step + 1, examples, read_later(found)
            return
        self._unread = self.state.global_step + 1, examples, read_later(found)
        if not self._judge() and self.accelerator.scaler is None:
            self.model.zero_grad()  # an optimizer without gradients does nothing

    def _judge(self) -> bool:
        """Whether the step that was looked at last is applied; names its rows if not."""
        if self._unread is None:
            return True
        (step, examples, read), self._unread = self._unread, None
        loss_is, gradient_is = read()
        if self.guard.passes(step, bool(loss_is), bool(gradient_is), scaled=self.accelerator.scaler is not None):
            return True
        rows = rows_without_loss(self.model, self.engine, examples)
        self.guard.skip(step, f"its {'gradient' if loss_is else 'loss'} is not a finite number", rows)
        return False

    def rehearse(self) -> None:
        """Forward and backward of the dearest micro-batches, so that too little memory shows before the first step.

        Leaves random numbers and gradients as they were.
        """
        restore = randomness.snapshot()
        self._within_memory(self._rehearse)
        self.model.zero_grad()
        self._filled()
        restore()

    def _rehearse(self) -> None:
        data = self.train_dataset
        for batch in self.cut.dearest(data.examples, data.steps.epoch(0), self.engine):
            with self._beside([[batch]] * (self.cut.processes - 1), 1.0):
                self._add_gradients(self.model_wrapped, [batch], 1.0)
            self.model.zero_grad()

    # --- evaluation -----------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The held-out loss as `eval_loss`."""
        began = time.perf_counter()
        with self.compute_loss_context_manager():
            loss = self._within_memory(self._heldout_loss)
        metrics = {f"{metric_key_prefix}_loss": loss}
        self.evaluation_seconds = time.perf_counter() - began
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        release()  # or what a step takes next lies between holes that other shapes left
        return metrics

    def _heldout_loss(self) -> float:
        """Cross-entropy a labelled token, in nats."""
        cut = Cut(self.cut.tokens, processes=self.cut.processes)  # parts are a step's
        shares = cut.shares(self.heldout, self.engine)
        with self._beside(shares[1:], None) as of_others:
            total = sum_of_losses(self.model, self.engine, shares[0], before_each=self._begin)
        return (total + sum(of_others)) / sum(example.num_labels for example in self.heldout)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """With `load_best` only steps that are saved anyway compete: one saved by a stop would not be there without."""
        if self.args.load_best_model_at_end and not self._saves_at(self.state.global_step):
            return False
        return bool(super()._determine_best_metric(metrics, trial))

    # --- going on -------------------------------------------------------------------------------------------

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """One epoch; none of it after the last step, where the Trainer of 5.23 would do one more on going on."""
        stopped = self.control.should_training_stop or self._patience_is_over()
        if self.state.global_step < self.state.max_steps and not stopped:
            super()._run_epoch(*args, **kwargs)

    def begin(self) -> None:
        """Before the first step of this session."""
        step = self.state.global_step
        if step > 0:
            self._load_rng_state(str(checkpoint.folder_of(self.args.output_dir, step)))
        self.has_begun = True
        self.model.train()  # once: it walks through all modules, and who asks the model puts back what it was
        self.step_ended()
        if self.rehearses and step < self.state.max_steps:
            self.rehearse()
        if step > 0:
            self._make_up_evaluation(step)

    def _make_up_evaluation(self, step: int) -> None:
        """The evaluation of the step that was resumed from, where a stop had cut it short."""
        due = step % self.state.eval_steps == 0 or step >= self.state.max_steps
        done = any("eval_loss" in entry and entry["step"] == step for entry in self.state.log_history)
        if self.args.eval_strategy == "steps" and due and not done:
            self.control.should_evaluate, self.control.should_save = True, self._saves_at(step)
            self._log_and_save()

    def _patience_is_over(self) -> bool:
        """Whether early stopping had decided when the run was killed: the Trainer forgets that on going on."""
        over: bool = any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )
        self.control.should_training_stop |= over  # or the Trainer would go on with the next epoch
        return over

    def _saves_at(self, step: int) -> bool:
        return bool(step % self.state.save_steps == 0 or step >= self.state.max_steps)

    # --- the end of a step, and of a session ----------------------------------------------------------------

    def step_ended(self, *, last: bool = False) -> None:
        self._after_step = randomness.snapshot()
        if last:
            self._judge()

    def save_last_step(self) -> None:
        """The checkpoint of the last finished step, after StepGivenUp: as it would have been written then."""
        self.model.zero_grad()
        self._after_step()
        step = self.state.global_step
        if step > 0 and not checkpoint.folder_of(self.args.output_dir, step).exists():
            self.control.should_evaluate, self.control.should_log, self.control.should_save = False, True, True
            self._log_and_save()
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)

    def _log_and_save(self) -> None:
        self._maybe_log_save_evaluate(
            self._tr_loss, None, self.model_wrapped, None, self.state.epoch, None, start_time=time.time()
        )

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the Trainer's estimate counts padded tokens of a tensor, which there are none of


class _Beside(TrainerCallback):  # type: ignore[misc]
    """What the trainer does before its first step and after each."""

    def __init__(self, trainer: LuthierTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.best_global_step:  # by its step: the run's folder may have been moved
            best = checkpoint.folder_of(args.output_dir, state.best_global_step)
            state.best_model_checkpoint = str(best) if best.exists() else None
        self.trainer.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.step_ended(last=state.global_step >= state.max_steps)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _only(items: list[list[Example]]) -> list[Example]:
    return items[0]
