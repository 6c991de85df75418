"""After the training: answers before and after, the record and the report."""

from __future__ import annotations

import hashlib
import importlib.metadata
import time
from collections.abc import Sequence
from typing import Any

from luthier import __version__, console
from luthier.data.preview import Piece, measure, pieces, visible
from luthier.data.render import Example
from luthier.engine.engines import PlainEngine, install
from luthier.evaluation.answers import compare, questions, with_reference_losses
from luthier.evaluation.ending import end_probability
from luthier.evaluation.rows import BothLosses, measure_references, measure_rows
from luthier.hardware.memory import peak_bytes, release
from luthier.hardware.probe import probe
from luthier.report.page import write_report
from luthier.report.record import RunFolder, timeline
from luthier.training.forecast import calibration
from luthier.training.job import Job

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors")
SAMPLES, PIECES = 3, 300  # rows shown as tokens, and how many of each


def finish(job: Job, run: RunFolder, began: float | None = None) -> None:
    """Writes what a trained run lacks to be a finished one; `run.json` last.

    Args:
        began: `time.perf_counter()` when the command began, of a run with no other session.
    """
    recipe = job.recipe
    release()  # what the steps took: answers need room of their own
    measured, references = _heldout(job)
    install(job.model, PlainEngine())
    console.say("Answers before and after …")
    asked = questions(job.data.heldout_conversations, recipe.prompts, recipe.data.system)
    answers = with_reference_losses(compare(job.model, job.renderer, asked), references)
    ending = _ending(job)
    facts, plan = environment(job), _plan(run)
    total = None if began is None else time.perf_counter() - began
    found = {**result(job, run), "total_seconds": total, **ending}
    run.write_record(
        {
            "luthier": __version__,
            "model": recipe.model.ref,
            "revision": job.base.revision,
            "output": recipe.output,
            "environment": facts,
            "data": {
                "files": job.data.files,
                "ledger": job.data.ledger.to_json(),
                "lengths": measure(job.data.train).to_json(),
                "repeated": repeated(job.data.train),
            },
            "result": found,
            "plan": plan and calibration.figures(plan),
            "heldout": {"rows": len(job.data.heldout), "measured": measured},
            "answers": answers,
            "samples": samples(job.data.train, job.renderer.tokenizer),
            "hashes": hashes(run),
        }
    )
    write_report(run)
    if plan is not None:
        where = {"run": str(run.path), "model": recipe.model.ref, "cpu": facts["cpu"]}
        calibration.remember({**where, **calibration.compared(plan, found)})


def _plan(run: RunFolder) -> dict[str, Any] | None:
    """What was planned before the first step; None where nothing was."""
    return next((event for event in timeline(run.events()) if event["event"] == "plan"), None)


def _heldout(job: Job) -> tuple[list[dict[str, Any]], list[BothLosses]]:
    if not job.data.heldout:
        return [], []
    console.say("Held-out rows one by one …")
    budget = job.value("train.micro_batch_tokens")  # with which the model was trained, so that it fits
    rows = job.data.heldout_conversations, job.data.heldout
    return (
        measure_rows(job.model, job.engine, *rows, budget=budget),
        measure_references(job.model, job.engine, *rows, budget=budget),
    )


def samples(examples: Sequence[Example], tokenizer: Any) -> list[dict[str, Any]]:
    """The first rows as tokens, for the page: text, whether it is trained, ids. A gap in a long row is null."""
    return [
        {
            "where": str(example.source),
            "tokens": len(example.input_ids),
            "cut": example.cut,
            "pieces": [
                piece and [visible(piece.text), piece.trained, piece.ids]
                for piece in _both_ends(pieces(example, tokenizer))
            ],
        }
        for example in examples[:SAMPLES]
    ]


def _both_ends(row: list[Piece]) -> list[Piece | None]:
    """A long row's first third and last two, where its answer is."""
    return [*row] if len(row) <= PIECES else [*row[: PIECES // 3], None, *row[PIECES // 3 - PIECES :]]


def repeated(examples: Sequence[Example]) -> int:
    """Sequences that repeat an earlier one token for token (`data.duplicates: keep`)."""
    return len(examples) - len({tuple(example.input_ids) for example in examples})


def hashes(run: RunFolder) -> dict[str, str]:
    """SHA-256 of what makes the result: the adapter's weights and its config."""
    files = [run.adapter_dir / name for name in ("adapter_model.safetensors", "adapter_config.json")]
    return {f"adapter/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _ending(job: Job) -> dict[str, float | None]:
    """How sure the base and the tuned model are to stop where the held-out answers stop."""
    rows = job.data.heldout_examples
    after = end_probability(job.model, job.renderer, rows)
    with job.model.disable_adapter():
        before = end_probability(job.model, job.renderer, rows)
    return {"end_probability_before": before, "end_probability_after": after}


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
