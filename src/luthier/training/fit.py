"""The training loop, from the start or from the last whole checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from luthier import console
from luthier.errors import Problem, Stopped
from luthier.model import adapters
from luthier.report.record import RunFolder
from luthier.training import checkpoint, track
from luthier.training.callbacks import Events, OrderlyStop
from luthier.training.display import Display
from luthier.training.job import Job
from luthier.training.trainer import LuthierTrainer, StepDataset

# transformers' own "constant" would pass over the warm-up in silence.
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def fit(job: Job, run: RunFolder) -> None:
    """Trains the job's adapter and saves it. Raises Stopped when a signal ended it, after saving a checkpoint."""
    run.write_resolved(job.choices)
    job.data.ledger.write(run.ledger_file)
    _show_choices(job)
    if run.is_trained():
        console.say("The training is done; going on with what comes after it")
        job.model.load_adapter(str(run.adapter_dir), job.model.active_adapter)
        return
    last = checkpoint.newest(run.checkpoints_dir)
    if last is not None:
        console.say(f"Going on from {last.name}")
    with Display() as display, OrderlyStop(console.say) as stop:
        trainer = _trainer(job, run, display, stop, resumed=last is not None)
        try:
            trainer.train(resume_from_checkpoint=str(last) if last is not None else None)
        except Exception as error:
            run.log({"event": "fail", "step": trainer.state.global_step, "reason": f"{type(error).__name__}: {error}"})
            raise
    state = trainer.state
    if stop.reason is not None and state.global_step < state.max_steps:
        run.log({"event": "stop", "step": state.global_step, "reason": stop.reason})
        what = f"stopped by {stop.reason} at step {state.global_step} of {state.max_steps}, and saved"
        raise Stopped(Problem(str(run.path), what, "the same command goes on from there"))
    adapters.save(
        job.model,
        run.adapter_dir,
        job.renderer,
        base_ref=job.recipe.model.ref,
        base_folder=job.base.path,
        system=job.recipe.data.system,
    )
    run.log({"event": "finish", "step": state.global_step})


def _trainer(job: Job, run: RunFolder, display: Display, stop: OrderlyStop, *, resumed: bool) -> LuthierTrainer:
    settings = job.recipe.train

    def emit(event: dict[str, Any]) -> None:
        run.log(event)
        display.event(event)

    events = Events(emit, job.value("model.device"), resumed=resumed)
    callbacks: list[TrainerCallback] = [events, stop, *track.callbacks(job.recipe.track, run, run.name)]
    if settings.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(settings.early_stopping_patience))
    accumulation = settings.gradient_accumulation_steps
    trainer = LuthierTrainer(
        job.model,
        _arguments(job, run.checkpoints_dir, resumed=resumed),
        job.engine,
        StepDataset(job.data.train, job.steps),
        job.data.heldout_examples,
        budget=job.value("train.micro_batch_tokens"),
        parts=None if accumulation == "auto" else accumulation,
        checkpoints_kept=settings.save_total_limit,
        offload=settings.offload_activations,
        callbacks=callbacks,
    )
    events.counted = lambda: (trainer.trained_tokens, trainer.computed_tokens)
    return trainer


def _arguments(job: Job, folder: Path, *, resumed: bool) -> TrainingArguments:
    """The recipe in the Trainer's terms."""
    settings, evaluates = job.recipe.train, bool(job.data.heldout_examples)
    best = evaluates and (settings.load_best or settings.early_stopping_patience is not None)
    return TrainingArguments(
        str(folder),
        per_device_train_batch_size=1,  # an item of the loader is a whole step
        max_steps=settings.steps or -1,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=SCHEDULES[settings.schedule],
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=job.value("train.eval_steps"),
        eval_on_start=evaluates and not resumed,
        save_steps=job.value("train.save_steps"),
        save_on_each_node=settings.save_on_each_node,
        load_best_model_at_end=evaluates and settings.load_best,
        metric_for_best_model="eval_loss" if best else None,
        greater_is_better=False if best else None,
        restore_callback_states_from_checkpoint=True,  # the patience that early stopping has left
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=job.value("model.dtype") == "bfloat16",
        fp16=job.value("model.dtype") == "float16",
        use_cpu=job.value("model.device") == "cpu",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def _show_choices(job: Job) -> None:
    rows = [(setting, choice.value, choice.reason) for setting, choice in job.choices.items()]
    console.table(("chosen", "value", "why"), rows)
