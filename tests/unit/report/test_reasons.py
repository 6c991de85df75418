"""Why something was chosen, in Chinese: on each kind of machine, from the code that decides, to the page."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from opened_page import Page
from tiny import add_adapter, make_model

import luthier
from luthier.choice import Choice
from luthier.data.conversation import Source
from luthier.data.prepare import pick_max_length
from luthier.data.render import IGNORE, Example
from luthier.engine import attention, choose, compiled, liger
from luthier.engine.engines import FlatEngine, PlainEngine
from luthier.engine.flash import in_flashes
from luthier.engine.graphs import CannotCapture
from luthier.hardware import compute
from luthier.hardware.determinism import pick_deterministic
from luthier.hardware.environment import AOTRITON, prepare_torch
from luthier.hardware.parse import GIB, Gpu, nvidia_smi
from luthier.model.load import pick_thinking
from luthier.recipe.schema import DataSettings, TrainSettings
from luthier.report.languages import LANGUAGES, zh_recorded
from luthier.report.page import write_report
from luthier.report.record import RunFolder
from luthier.training import capture, plan, processes, takeover
from luthier.training.activations import Activations
from luthier.training.cut import Cut

CHINESE = LANGUAGES["zh"]
WORD = re.compile(r"\b[A-Za-z][\w.]*", re.ASCII)
NAMES = set(WORD.findall(re.sub(r"{\w+}", "", " ".join(zh_recorded.SENTENCES.values()))))
"""What the Chinese sentences leave as it is: FlexAttention, GPU, float32, …"""

FACTS = (
    *("cpu", "cuda", "mps", "TFLOP/s", "LlamaForCausalLM", "conv"),
    "No module named",
    "flat_attention() missing 1 required keyword-only argument: 'layout'",
)
"""Devices, units, and of models a class, a kind of layers and an error."""

ROWS = [Example([5, 6, 7, 8, last, 9], [IGNORE] * 4 + [last, 9], Source("rows.json", last)) for last in range(10, 16)]
FOUND = Activations(layers=10, kept=10**6, recomputed=10**5, outside=10**6)


@dataclass(frozen=True)
class Card:
    """A card, the torch beside it, and what it answers when it is tried: speeds, and what is wrong with kernels."""

    gpu: Gpu
    torch: str
    rates: dict[str, float | str]
    flex: str | None = None
    flash: str | None = None
    by_liger: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    """Texts of torch and drivers, which stay as they are."""


NO_KERNEL = "CUDA error: no kernel image is available for execution on the device"
NO_COMPILER = "clang: not found; see the guide, or install it"
NO_FLASH = "FlashAttention only supports Ampere GPUs or newer."
RTX, T4, K80 = (
    nvidia_smi(line)[0]
    for line in (
        "NVIDIA GeForce RTX 4090, 24564, 580.65.06, 8.9\n",
        "Tesla T4, 15360, 580.65.06, 7.5\n",
        "Tesla K80, 11441, 470.256.02, 3.7\n",
    )
)
RYZEN = Gpu("AMD Radeon 8060S", "amd", "gfx1151", 96 * GIB, unified=True)
CUDA, ROCM = "2.13.0+cu130", "2.13.0+rocm10.0.0"
CARDS = {
    "CUDA": Card(
        RTX,
        CUDA,
        {"float32": 50e12, "bfloat16": 150e12, "float16": 150e12},
        by_liger=("norms", "gated MLPs"),
    ),
    "APU": Card(
        RYZEN,
        ROCM,
        {"float32": 8e12, "bfloat16": 30.2e12, "float16": 31e12},
        flex=f"fails ({NO_COMPILER})",
        by_liger=("norms",),
        errors=(NO_COMPILER,),
    ),
    "Turing": Card(
        T4,
        CUDA,
        {"float32": 4e12, "bfloat16": "wrong result: relative error 1", "float16": 25e12},
        flex="is off by 3.0e-01",
        flash=f"fails ({NO_FLASH})",
        by_liger=("gated MLPs",),
    ),
    "half precision fails": Card(
        T4,
        CUDA,
        {"float32": 4e12, "bfloat16": NO_KERNEL, "float16": NO_KERNEL},
        flash=f"fails ({NO_FLASH})",
        errors=(NO_KERNEL,),
    ),
    "too old for this torch": Card(K80, CUDA, {"float32": NO_KERNEL}, errors=(NO_KERNEL,)),
}


def reasons_on(card: Card, patch: pytest.MonkeyPatch) -> list[str]:
    """All that a run may record on a machine with this card, from the code that decides."""

    def fault(kernel: Any, *_: Any) -> str | None:
        return card.flash if kernel is in_flashes else card.flex

    patch.setattr(compute, "_accelerators", lambda: ["cuda"])
    patch.setattr(compute, "_device_name", lambda device: card.gpu.name)
    patch.setattr(compute, "measure_rate", lambda device, dtype: card.rates[dtype])
    patch.setattr(attention, "fault", fault)
    patch.setattr(torch, "compile", lambda function, dynamic: function)
    patch.setattr(liger, "fuse", lambda model: list(card.by_liger))
    choices = [
        *of_the_machine(card, patch),
        *of_the_model(),
        *of_the_engine(patch),
        *of_the_graphs(patch),
        *of_the_processes(patch),
        *of_the_plan(patch),
    ]
    return list(dict.fromkeys(choice.reason for choice in choices))


def of_the_machine(card: Card, patch: pytest.MonkeyPatch) -> Iterator[Choice[Any]]:
    for environ in ({}, {AOTRITON: "0"}):
        yield from prepare_torch(environ, [card.gpu], card.torch, deterministic=True).values()
    yield compute.pick_device()
    if not isinstance(card.rates["float32"], str):
        yield from (compute.pick_device("cuda"), compute.pick_dtype("cuda"), compute.pick_dtype("cuda", "float32"))
    with patch.context() as blind:
        blind.setattr(compute, "_accelerators", list)
        yield compute.pick_device()
    yield from (pick_deterministic(device, asked=asked) for device in ("cpu", "cuda") for asked in (False, True))
    yield takeover.pick_machine({})
    for threads, quota in (("3", None), ("", None), ("", 1.5)):
        patch.setenv("OMP_NUM_THREADS", threads)
        patch.setattr(compute, "cpu_quota", lambda quota=quota: quota)
        yield compute.pick_threads()


def of_the_model() -> Iterator[Choice[Any]]:
    for template, asked in (("", None), ("enable_thinking", None), ("enable_thinking", True)):
        yield pick_thinking(SimpleNamespace(chat_template=template), asked)
    for longest, most in (("auto", 2048), ("auto", None), (128, 2048)):
        yield pick_max_length(DataSettings(train="rows.json", max_length=longest), most)


def of_the_engine(patch: pytest.MonkeyPatch) -> Iterator[Choice[Any]]:
    for device, dtype in (
        ("cpu", torch.float32),
        ("cpu", torch.bfloat16),
        ("mps", torch.float16),
        ("cuda", torch.float16),
    ):
        attention.pick_kernel.cache_clear()
        for family, dropout, plain in (("llama", 0, True), ("llama", 0.1, False), ("qwen3_5", 0, True)):
            reason = attention.named(device, dtype, 64, plain=plain)
            patch.setattr(choose, "_attention", lambda model, reason=reason: reason)
            yield choose.pick_engine(add_adapter(make_model(family), dropout=dropout), ROWS, asked="auto")
        attention.pick_kernel.cache_clear()
    for family in ("lfm2", "nemotron"):
        yield choose.pick_engine(add_adapter(make_model(family)), ROWS, asked="auto")
    model = add_adapter(make_model("llama"))
    yield choose.pick_engine(model, ROWS, asked="plain")
    with patch.context() as strict:
        strict.setattr(choose, "TOLERANCE", {torch.float32: -1.0})
        yield choose.pick_engine(model, ROWS, asked="auto")
    with patch.context() as without:
        without.setattr(liger, "fuse", lambda model: [])
        without.setattr(compiled, "find", lambda: Choice(None, "no loops compiled by numba (No module named 'numba')"))
        yield choose.pick_engine(model, ROWS, asked="auto")
    with patch.context() as own:
        own.setattr(type(model.get_base_model()), "_supports_attention_backend", False)
        yield choose.pick_engine(model, ROWS, asked="auto")


def of_the_graphs(patch: pytest.MonkeyPatch) -> Iterator[Choice[Any]]:
    model = add_adapter(make_model("llama"))
    for settings in ({}, {"cuda_graphs": False}):
        yield capture.pick_cuda_graphs(model, FlatEngine(), TrainSettings(**settings), 0, lambda: ROWS)
    for why in (
        *capture.against(model, FlatEngine(), TrainSettings(), 0, asked=False),
        "its gradient is off by 3.0e-01",
    ):
        patch.setattr(capture, "try_out", mock.Mock(side_effect=CannotCapture(why)))
        patch.setattr(capture, "_check", lambda *_, **__: None)
        yield capture.pick_cuda_graphs(model, FlatEngine(), TrainSettings(), 0, lambda: ROWS)
    for seconds in ((0.302, 0.0385), (0.02, 0.019)):
        patch.setattr(capture, "try_out", lambda *_, found=seconds, **__: found)
        for asked in ("auto", True):
            yield capture.pick_cuda_graphs(model, FlatEngine(), TrainSettings(cuda_graphs=asked), 0, lambda: ROWS)


def of_the_processes(patch: pytest.MonkeyPatch) -> Iterator[Choice[Any]]:
    patch.setattr(processes.sys, "platform", "linux")
    engine = FlatEngine()

    def pick(*, free: float = 64e9, alone: float = 0.5, **asked: Any) -> Choice[int]:
        settings = TrainSettings(**asked)
        steps = plan.steps_of(settings, ROWS)
        machine = processes.Machine("cpu", 4, free, 4e8, 30, lambda _, threads: {n: alone / n**0.5 for n in threads})
        return processes.pick_cpu_processes(settings, engine, ROWS, steps, 512, machine)

    yield from (pick(), pick(alone=1e-5), pick(free=1e9), pick(cpu_processes=1), pick(cpu_processes=2))
    machine = processes.Machine("cuda", 4, 64e9, 4e8, 30, mock.Mock())
    for why in processes.reasons(TrainSettings(), engine, machine, asked=False):
        patch.setattr(processes, "reasons", lambda *_, why=why, **__: {why: True})
        yield pick()


def of_the_plan(patch: pytest.MonkeyPatch) -> Iterator[Choice[Any]]:
    for asked in (
        {},
        {"batch_size": 3},
        {"batch_tokens": 30},
        {"gradient_checkpointing": 2, "micro_batch_tokens": 512},
    ):
        settings = TrainSettings(**asked)
        steps = plan.steps_of(settings, ROWS)
        yield plan.pick_batch_size(settings, steps)
        cut = Cut.of(settings, 512, 1)
        yield from (plan.saved_tokens(engine, ROWS, steps, cut) for engine in (FlatEngine(), PlainEngine()))
        for free in (10**8, 10**12):
            patch.setattr(plan, "available_bytes", lambda device, free=free: free)
            yield plan.pick_checkpointing(settings, FOUND, steps, "cuda")
            yield plan.pick_micro_batch(settings, FOUND, 0, "cuda")
    for asked in ({}, {"load_best": True}, {"save_steps": 30, "eval_steps": 10}, {"load_best": True, "save_steps": 30}):
        yield plan.pick_save_steps(TrainSettings(**asked), 100, 10)
        yield plan.pick_eval_steps(TrainSettings(**asked), 100)


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_the_chinese_page_has_each_reason_in_chinese(
    card: Card, started: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = reasons_on(card, monkeypatch)
    started.write_resolved({f"{number}": Choice(number, reason) for number, reason in enumerate(reasons)})
    texts = [text for text in Page(write_report(started, language=CHINESE)).texts if text.strip()]
    table = texts[texts.index(CHINESE.say("chosen")) + 1 : texts.index(CHINESE.say("defaults"))]
    assert [reasons[int(number)] for number in table[::3]] == reasons
    facts = [card.gpu.name, card.gpu.target, *card.errors]
    left = {reason: english(text, facts) for reason, text in zip(reasons, table[2::3], strict=True)}
    assert {reason: words for reason, words in left.items() if words} == {}


def english(text: str, facts: Sequence[str] = ()) -> list[str]:
    text = text.replace("；", "; ")  # also those of errors
    for fact in (*facts, *FACTS):
        text = text.replace(fact, "")
    return [word for word in WORD.findall(text) if word not in NAMES]


def test_every_reason_in_the_code_is_among_them() -> None:
    found: list[str] = []
    for card in CARDS.values():
        with pytest.MonkeyPatch.context() as patch:
            found += reasons_on(card, patch)
    missing = [piece for piece in written_reasons() if not any(piece in reason for reason in found)]
    assert missing == ["their fingerprint: with these files alone the run goes on"]  # of a whole job
    assert english(CHINESE.recorded(missing[0])) == []


def written_reasons() -> Iterator[str]:
    """What stands in the code as a reason of a run's choice: `Choice(24, f"{a} of {b}")` has the piece " of "."""
    package = Path(luthier.__file__).parent
    folders = (package / folder for folder in ("engine", "hardware", "model", "training"))
    for file in (package / "data" / "prepare.py", *(file for folder in folders for file in folder.rglob("*.py"))):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Choice":
                reason = call.args[1]
                pieces = reason.values if isinstance(reason, ast.JoinedStr) else [reason]
                yield from (piece.value for piece in pieces if isinstance(piece, ast.Constant))
