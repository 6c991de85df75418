"""`export.json`: what an export is, what it was measured to do, and the SHA-256 of each of its files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from luthier import console
from luthier.errors import CheckFailed, Problem, RunError
from luthier.hub.manifest import sha256
from luthier.report import disk

FILE = "export.json"
Target = Literal["merged", "adapter", "gguf", "ollama"]
Quant = Literal["f16", "q8_0", "q4_k_m"]
Sha256 = str


@dataclass(frozen=True)
class Bound:
    """How far an export may be from the trained model. What was measured, and why these: docs/export.md."""

    kl: float
    """Mean KL divergence of the next token, nats."""
    top1: float
    """Least share of positions with the same likeliest token."""
    ending: float
    """Largest loss of the probability of ending, where the reference answers end."""


BOUNDS = {
    "adapter": Bound(1e-4, 0.99, 0.01),
    "float32": Bound(1e-4, 0.99, 0.01),
    "float16": Bound(1e-3, 0.98, 0.02),
    "bfloat16": Bound(1e-2, 0.95, 0.03),
    "f16": Bound(1e-3, 0.98, 0.02),
    "q8_0": Bound(0.02, 0.9, 0.05),
    "q4_k_m": Bound(0.15, 0.8, 0.1),
}
"""By the type of the exported weights."""
ENDED = 2 / 3
"""Of the free answers that end with the trained model, how many must end with the export: a lost stop token ends none.
Not all, since rounding leads a greedy answer elsewhere in time."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Figures(_Strict):
    """What was measured. `chat` is False where only the weights were read back, by another program."""

    runtime: str
    chat: bool
    prompts: int = Field(gt=0)
    source: str
    same_prompts: int
    positions: int = Field(gt=0)
    kl: float | None
    top1: float
    end_trained: float | None
    end_exported: float | None
    answers: int
    ended_trained: int
    ended_exported: int
    same_answers: int


class Exported(_Strict):
    """The content of export.json."""

    luthier: str
    to: Target
    weights: str
    """float32, bfloat16 or float16 for merged, `adapter`, else the quantisation."""
    run: str
    adapter_sha256: Sha256
    base: str
    revision: str | None
    made: str
    seconds: float
    figures: Figures | None
    """None: nothing could be measured."""
    files: dict[str, Sha256]

    @property
    def checks(self) -> list[Check]:
        return [] if self.figures is None else judge(self.figures, BOUNDS[self.weights])

    @property
    def state(self) -> Literal["verified", "unverified", "failed"]:
        """Follows from the figures: it is nowhere written, so nobody can write it."""
        if not all(check.holds for check in self.checks):
            return "failed"
        return "verified" if self.figures is not None and self.figures.chat else "unverified"


@dataclass(frozen=True)
class Check:
    name: str
    trained: str
    exported: str
    bound: str
    holds: bool


def judge(found: Figures, bound: Bound) -> list[Check]:
    """Each figure beside its bound."""
    kl = math.inf if found.kl is None else found.kl
    checks = [
        Check("KL divergence, nats (mean)", "0", f"{kl:.2g}", f"at most {bound.kl:g}", kl <= bound.kl),
        Check(
            "same likeliest token",
            "100 %",
            _percent(found.top1),
            f"at least {_percent(bound.top1)}",
            found.top1 >= bound.top1,
        ),
    ]
    if found.end_trained is not None and found.end_exported is not None:
        lowest = max(0.0, found.end_trained - bound.ending)
        before, after, least = map(_percent, (found.end_trained, found.end_exported, lowest))
        holds = found.end_exported >= lowest
        checks.append(Check("probability of ending, where answers end", before, after, f"at least {least}", holds))
    if not found.chat:
        return checks
    everywhere = f"{found.same_prompts} of {found.prompts}"
    same = Check("prompts with identical tokens", "", everywhere, "all", found.same_prompts == found.prompts)
    needed = math.ceil(ENDED * found.ended_trained)
    ended = Check(
        "free answers that end",
        f"{found.ended_trained} of {found.answers}",
        f"{found.ended_exported} of {found.answers}",
        f"at least {needed}",
        found.ended_exported >= needed,
    )
    return [same, *checks, ended]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def write(folder: Path, record: Exported) -> None:
    """The last file of an export."""
    text = json.dumps(console.finite(record.model_dump()), indent=2, ensure_ascii=False)
    disk.replace(folder / FILE, f"{text}\n".encode())


def hashes(folder: Path, advance: Callable[[int], object] = lambda n: None) -> dict[str, Sha256]:
    """Of every file but export.json, by its path with forward slashes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / FILE)
    return {file.relative_to(folder).as_posix(): sha256(file, advance) for file in files}


def read(folder: Path) -> Exported:
    """The record of an export whose files are those that it was made of.

    Raises RunError for a folder that is no export, CheckFailed where a file is missing, new or another.
    """
    file = folder / FILE
    if not file.is_file():
        what = f"is no export (no {FILE})" if folder.is_dir() else "is no folder"
        raise RunError(Problem(str(folder), what, f"make one: {console.command('export RUN --to gguf -o DIR')}"))
    again = "export the run again"
    try:
        record = Exported.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise RunError(Problem(str(file), f"is not what Luthier wrote: {place}: {first['msg']}", again)) from None
    if record.weights not in BOUNDS:
        raise RunError(Problem(str(file), f"is not what Luthier wrote: weights: {record.weights!r:.40}", again))
    with console.progress("checking the files", None):
        found = hashes(folder)
    differing = sorted(name for name, _ in found.items() ^ record.files.items())
    if differing:
        names = ", ".join(dict.fromkeys(differing))
        raise CheckFailed(Problem(str(folder), f"has changed since it was exported: {names[:200]}", again))
    return record
