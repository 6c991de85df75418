"""`python start.py bench`: the contenders of each job, run one after the other, and a table of what they did."""

from __future__ import annotations

import dataclasses
import random
import statistics
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from benchmarks import jobs
from benchmarks.command import run_command
from benchmarks.contenders import CONTENDERS
from benchmarks.harness import Entry, make_task, race
from benchmarks.jobs import JOBS, Job
from benchmarks.machine import describe
from benchmarks.models import model_folder
from benchmarks.tables import BRIEF_COLUMNS, JobReport, brief, write
from benchmarks.task import Task, num_labels
from luthier import console
from luthier.errors import CheckFailed, InputError, Problem

USUAL = ("tutorial@float32", "tutorial", "expert", "plain", "flat", "limit")

Job_ = Annotated[list[str] | None, typer.Option("--job", help=f"May be repeated; of {', '.join(JOBS)}. All if none.")]
Contender_ = Annotated[
    list[str] | None,
    typer.Option("--contender", help=f"May be repeated; of {', '.join(CONTENDERS)}; NAME@float32 fixes the dtype."),
]


def bench(
    job: Job_ = None,
    contender: Contender_ = None,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also the peers, each installed in an environment of its own.")
    ] = False,
    rows: Annotated[
        Path | None, typer.Option(envvar="LUTHIER_BENCH_ROWS", help="huanhuan.json; without it, rows like it are made.")
    ] = None,
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], typer.Option(help="Of weights and products.")] = "auto",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")] = "auto",
    shape: Annotated[
        Literal["0.6b", "1.7b", "4b", "8b"] | None, typer.Option(help="For every job random weights of Qwen3's shape.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Another model for every job: a folder or a hub's name.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Fewer layers for Qwen3 shapes.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Measured optimizer steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows of an optimizer step.")] = None,
    padded_batch: Annotated[int | None, typer.Option(min=1, help="Rows of a padded micro-batch.")] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each contender; medians are shown.")] = 1,
    baseline: Annotated[str | None, typer.Option(help="What ratios refer to: the tutorial, else the first.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for models, peers, logs and results.")] = Path("build/bench"),
) -> None:
    """Measure Luthier against the tutorial's script, its tuned form, peers and the machine's limit."""
    from luthier.hardware.compute import pick_device, pick_dtype

    on = pick_device(device).value
    chosen = pick_dtype(on, dtype)
    lineup = line_up(contender or usual(on, peers=peers), chosen.value)
    compared_with = pick(baseline, lineup)
    of_model = {"model": model or (f"qwen3-{shape}" if shape else None)}
    changes = {"steps": steps, "batch_size": batch_size, "padded_batch": padded_batch, **of_model}
    asked = {name: changed(find(name), changes) for name in job or JOBS}
    facts = describe(on, chosen)
    console.say(facts["summary"])

    work = output.absolute()
    folder = work / datetime.now().strftime("%Y-%m-%d-%H%M%S")
    tasks: list[tuple[Task, JobReport]] = []  # all of them before the first runs, so that none fails hours later
    for name, each in asked.items():
        where = model_folder(each.model, work / "models", layers=layers)
        drawn, origin = draw(each, rows, where)
        task = make_task(name, each, drawn, where, dtype=chosen.value, device=on, folder=folder / name)
        entries = [Entry(*pair) for pair in lineup]
        tasks.append((task, JobReport(name, heading(task, each, origin), entries, compared_with)))
    for task, report in tasks:
        console.say(f"\n{report.name}: {report.heading}")
        for entry in race(task, report.entries, repeat=repeat, peers=work / "peers"):
            console.say(f"  {entry.title}: {brief(entry)}")
            write(folder, facts, [report for _, report in tasks if report.rows()])
        console.table(BRIEF_COLUMNS, report.brief_rows())
        console.say(report.loss_check()[1])
    console.say(f"\nWritten: {folder / 'results.md'} and results.json")
    failed = [text for good, text in (report.loss_check() for _, report in tasks) if not good]
    if failed:
        raise CheckFailed(*(Problem("bench", text, f"see the logs in {folder}") for text in failed))


def usual(device: str, *, peers: bool) -> list[str]:
    """The contenders that run when none is named."""
    able = [name for name, each in CONTENDERS.items() if each.requirements and (device == "cuda" or not each.gpu_only)]
    return [*USUAL, *(able if peers else [])]


def line_up(names: Sequence[str], dtype: str) -> list[tuple[str, str]]:
    """Contender and dtype of each entry, none twice. Raises InputError for names that no contender has."""
    pairs = [(name, fixed or dtype) for name, _, fixed in (each.partition("@") for each in names)]
    unknown = [name for name, _ in pairs if name not in CONTENDERS]
    if unknown:
        fix = f"name one of: {', '.join(CONTENDERS)}"
        raise InputError(*(Problem(f"--contender {name}", "there is no such contender", fix) for name in unknown))
    return list(dict.fromkeys(pairs))


def pick(baseline: str | None, lineup: Sequence[tuple[str, str]]) -> str:
    """The title of the entry that ratios refer to: the last of that name, which is not the one of a fixed dtype.

    Without a name it is the tutorial, else the first. Raises InputError for one that does not run.
    """
    names = [name for name, _ in lineup]
    chosen = baseline or ("tutorial" if "tutorial" in names else names[0])
    if chosen not in names:
        what = "does not run, so nothing can be compared with it"
        raise InputError(Problem(f"--baseline {chosen}", what, f"name one of: {', '.join(names)}"))
    return next(Entry(*each).title for each in reversed(lineup) if each[0] == chosen)


def find(name: str) -> Job:
    if name not in JOBS:
        raise InputError(Problem(f"--job {name}", "there is no such job", f"name one of: {', '.join(JOBS)}"))
    return JOBS[name]


def changed(job: Job, asked: dict[str, Any]) -> Job:
    """The job as the options want it. A padded micro-batch never holds more than the step's rows."""
    job = dataclasses.replace(job, **{key: value for key, value in asked.items() if value is not None})
    job = dataclasses.replace(job, padded_batch=min(job.padded_batch, job.batch_size))
    if job.batch_size % job.padded_batch:
        what = f"{job.batch_size} rows a step cannot be cut into micro-batches of {job.padded_batch}"
        raise InputError(Problem("--batch-size", what, "give a multiple of --padded-batch"))
    return job


def draw(job: Job, file: Path | None, model: Path) -> tuple[jobs.Rendered, str]:
    """The rows of a job as tokens, and where they come from."""
    count = job.batch_size * (job.steps + 1)
    given = file if job.takes_rows else None
    rows = jobs.read(given, count) if given else job.make(random.Random(0), count)
    return jobs.render(rows, model), f"rows drawn from {given.name}" if given else "rows made by the benchmark"


def heading(task: Task, job: Job, origin: str) -> str:
    lengths = [len(ids) for ids in task.input_ids[task.measured]]
    learned = sum(map(num_labels, task.labels[task.measured]))
    return (
        f"{job.what}; {origin}. Model {Path(task.model).name}. {task.steps} × {task.batch_size} rows after a warm-up "
        f"step: {sum(lengths):,} tokens, {learned:,} labelled; rows of {min(lengths):,} to {max(lengths):,} tokens, "
        f"half up to {round(statistics.median(lengths)):,}. Padded micro-batches of {task.padded_batch}."
    )


if __name__ == "__main__":
    run_command(bench)
