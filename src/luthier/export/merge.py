"""One ordinary model folder from base and adapter, checked before it is called done."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from luthier.choice import Choice
from luthier.data.conversation import Message
from luthier.errors import CheckFailed, Problem, RunError
from luthier.export.template import save_tokenizer
from luthier.hub.fetch import fetch_model
from luthier.inference.opened import Opened, open_run
from luthier.model import load
from luthier.model.adapters import write_card
from luthier.model.files import read_object
from luthier.report import disk
from luthier.report.record import RunFolder

BOUND = {"float32": 1e-3, "float16": 0.5, "bfloat16": 1.0}
"""Largest change of a logit that is taken for rounding of the merged weights. What was measured: docs/merge.md."""
PROMPTS = 4


@dataclass(frozen=True)
class Merged:
    """`difference`: the largest of any logit; `agreement`: share of positions with the same best token."""

    path: Path
    dtype: Choice[str]
    difference: float
    agreement: float
    prompts: int

    @property
    def bound(self) -> float:
        return BOUND[self.dtype.value]

    @property
    def holds(self) -> bool:
        return self.difference <= self.bound  # never true of NaN


def merge(run: RunFolder, output: Path, *, dtype: str | None = None) -> Merged:
    """Adds the adapter to the weights in float32, saves them and checks that nothing else changed.

    The folder is written beside its final place, loaded again, and its logits are compared with the adapter's on the
    run's own prompts and answers; only a folder that holds the bound gets its name.

    Args:
        dtype: of the saved weights. None: the dtype in which the base is published, or float32 where the base's dtype
            is too coarse to hold the adapter's update.

    Raises:
        RunError: the output is taken, or the run has no result.
        CheckFailed: the merged model answers otherwise than the adapter.
    """
    check_free(output)
    with disk.whole_folder(output) as partial:
        merged = merge_into(partial, run, dtype=dtype, named=output)
    return replace(merged, path=output)


def check_free(output: Path) -> None:
    """Raises RunError where a result would land among other files."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunError(Problem(str(output), "is not empty", "name another folder: -o DIR"))


def merge_into(folder: Path, run: RunFolder, *, dtype: str | None, named: Path) -> Merged:
    """The checked merge, written to `folder`. `named`: what an error calls it."""
    if dtype is not None:
        merged = _merge(run, folder, Choice(dtype, "asked for"))
    else:
        base = fetch_model(run.read_recipe().model.ref, revision=run.read_recipe().model.revision).path
        merged = _merge(run, folder, Choice(stored_dtype(base), "the base is published in it"))
        if not merged.holds and merged.dtype.value != "float32":
            coarse = f"{merged.dtype.value} would change logits by up to {merged.difference:.2g}"
            merged = _merge(run, folder, Choice("float32", coarse))
    if not merged.holds:
        what = (
            f"merged logits differ by up to {merged.difference:.2g}, and {merged.dtype.value} allows {merged.bound:g}"
        )
        raise CheckFailed(Problem(str(named), what, "leave --dtype out, or use the adapter as it is"))
    return merged


def _merge(run: RunFolder, folder: Path, dtype: Choice[str]) -> Merged:
    """Merges into `folder` and compares what is loaded from there with the adapter."""
    shutil.rmtree(folder, ignore_errors=True)
    opened = open_run(run, dtype="float32")
    sequences = _sequences(opened, run)
    expected = [logits(opened.model, ids) for ids in sequences]
    if any(each.isnan().any() for each in expected):
        what = "the adapter's own logits are not numbers: its training diverged"
        raise CheckFailed(Problem(str(run.path), what, "train again with a lower train.learning_rate"))
    merged = opened.model.merge_and_unload(safe_merge=True).to(getattr(torch, dtype.value))
    _save(merged, folder, opened)
    again = load.load_model(folder, dtype="float32", device=opened.device).eval()
    found = [logits(again, ids) for ids in sequences]
    difference = float(torch.stack([(a - b).abs().max() for a, b in zip(found, expected, strict=True)]).max())
    same = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in zip(found, expected, strict=True)])
    return Merged(folder, dtype, difference, float(same.float().mean()), len(sequences))


def stored_dtype(folder: Path) -> str:
    """The dtype in which the base's weights are published."""
    config = read_object(folder / "config.json")
    name = config.get("dtype") or config.get("torch_dtype") or config.get("text_config", {}).get("dtype") or "float32"
    return name if name in BOUND else "float32"


def logits(model: Any, input_ids: Sequence[int]) -> torch.Tensor:
    """[T, V] float32 on the CPU."""
    with torch.no_grad():
        ids = torch.tensor([list(input_ids)], device=model.device)
        return torch.as_tensor(model(input_ids=ids, use_cache=False).logits[0].float().cpu())


def _sequences(opened: Opened, run: RunFolder) -> list[list[int]]:
    """The run's own prompts, each with the tuned answer behind it, as tokens."""
    answers = (run.record() or {}).get("answers", [])[:PROMPTS] or [{"prompt": "你是谁？ Who are you?", "tuned": ""}]
    sequences = []
    for answer in answers:
        system = answer.get("system")
        messages = [*([Message("system", system)] if system else []), Message("user", answer["prompt"])]
        behind = opened.renderer.tokenizer(answer["tuned"], add_special_tokens=False)["input_ids"]
        sequences.append(opened.renderer.prompt_ids(messages) + behind)
    return sequences


def _save(model: Any, folder: Path, opened: Opened) -> None:
    """Weights, tokenizer with chat template, and a generation config that stops where the template ends a turn."""
    model.generation_config.eos_token_id = opened.renderer.stop_ids
    model.save_pretrained(folder)
    save_tokenizer(opened.renderer, folder)
    write_card(folder, opened.renderer, base_ref=opened.base.ref, base_folder=opened.base.path, system=opened.system)
