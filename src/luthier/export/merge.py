"""One ordinary model folder from base and adapter, checked before it is called done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from luthier.data.conversation import Message
from luthier.errors import CheckFailed, Problem, RunError
from luthier.inference.opened import Opened, open_run
from luthier.model import load
from luthier.report.record import RunFolder

BOUND = {"float32": 1e-3, "bfloat16": 1.0, "float16": 0.1}
"""Largest difference of a logit that rounding the merged weights to the dtype may make. Measured on SmolLM2-135M:
docs/merge.md."""
PROMPTS = 4


@dataclass(frozen=True)
class Merged:
    """`difference`: the largest of any logit; `agreement`: share of positions with the same best token."""

    path: Path
    dtype: str
    difference: float
    bound: float
    agreement: float
    prompts: int


def merge(run: RunFolder, output: Path, *, dtype: str | None = None) -> Merged:
    """Adds the adapter to the weights in float32, saves them in `dtype` (None: the base's own) and compares.

    The folder is written beside its final place, loaded again, and its logits are compared with the adapter's on the
    run's own prompts and answers; only a folder that holds the bound gets its name.

    Raises:
        RunError: the output is taken, or the run has no result.
        CheckFailed: the merged model answers otherwise than the adapter.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunError(Problem(str(output), "is not empty", "name another folder: -o DIR"))
    opened = open_run(run, dtype="float32")
    dtype = dtype or stored_dtype(opened.base.path)
    sequences = _sequences(opened, run)
    expected = [logits(opened.model, ids) for ids in sequences]

    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    merged = opened.model.merge_and_unload(safe_merge=True).to(getattr(torch, dtype))
    _save(merged, partial, opened)
    del merged
    again = load.load_model(partial, dtype="float32", device=opened.device).eval()
    found = [logits(again, ids) for ids in sequences]
    difference = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    same = [a.argmax(-1) == b.argmax(-1) for a, b in zip(found, expected, strict=True)]
    result = Merged(output, dtype, difference, BOUND[dtype], float(torch.cat(same).float().mean()), len(sequences))
    if not difference <= result.bound:  # also true of NaN
        shutil.rmtree(partial, ignore_errors=True)
        what = f"merged logits differ by {difference:.2g}; {dtype} allows {result.bound:g}"
        fix = "merge in a wider type: --dtype float32; or use the adapter itself"
        raise CheckFailed(Problem(str(output), what, fix))
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.is_dir():
        output.rmdir()
    partial.rename(output)
    return result


def stored_dtype(folder: Path) -> str:
    """The dtype in which the base's weights are published."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
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
    opened.renderer.tokenizer.save_pretrained(folder)
