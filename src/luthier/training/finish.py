"""After the last step: the adapter, answers before and after, the record and the report."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from luthier import __version__, console
from luthier.data.preview import measure
from luthier.engine.engines import PlainEngine, set_attention
from luthier.evaluation.answers import compare, questions
from luthier.hardware.memory import peak_bytes
from luthier.hardware.probe import probe
from luthier.model import adapters
from luthier.report.page import write_report
from luthier.report.record import RunFolder, timeline
from luthier.training.fit import Fitted
from luthier.training.job import Job

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors")


def finish(job: Job, fitted: Fitted, run: RunFolder) -> None:
    """Writes everything that a finished run has; `run.json` last."""
    recipe = job.recipe
    adapters.save(
        job.model,
        run.adapter_dir,
        job.renderer,
        base_ref=recipe.model.ref,
        base_folder=job.base.path,
        system=recipe.data.system,
    )
    set_attention(job.model, PlainEngine())
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
            "result": result(job, fitted, run),
            "answers": answers,
        }
    )
    write_report(run)


def environment(job: Job) -> dict[str, Any]:
    """The machine and the versions that made this run."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    device, dtype = job.value("model.device"), job.value("model.dtype")
    return {**probe().to_json(), "device": device, "dtype": dtype, **versions}


def result(job: Job, fitted: Fitted, run: RunFolder) -> dict[str, Any]:
    """The figures of the whole run, over all its sessions."""
    events = timeline(run.events())
    steps = [event for event in events if event["event"] == "step"]
    heldout = [event["heldout_loss"] for event in events if event["event"] == "evaluation"]
    seconds = sum(event["seconds"] for event in steps)
    tokens = sum(event["tokens"] for event in steps)
    rows = min(job.steps * job.recipe.train.batch_size, round(job.recipe.train.epochs * len(job.data.train)))
    last = steps[-10:]
    return {
        "steps": steps[-1]["step"] if steps else 0,
        "epochs": steps[-1]["epoch"] if steps else 0,
        "rows": job.data.rows,
        "seconds": seconds,
        "samples_per_second": rows / seconds if seconds else None,
        "tokens_per_second": tokens / seconds if seconds else None,
        "real_tokens": tokens,
        "computed_tokens": fitted.computed_tokens,
        "train_loss": sum(event["loss"] for event in last) / len(last) if last else None,
        "heldout_loss_before": heldout[0] if heldout else None,
        "heldout_loss_after": heldout[-1] if heldout else None,
        "peak_memory_bytes": peak_bytes(job.value("model.device")),
    }
