"""The training loop, from the start or from the last whole checkpoint."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from pickle import UnpicklingError

from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from luthier import console
from luthier.engine.graphs import Graphs
from luthier.errors import LuthierError, Problem, RunError, Stopped
from luthier.evaluation.answers import questions
from luthier.hardware.determinism import deterministic
from luthier.model import adapters
from luthier.report.events import Event, Plan
from luthier.report.record import RunFolder, timeline
from luthier.secrets import without_secrets
from luthier.training import checkpoint, track
from luthier.training.callbacks import Events, OrderlyStop
from luthier.training.cut import Cut, is_out_of_memory
from luthier.training.display import Display
from luthier.training.guard import Guard
from luthier.training.job import Job
from luthier.training.sample import Sample
from luthier.training.trainer import LuthierTrainer, StepDataset, StepGivenUp
from luthier.training.utilization import utilization

GOES_ON = "the same command goes on from there"
# transformers' own "constant" would pass over the warm-up in silence.
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


class OneDevice(TrainingArguments):  # type: ignore[misc]
    """The Trainer's arguments for one device: on several cards it would cut each flat row in pieces, one a card."""

    @property
    def n_gpu(self) -> int:
        count: int = super().n_gpu
        return min(1, count)


def fit(job: Job, run: RunFolder, plan: Plan | None = None) -> None:
    """Trains the job's adapter and saves it. Raises Stopped when a signal ended it, after saving a checkpoint.

    Args:
        plan: of what the run takes, for the log of one that begins.
    """
    run.write_resolved(job.choices)
    job.data.ledger.write(run.ledger_file)
    _show_choices(job)
    if run.is_trained():
        console.say("The training is done; going on with what comes after it")
        adapters.check_files(run.adapter_dir)
        job.model.load_adapter(str(run.adapter_dir), job.model.active_adapter)
        return
    last = checkpoint.settle(run.checkpoints_dir)
    if last is not None:
        console.say(f"Going on from {last.name}")
    with Display(run.name, job.recipe.model.ref, timeline(run.events())) as display, OrderlyStop(console.say) as stop:
        trainer = _trainer(job, run, display, stop, last, plan)
        with deterministic(asked=job.recipe.train.deterministic):
            given_up = _train(trainer, run, last)
    state = trainer.state
    if given_up or (stop.asked() and state.global_step < state.max_steps):
        run.log({"event": "stop", "step": state.global_step, "reason": stop.reason})
        what = f"stopped by {stop.reason} at step {state.global_step} of {state.max_steps}, and saved"
        raise Stopped(Problem(str(run.path), what, GOES_ON))
    adapters.save(
        job.model,
        run.adapter_dir,
        job.renderer,
        base_ref=job.recipe.model.ref,
        base_folder=job.base.path,
        system=job.recipe.data.system,
    )
    run.log({"event": "finish", "step": state.global_step})
    if stop.asked():
        raise Stopped(Problem(str(run.path), f"stopped by {stop.reason} after the last step, and saved", GOES_ON))


def _train(trainer: LuthierTrainer, run: RunFolder, last: Path | None) -> bool:
    """Whether a stop gave up a step or an evaluation; the last finished step is saved then."""
    try:
        trainer.train(resume_from_checkpoint=str(last) if last is not None else None)
    except StepGivenUp:
        trainer.save_last_step()
        return True
    except Exception as error:
        known = isinstance(error, LuthierError) or is_out_of_memory(error)
        if last is not None and not trainer.has_begun and not known:
            raise _refused(last, error) from error
        with contextlib.suppress(OSError):  # a full disk does not take this line either
            reason = error.problems[0].what if isinstance(error, LuthierError) else f"{type(error).__name__}: {error}"
            run.log({"event": "fail", "step": trainer.state.global_step, "reason": reason})
        raise
    finally:
        trainer.close()
    return False


def _refused(last: Path, error: Exception) -> RunError:
    """A sealed checkpoint with other content than a training writes: its seal keeps damage off, not forgery."""
    what = f"cannot be gone on from: {without_secrets(error)}"
    if isinstance(error, UnpicklingError):  # torch read tensors and numbers, and met something else
        what = "holds a pickled program in the place of tensors, which was not run"
    return RunError(Problem(str(last), what, "delete that folder: the same command goes on from the one before it"))


def _trainer(
    job: Job, run: RunFolder, display: Display, stop: OrderlyStop, last: Path | None, plan: Plan | None
) -> LuthierTrainer:
    settings, resumed = job.recipe.train, last is not None

    trackers = track.callbacks(job.recipe.track, run, run.name)

    def emit(event: Event) -> None:
        timed = {"time": time.time(), **event}
        run.log(timed)
        display.event(timed)
        for tracker in trackers:
            tracker.event(timed)

    device = job.value("model.device")
    share = utilization(job.model, device, job.value("model.dtype"))
    events = Events(emit, device, resumed=resumed, plan=plan, utilization=share)
    callbacks: list[TrainerCallback] = [events, stop, *trackers]
    for prompt, _ in questions(job.data.heldout_conversations, job.recipe.prompts, job.recipe.data.system)[:1]:
        callbacks.append(Sample(job.renderer, prompt, emit, stop.asked))
    if settings.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(settings.early_stopping_patience))

    def skipped(step: int, reason: str, rows: list[str]) -> None:
        emit({"event": "skip", "step": step, "reason": reason, "rows": rows})

    trainer = LuthierTrainer(
        job.model,
        _arguments(job, run.checkpoints_dir, resumed=resumed),
        job.engine,
        StepDataset(job.data.train, job.steps),
        job.data.heldout_examples,
        cut=_cut(job, run, last),
        checkpoints_kept=settings.save_total_limit,
        offload=settings.offload_activations,
        graphs=_graphs(job),
        processes=job.value("train.cpu_processes"),
        rehearses=plan is None or plan["rehearses"],
        guard=Guard(skipped),
        stop_asked=stop.asked,
        callbacks=callbacks,
    )
    events.counted, events.logs_late = lambda: trainer.counted, lambda: trainer.logs_late
    events.evaluated_in = lambda: trainer.evaluation_seconds
    events.beside = lambda: trainer.workers.peak_bytes if trainer.workers is not None else 0
    trainer.cut.on_halved = lambda tokens: emit(
        {"event": "memory", "step": trainer.state.global_step, "micro_batch_tokens": tokens}
    )
    return trainer


def _graphs(job: Job) -> Graphs | None:
    return Graphs(job.model, job.engine) if job.value("train.cuda_graphs") else None


def _cut(job: Job, run: RunFolder, last: Path | None) -> Cut:
    """As the run had it at that checkpoint: the sums of a step depend in their last bits on how it is cut."""
    tokens = job.value("train.micro_batch_tokens")
    if last is not None:
        for event in timeline(run.events()):
            if event["event"] == "memory" and event["step"] <= checkpoint.step_of(last):
                tokens = event["micro_batch_tokens"]
    return Cut.of(job.recipe.train, tokens, job.value("train.cpu_processes"))


def _arguments(job: Job, folder: Path, *, resumed: bool) -> OneDevice:
    """The recipe in the Trainer's terms."""
    settings, evaluates = job.recipe.train, bool(job.data.heldout_examples)
    best = evaluates and (settings.load_best or settings.early_stopping_patience is not None)
    return OneDevice(
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
