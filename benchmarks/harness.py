"""Runs the contenders of a job, each in a fresh process, one after the other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.contenders import CONTENDERS
from benchmarks.jobs import Job, Rendered
from benchmarks.peers import environment, last_words
from benchmarks.task import Result, Task
from luthier.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Entry:
    """A contender in one dtype, with what its runs measured. `trouble`: why it could not run, or go on."""

    name: str
    dtype: str
    results: list[Result] = field(default_factory=list)
    trouble: str = ""

    @property
    def title(self) -> str:
        return f"{self.name} {self.dtype}"


def make_task(name: str, job: Job, rendered: Rendered, model: Path, *, dtype: str, device: str, folder: Path) -> Task:
    """The job as every contender gets it, but for the dtype."""
    count = job.batch_size * (job.steps + 1)
    return Task(
        job=name,
        model=str(model),
        messages=rendered.messages[:count],
        input_ids=rendered.input_ids[:count],
        labels=rendered.labels[:count],
        train_on=rendered.train_on,
        batch_size=job.batch_size,
        padded_batch=job.padded_batch,
        steps=job.steps,
        dtype=dtype,
        device=device,
        folder=str(folder),
    )


def race(task: Task, entries: Sequence[Entry], *, repeat: int, peers: Path) -> Iterator[Entry]:
    """Every entry's run, round by round, each yielded when it is done. An entry that fails is left out from then on."""
    for number in range(1, repeat + 1):
        for entry in entries:
            if not entry.trouble:
                run(task, entry, number, peers)
                yield entry


def run(task: Task, entry: Entry, number: int, peers: Path) -> None:
    """One run in a fresh process; the entry gets its result or its trouble."""
    folder = Path(task.folder) / f"{entry.name}-{entry.dtype}-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    mine, theirs, log = folder / "task.json", folder / "result.json", folder / "output.log"
    replace(task, dtype=entry.dtype, folder=str(folder)).write(mine)
    contender = CONTENDERS[entry.name]
    try:
        own = contender.requirements
        python = environment(entry.name, contender, peers / entry.name, task.device) if own else Path(sys.executable)
    except InputError as error:
        entry.trouble = error.problems[0].what
        return
    command = [str(python), "-m", "benchmarks.contend", entry.name, str(mine), str(theirs)]
    with log.open("w", encoding="utf-8") as output:
        status = subprocess.call(command, stdout=output, stderr=subprocess.STDOUT, env=_environment())
    if status == 0:
        entry.results.append(Result.read(theirs))
    else:
        killed = "killed, which is how Linux ends a process when memory is out" if status == -9 else last_words(log)
        entry.trouble = f"{killed} ({log})"


def _environment() -> dict[str, str]:
    """This process's environment, in which `benchmarks` can be imported from anywhere and nothing is fetched."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUTF8": "1"}
    return {**os.environ, **offline, "PYTHONPATH": path}
