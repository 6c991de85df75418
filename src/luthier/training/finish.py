"""After the training: answers before and after, the record and the report."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

from luthier import __version__, console
from luthier.data.preview import measure
from luthier.engine.engines import PlainEngine, install
from luthier.evaluation.answers import compare, questions
from luthier.hardware.memory import peak_bytes
from luthier.hardware.probe import probe
from luthier.report.page import write_report
from luthier.report.record import RunFolder, timeline
from luthier.training.job import Job

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors")


def finish(job: Job, run: RunFolder) -> None:
    """Writes what a trained run lacks to be a finished one; `run.json` last."""
    recipe = job.recipe
    install(job.model, PlainEngine())
    console.say("Answers before and after …")
    asked = questions(job.data.heldout_conversations, recipe.prompts, recipe.data.system)
    answers = compare(job.model, job.renderer, asked)
    run.write_record(
        {
            "luthier": __version__,
            "model": recipe.model.ref,
            "output": recipe.output,
            "environment": environment(job),
            "data": {
                "files": job.data.files,
                "ledger": job.data.ledger.to_json(),
                "lengths": measure(job.data.train).to_json(),
            },
            "result": result(job, run),
            "answers": answers,
        }
    )
    write_report(run)


def environment(job: Job) -> dict[str, Any]:
    """The machine and the versions that made this run."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    device, dtype = job.value("model.device"), job.value("model.dtype")
    return {**probe().to_json(), "device": device, "dtype": dtype, **versions}


def result(job: Job, run: RunFolder) -> dict[str, Any]:
    """The figures of the whole run, over all its sessions."""
    settings = job.recipe.train
    events = timeline(run.events())
    logged = [event for event in events if event["event"] == "step"]
    heldout = [event["heldout_loss"] for event in events if event["event"] == "evaluation"]
    steps = logged[-1]["step"]
    rows = job.steps.rows_in(steps)
    seconds = sum(event["seconds"] for event in logged)
    tokens = sum(event["tokens"] for event in logged)
    return {
        "steps": steps,
        "epochs": logged[-1]["epoch"],
        "rows": job.data.rows,
        "seconds": seconds,
        "samples_per_second": rows / seconds,
        "tokens_per_second": tokens / seconds,
        "real_tokens": tokens,
        "computed_tokens": sum(event["computed_tokens"] for event in logged),
        "train_loss": _mean([event["loss"] for event in logged[-10:]]),
        "heldout_loss_before": heldout[0] if heldout else None,
        "heldout_loss_after": _loss_of_the_kept(heldout[1:], best=settings.load_best),
        "peak_memory_bytes": max(peak_bytes(job.value("model.device")), *(event["memory_bytes"] for event in logged)),
    }


def _mean(losses: Sequence[float | None]) -> float | None:
    """None where one of them was not finite."""
    finite = [loss for loss in losses if loss is not None]
    return sum(finite) / len(finite) if len(finite) == len(losses) else None


def _loss_of_the_kept(heldout: Sequence[float | None], *, best: bool) -> float | None:
    """The held-out loss of the adapter that was kept: the last one measured, or the lowest with `load_best`."""
    finite = [loss for loss in heldout if loss is not None]
    return min(finite) if best and finite else next(iter(heldout[::-1]), None)
