"""An export against the trained model: the same prompts, the same distributions, answers that end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from luthier import console
from luthier.errors import CheckFailed, LuthierError, Problem
from luthier.export import gguf, llama, ollama
from luthier.export.record import Check, Exported, Figures, Target
from luthier.export.reference import ANSWERED, MAX_NEW_TOKENS, Reference
from luthier.export.runtimes import Gguf, Runtime, Transformers
from luthier.hub.fetch import fetch_model
from luthier.recipe.schema import ModelSettings
from luthier.report import disk
from luthier.secrets import without_secrets


def verify(folder: Path, to: Target, reference: Reference, settings: ModelSettings, *, named: Path) -> Figures | None:
    """Measures the export in `folder` with the program that will run it.

    Where that is not installed, the weights of a GGUF file are read back by transformers (`chat` False); None where it
    cannot read them. Raises CheckFailed, about `named`, where the program cannot load the export or breaks off.
    """
    try:
        return _measured(folder, to, reference, settings)
    except (LuthierError, MemoryError):
        raise
    except Exception as error:  # a runtime raises what it likes, and any of it means that the export does not run
        if disk.is_full(error):
            raise
        program = "llama.cpp" if to in ("gguf", "ollama") else "transformers"
        what = f"{program} cannot run it: {without_secrets(error)}"
        raise CheckFailed(Problem(str(named), what, "take another target: --to merged or --to adapter")) from error


def _measured(folder: Path, to: Target, reference: Reference, settings: ModelSettings) -> Figures | None:
    if to in ("gguf", "ollama"):
        file = folder / gguf.FILE
        if not llama.is_installed():
            return _weights_alone(file, reference)
        longest = max(len(each.prompt_ids) + max(len(each.answer_ids), MAX_NEW_TOKENS) for each in reference.asked)
        runtime = llama.LlamaCpp(file, context=longest + 1)
        figures = measure(runtime, reference)
        if to == "gguf":
            return figures
        sent = zip(ollama.prompts(reference), reference.asked, strict=True)
        same = sum(runtime.tokens(text) == each.prompt_ids for text, each in sent)
        return figures.model_copy(update={"same_prompts": min(figures.same_prompts, same)})
    base = None
    if to == "adapter":
        base = fetch_model(settings.ref, revision=settings.revision, allow_code=settings.trust_remote_code).path
    return measure(Transformers(folder, base=base, trust_remote_code=settings.trust_remote_code), reference)


def measure(runtime: Runtime, reference: Reference) -> Figures:
    """What the runtime's own chat path does with the reference's prompts."""
    console.say(f"The same prompts through {runtime.title} …")
    same = sum(runtime.prompt_ids(each.raw()) == each.prompt_ids for each in reference.asked)
    free = [runtime.answer(each.raw(), MAX_NEW_TOKENS) for each in reference.asked[:ANSWERED]]
    pairs = list(zip(free, reference.texts, strict=True))
    return Figures(
        runtime=runtime.title,
        chat=True,
        same_prompts=same,
        ended_exported=sum(ended for _, ended in free),
        same_answers=sum(text == trained for (text, _), trained in pairs),
        **distributions(runtime, reference),
    )


def _weights_alone(file: Path, reference: Reference) -> Figures | None:
    console.say("The weights, read back by transformers …")
    try:
        runtime = Gguf(file)
    except (ValueError, LookupError, NotImplementedError) as error:  # a family that llama.cpp knows, and it does not
        console.warn(f"transformers cannot read the GGUF file back: {without_secrets(error)}")
        return None
    return Figures(
        runtime=runtime.title,
        chat=False,
        same_prompts=0,
        ended_exported=0,
        same_answers=0,
        **distributions(runtime, reference),
    )


def distributions(runtime: Any, reference: Reference) -> dict[str, Any]:
    """The figures that need no chat path: next-token distributions on the reference answers."""
    divergences, agreements, ends = [], [], []
    stops = reference.renderer.stop_ids
    for asked, expected in zip(reference.asked, reference.logprobs, strict=True):
        found = runtime.logprobs(asked.prompt_ids, asked.answer_ids)
        divergence, agreement = compare(expected, found)
        divergences.append(divergence)
        agreements.append(agreement)
        if asked.answer_ids[-1] in stops:
            ends.append([float(each[-1, stops].exp().sum()) for each in (expected, found)])
    mean = float(torch.cat(divergences).mean())
    return {
        "prompts": len(reference.asked),
        "source": reference.source,
        "positions": sum(map(len, agreements)),
        "kl": max(0.0, mean) if mean == mean else None,  # a sum of float32 products may come out below zero
        "top1": float(torch.cat(agreements).float().mean()),
        "end_trained": sum(trained for trained, _ in ends) / len(ends) if ends else None,
        "end_exported": sum(exported for _, exported in ends) / len(ends) if ends else None,
        "answers": len(reference.texts),
        "ended_trained": sum(reference.ended),
    }


def compare(expected: torch.Tensor, found: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(expected ‖ found) in nats [P], and whether the likeliest token is the same [P], of log-probabilities [P, V].

    A runtime may pad the vocabulary, or cut padding off it: what both have is compared.
    """
    width = min(expected.shape[-1], found.shape[-1])
    expected, found = expected[:, :width].double(), found[:, :width].double()
    return (expected.exp() * (expected - found)).sum(-1), expected.argmax(-1) == found.argmax(-1)


def show(record: Exported) -> None:
    """The table for people."""
    rows = [_row(check) for check in record.checks]
    if record.figures is not None:
        title = f"{record.figures.prompts} {record.figures.source}, {record.figures.positions} positions"
        console.table(("", "trained", "exported", "bound", ""), rows, title=f"{record.figures.runtime}: {title}")


def refuse_failed(record: Exported, folder: Path) -> None:
    """Raises CheckFailed with every figure out of its bound."""
    failed = [check for check in record.checks if not check.holds]
    fix = "take a finer --quant, or another target: --to merged or --to adapter"
    if failed:
        raise CheckFailed(
            *(Problem(f"{folder}, {each.name}", f"{each.exported}: must be {each.bound}", fix) for each in failed)
        )


def _row(check: Check) -> tuple[str, ...]:
    return check.name, check.trained, check.exported, check.bound, "✓" if check.holds else "✗"
